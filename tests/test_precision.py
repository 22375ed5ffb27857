"""The automatic precision: bf16 only where every rank has it in hardware, and said aloud where it is emulated."""

import pytest
import torch

from cadiff import precision as p
from cadiff.distributed import Place

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_hardware(monkeypatch, native, chosen):
    monkeypatch.setattr(p, "has_bf16", lambda device: native)
    assert p.choose_precision("auto", CPU, Place()) == chosen


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_a_named_precision_is_taken_as_it_is(monkeypatch, asked):
    monkeypatch.setattr(p, "has_bf16", lambda device: pytest.fail("not asked"))
    assert p.choose_precision(asked, CPU, Place()) == asked


def test_one_rank_without_bf16_decides_for_all(monkeypatch):
    monkeypatch.setattr(p, "has_bf16", lambda device: True)

    def other_rank_has_none(value, op):
        assert op == torch.distributed.ReduceOp.MIN
        value.fill_(0)

    monkeypatch.setattr(torch.distributed, "all_reduce", other_rank_has_none)
    assert p.choose_precision("auto", CPU, Place(0, 0, 2)) == "fp32"


def test_emulated_bf16_is_called_slow(monkeypatch):
    monkeypatch.setattr(p, "has_bf16", lambda device: False)
    assert "slow" in p.describe_precision("bf16", CPU)
    assert p.describe_precision("fp32", CPU) == "fp32"


def test_this_cpu_answers_as_its_flags_say():
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else None
    if not flags:
        pytest.skip("this torch does not list the flags of a CPU")
    assert p.has_bf16(CPU) == bool(flags.get("avx512_bf16") or flags.get("amx_tile"))
