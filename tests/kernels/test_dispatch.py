"""Which kernels run: the variable is obeyed, impossible wishes are refused with a remedy, disagreement stops a job."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from cadiff.errors import ConfigError
from cadiff.kernels import dispatch, patch_embed, similarity


@pytest.fixture
def without_triton(monkeypatch):
    find, version = importlib.util.find_spec, importlib.metadata.version

    def no_version(name):
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    monkeypatch.setattr(importlib.metadata, "version", no_version)


def test_a_gpu_where_triton_cannot_compile_steps_aside_aloud(choose, monkeypatch, caplog):
    def fails(*inputs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr("cadiff.kernels.triton_mask.ranked_draws", fails)
    reason = dispatch._why_no_triton("cpu")
    assert reason == "Triton does not run here (RuntimeError: Failed to find C compiler.)"
    monkeypatch.setattr(dispatch, "_why_no_triton", lambda device_type: reason)
    choose("auto")
    assert dispatch.backend("cuda") == "torch"
    assert "step aside for plain PyTorch on cuda, because Triton does not run here" in caplog.text
    choose("triton")
    assert dispatch.backend("cuda") == "triton"  # by name it is not probed: its own error tells more


@pytest.mark.parametrize(("value", "live"), [("auto", "torch"), ("torch", "torch"), ("reference", "reference")])
def test_a_cpu_runs_plain_pytorch(choose, value, live):
    choose(value)
    assert dispatch.backend("cpu") == live
    assert dispatch.describe("cpu").items() >= {"kernels": live, "asked": value, "device": "cpu"}.items()


def test_an_unknown_value_is_refused_with_the_known_ones(choose):
    choose("cuda")
    with pytest.raises(ConfigError, match="'cuda'; expected one of auto, reference, torch, triton"):
        dispatch.backend("cpu")


def test_the_choice_is_made_once(choose, monkeypatch):
    choose("reference")
    dispatch.backend("cuda")
    monkeypatch.setenv("CADIFF_KERNELS", "nonsense")
    assert dispatch.backend("cuda") == "reference"


def test_triton_by_name_without_triton_says_how_to_get_it(choose, without_triton):
    choose("triton")
    with pytest.raises(ConfigError, match="pip install triton"):
        dispatch.backend("cuda")


def test_a_gpu_without_triton_steps_aside_aloud(choose, without_triton, caplog):
    choose("auto")
    assert dispatch.describe("cuda") == {
        "kernels": "torch", "asked": "auto", "device": "cuda", "triton": "not installed"
    }  # fmt: skip
    assert "step aside" in caplog.text


def test_triton_on_a_cpu_asks_for_the_interpreter_before_the_first_import():
    code = """
import os, triton
os.environ["TRITON_INTERPRET"] = "1"  # too late
from cadiff.kernels import dispatch
dispatch.backend("cpu")
"""
    environ = os.environ | {"TRITON_INTERPRET": "0", "CADIFF_KERNELS": "triton"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected TRITON_INTERPRET=1 in the environment before Triton is first imported" in done.stderr


def test_a_healthy_machine_passes_its_check(choose):
    choose("auto")
    dispatch.self_check("cpu")


@pytest.mark.parametrize(("module", "name"), [(patch_embed, "masked_patch_embed"), (similarity, "info_nce")])
def test_a_kernel_that_disagrees_with_its_reference_stops_the_job(choose, monkeypatch, module, name):
    choose("auto")
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: right(*args, **options) * 1.01)
    with pytest.raises(ConfigError, match=rf"{module.__name__} on cpu.*off by"):
        dispatch.self_check("cpu")
