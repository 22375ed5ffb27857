"""Files mapped into one range of addresses, so that one flat tensor covers a set and one call gathers rows."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import DataError

_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap module does not name it
_PROT_NONE = 0
_HUGE_FROM = 4 * 1024**2
_FAILED = ctypes.c_void_p(-1).value


class AddressRange:
    """Reserves room for files of known sizes; each is mapped into its place when it is first needed.

    A numpy or torch view of the range keeps the mapping alive. Reading a place whose file is not mapped yet would
    crash, so callers map first.

    Attributes:
        starts: int64, where each file begins within the range, in bytes; pages are never shared by two files.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        # One readable page more follows each file: rows may be read a little beyond their end.
        pages = [(-(-size // mmap.PAGESIZE) + 1) * mmap.PAGESIZE for size in sizes]
        self.starts = np.cumsum([0, *pages])[:-1].astype(np.int64)
        self._descriptors: dict[int, int] = {}
        self._sizes, self._bytes = list(sizes), max(sum(pages), mmap.PAGESIZE)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._base = self._map(None, self._bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        view = type("_View", (ctypes.c_ubyte * self._bytes,), {}).from_address(self._base)
        weakref.finalize(view, self._libc.munmap, self._base, self._bytes)
        for start, room in zip(self.starts.tolist(), pages):
            last = self._base + start + room - mmap.PAGESIZE
            self._map(last, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1)
        self._bytes_view = np.frombuffer(view, dtype=np.uint8)

    def map(self, number: int, path: Path) -> None:
        """Map file ``number`` read-only into its place.

        Raises:
            DataError: missing, or of another size than reserved.
        """
        try:
            with open(path, "rb") as handle:
                found = os.fstat(handle.fileno()).st_size
                if found != self._sizes[number]:
                    raise DataError(f"{path}: {found:,} bytes, expected {self._sizes[number]:,}. Copy it again.")
                if found:
                    place = self._base + int(self.starts[number])
                    self._map(place, found, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, handle.fileno())
                self._descriptors[number] = os.dup(handle.fileno())
        except FileNotFoundError:
            raise DataError(f"{path}: missing. Copy the packed folder again or pack again.") from None

    def found_size(self, number: int) -> int:
        """Bytes that a mapped file has now, whatever has become of its name."""
        return os.fstat(self._descriptors[number]).st_size

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def flat(self, dtype: torch.dtype) -> Tensor:
        """The whole range as values of ``dtype``: (bytes // item size,)."""
        kinds = {torch.float16: np.float16, torch.float32: np.float32, torch.int16: np.int16, torch.int8: np.int8}
        return torch.from_numpy(self._bytes_view.view(kinds[dtype]))

    def _map(self, place: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
        found = self._libc.mmap(place, length, protection, flags, descriptor, 0)
        if found == _FAILED:
            problem = os.strerror(ctypes.get_errno())
            raise DataError(f"mapping {length:,} bytes of shards failed ({problem}). Is a size in a manifest damaged?")
        return found


def roomy(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in RAM, not filled, on huge pages where the system has them: rows are found with fewer page walks.

    NumPy asks for huge pages from ``_HUGE_FROM`` bytes on; room between an eighth of that and all of it is rounded up.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _HUGE_FROM // 8:
        return torch.empty(tuple(shape), dtype=dtype)
    room = torch.from_numpy(np.empty(max(size, _HUGE_FROM), dtype=np.uint8))
    return room[:size].view(dtype).view(tuple(shape))
