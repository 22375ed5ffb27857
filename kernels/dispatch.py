"""The one place that decides, once per process and kind of device, which of three backends the kernels run in.

The environment variable CADIFF_KERNELS decides:
    auto       Triton on GPUs, the fast PyTorch path on CPUs (default)
    reference  the definition, in plain PyTorch, everywhere
    torch      the fast PyTorch path everywhere: the same operations by pieces, without what the definition writes
    triton     Triton everywhere; on a CPU this needs Triton's interpreter, TRITON_INTERPRET=1
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.kernels.tuning import describe_tiles

_log = logging.getLogger(__name__)
_CHOICES = ("auto", "reference", "torch", "triton")


@torch.compiler.assume_constant_result
def backend(device_type: str) -> str:
    """Choose "reference", "torch" or "triton" for a kind of device ("cpu"…); later calls repeat the first answer.

    Raises:
        ConfigError: CADIFF_KERNELS is not one of its values, or asks for a Triton that cannot run here.
    """
    return _choose(device_type)


@functools.cache
def _choose(device_type: str) -> str:
    asked = _asked()
    if asked in ("reference", "torch"):
        return asked
    if asked == "auto" and device_type != "cuda":
        return "torch"
    if importlib.util.find_spec("triton") is None:
        if asked == "triton":
            raise ConfigError(
                "CADIFF_KERNELS=triton, but Triton is not installed; expected triton 3.6 or newer. "
                "Run pip install triton, or set CADIFF_KERNELS=torch."
            )
        _log.warning("Triton is not installed: the kernels step aside for plain PyTorch on %s.", device_type)
        return "torch"
    if device_type != "cuda" and not _interpreted():
        raise ConfigError(
            f"CADIFF_KERNELS=triton on a {device_type}, where Triton only runs in its interpreter, and that is off; "
            "expected TRITON_INTERPRET=1 in the environment before Triton is first imported. "
            "Set it when starting the process, or set CADIFF_KERNELS=auto."
        )
    if asked == "auto" and (problem := _why_no_triton(device_type)):
        _log.warning("The kernels step aside for plain PyTorch on %s, because %s.", device_type, problem)
        return "torch"
    return "triton"


@contextmanager
def on_device(tensor: Tensor) -> Iterator[None]:
    """Where an operator runs: on the tensor's own GPU, which need not be the current one, and outside autocast."""
    current = torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
    with current, torch.autocast(tensor.device.type, enabled=False):
        yield


def forget() -> None:
    """Choose again at the next call, for tests that change CADIFF_KERNELS."""
    _choose.cache_clear()


def _why_no_triton(device_type: str) -> str | None:
    """What keeps Triton from compiling and running a kernel here, or None; it needs a C compiler at first use."""
    from cadiff.kernels import triton_mask

    one_B = torch.zeros(1, dtype=torch.int64, device=device_type)
    try:
        triton_mask.ranked_draws((0, 0), one_B, one_B, 8, 2, None)
    except Exception as problem:  # noqa: BLE001 - compilers, drivers and Triton's own versions fail in many ways
        first_line = str(problem).strip().partition("\n")[0]
        return f"Triton does not run here ({type(problem).__name__}: {first_line})"
    return None


def describe(device: torch.device | str | None = None) -> dict[str, str]:
    """Say what runs, for the start-up print and the run's summary.

    Args:
        device: whose kernels; without it, the GPU if there is one.

    Returns:
        kernels ("reference", "torch", "triton" or "triton interpreter"), asked, device, triton (its version or "not
        installed"), and tiles (which table) where Triton is compiled.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    live = backend(kind)
    if live == "triton" and _interpreted():
        live = "triton interpreter"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    told = {"kernels": live, "asked": _asked(), "device": kind, "triton": version}
    if live == "triton":
        told["tiles"] = describe_tiles(torch.device(kind))
    return told


def self_check(device: torch.device | str) -> None:
    """Compare every kernel that is live on ``device`` with its reference, forward and backward, on a small input.

    With several ranks, all call it: they also compare the contrastive loss of all ranks with that of one process. Takes
    milliseconds (and Triton's compile time on a GPU). Inputs are fixed, in float32; nothing global changes.

    Raises:
        ConfigError: they disagree, which means a broken Triton, driver, compiler cache or network.
    """
    from cadiff.kernels import mask, patch_embed, similarity

    problem = ""
    for module in (mask, patch_embed, similarity):
        for live, wanted in zip(*module.check_pair(torch.device(device)), strict=True):
            if not problem and not torch.allclose(live, wanted, rtol=1e-3, atol=1e-4):
                worst = (live - wanted).abs().max().item()
                problem = (
                    f"{module.__name__} on {device}: the {describe(device)['kernels']} kernel is off by {worst:.3g}, "
                    "expected at most 1e-4. Empty Triton's cache (~/.triton/cache), or set CADIFF_KERNELS=reference."
                )
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if several:  # a rank that stopped alone would leave the others waiting
        failed = torch.tensor(float(bool(problem)), device=device)
        torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX)
        if failed and not problem:
            problem = "The kernels of another rank disagree with their references; its own message says which."
    if problem:
        raise ConfigError(problem)
    if several:
        from cadiff.kernels.similarity_ranks import check_ranks

        check_ranks(torch.device(device))


def _asked() -> str:
    asked = os.environ.get("CADIFF_KERNELS", "auto")
    if asked not in _CHOICES:
        raise ConfigError(f"CADIFF_KERNELS is {asked!r}; expected one of {', '.join(_CHOICES)}.")
    return asked


def _interpreted() -> bool:
    """True if Triton was imported with its interpreter on: its own library of functions is bound at import."""
    import triton.language as tl

    return type(tl.zeros).__name__ == "InterpretedFunction"
