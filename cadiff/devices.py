"""The device of a rank, and how its host memory is kept."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from cadiff.distributed import Place

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)
_ALL = 2**31 - 1


def device_of(place: Place) -> torch.device:
    """The GPU of this local rank, or the CPU where there is none."""
    if torch.cuda.is_available():
        index = place.local_rank % torch.cuda.device_count()  # srun may show each rank its own GPU only
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Let the C library hand large tensors out again, where it would return each to the system when it is freed.

    A step on a CPU asks for the same tensors as the last one, and touching fresh pages took a fifth of a small model's
    step. Only glibc's allocator can be told; under others nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_THRESHOLD, _ALL)
        library.mallopt(_TRIM_THRESHOLD, _ALL)
