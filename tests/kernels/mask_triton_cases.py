"""The mask kernel against its definition, bit for bit, and its parts against cadiff.kernels.keyed.

Not collected by name: test_triton.py runs this file in a process of its own, once in Triton's interpreter on the CPU
and once natively on a GPU, because Triton decides at its first import which of the two it is.
"""

import os

import pytest
import torch
import triton
import triton.language as tl

from cadiff.kernels import mask, triton_mask
from cadiff.kernels.keyed import fixed_point_log, keyed_draws, stream_key
from cadiff.kernels.mask import focus_weights, random_mask, random_mask_reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
EDGES = [0, 1, 2, 2**22, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 2, 2**24 - 1]


def assert_bits(args, rest) -> None:
    """The kernel on DEVICE says what the definition says on the CPU."""
    seed, stream, *ids = args
    live = random_mask(seed, stream, *(each.to(DEVICE) for each in ids), *rest)
    wanted = random_mask_reference(*args, *rest)
    for name in ("keep_BK", "restore_BL", "hidden_BL"):
        got, asked = getattr(live, name), getattr(wanted, name)
        assert got.dtype == asked.dtype
        assert got.device.type == DEVICE
        assert torch.equal(got.cpu(), asked), name


@pytest.mark.parametrize(
    ("B", "L", "ratio"),
    [(2, 1, 0.0), (0, 5, 0.5), (3, 4, 0.75), (1, 128, 0.5), (1, 129, 0.0), (2, 262, 0.75)],
    ids=["one patch", "no sample", "one kept", "a block", "nothing hidden", "HCP"],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_mask(B, L, ratio, weighted):
    ids_B = torch.arange(B) * (2**35 + 3)
    weights_L = torch.linspace(0, 3, L).exp().flip(0) if weighted else None
    assert_bits((1 + 2**64, "phase1/view1", ids_B % 5 - 1, ids_B), (L, ratio, weights_L))


@pytest.mark.parametrize("focus", [[], [0, 16000]], ids=["plain", "focus"])
def test_mask_of_the_whole_cortex(monkeypatch, focus):
    if DEVICE == "cpu":  # large blocks, because the interpreter takes its time for each
        monkeypatch.setattr(triton_mask, "FORWARD", {"BLOCK_I": 2048, "BLOCK_J": 512})
    args = (3, "a", torch.tensor([2**40], dtype=torch.int64), torch.tensor([7]))
    assert_bits(args, (5706, 0.75, focus_weights(5706, 16, focus, 0.6)))


@pytest.mark.parametrize("blocks", [(4, 8), (16, 4)])
def test_blocks_change_nothing(monkeypatch, blocks):
    monkeypatch.setattr(triton_mask, "FORWARD", dict(zip(("BLOCK_I", "BLOCK_J"), blocks)))
    assert_bits((3, "a", torch.tensor([0, 1]), torch.tensor([5, 5])), (11, 0.5, torch.linspace(1, 2, 11)))


def test_ids_may_be_of_any_integer_type_and_stride():
    few = torch.arange(6, dtype=torch.int32)[::2]
    assert_bits((3, "a", few, few + 1), (9, 0.5))


@triton.jit
def _write_draws(out, key0, key1, epoch, sample_id, BLOCK: tl.constexpr):
    draws = triton_mask._draws(key0, key1, tl.load(epoch), tl.load(sample_id), 0, BLOCK)
    tl.store(out + tl.arange(0, BLOCK), draws)


@triton.jit
def _write_logs(draw, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    draws = tl.load(draw + i, mask=i < n, other=0).to(tl.int32)
    tl.store(out + i, triton_mask._fixed_point_log(draws), mask=i < n)


@pytest.mark.parametrize(("epoch", "sample"), [(0, 0), (-1, 2**40 + 5), (2**31, 2**32 - 1)])
def test_draws_are_those_of_the_keyed_generator(epoch, sample):
    when, who = torch.tensor([epoch], device=DEVICE), torch.tensor([sample], device=DEVICE)
    out = torch.empty(256, dtype=torch.int32, device=DEVICE)
    _write_draws[(1,)](out, *stream_key(5, "x"), when, who, 256)
    assert torch.equal(out.cpu().long(), keyed_draws(5, "x", when.cpu(), who.cpu(), 256)[0])


def test_logarithms_are_those_of_the_definition():
    draw = torch.cat([torch.tensor(EDGES), torch.randint(2**24, (1000,), generator=torch.Generator().manual_seed(0))])
    out = torch.empty_like(draw, device=DEVICE)
    _write_logs[(1,)](draw.to(DEVICE), out, len(draw), 1024)
    assert torch.equal(out.cpu(), fixed_point_log(draw))


def test_mask_passes_its_own_check():
    for live, wanted in zip(*mask.check_pair(torch.device(DEVICE)), strict=True):
        assert torch.equal(live, wanted)
