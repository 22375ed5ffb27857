"""Scratch files of a part in the making: their space is reserved before they are used, so that a full disk is an error.

Without that, a full disk would show as zeros read back, or, where the file is mapped, as the end of the process by
SIGBUS. Shapes: N rows, V columns.
"""

from __future__ import annotations

import errno
import os

import numpy as np

_ZEROS = bytes(1024**2)
# What a C library says that does not itself write zeros where the file system cannot reserve.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserve(descriptor: int, size: int) -> None:
    """Make an empty file ``size`` bytes of zeros that are on disk.

    Raises:
        OSError: there is no such space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as problem:
            if problem.errno not in _CANNOT_RESERVE:
                raise
    for start in range(0, size, len(_ZEROS)):
        _write(descriptor, memoryview(_ZEROS)[: size - start], start)


class Scratch:
    """A table of float32 (N, V) in a file: written some columns at a time, read some rows at a time."""

    def __init__(self, descriptor: int, rows: int, columns: int) -> None:
        reserve(descriptor, 4 * rows * columns)
        self._descriptor, self._columns = descriptor, columns

    def put(self, start: int, slab_NV: np.ndarray) -> None:
        """Write columns from ``start`` on of all rows: contiguous float32."""
        for number, row_V in enumerate(slab_NV):
            _write(self._descriptor, memoryview(row_V).cast("B"), 4 * (number * self._columns + start))

    def take(self, rows: list[int]) -> np.ndarray:
        """Read whole rows."""
        rows_NV = np.empty((len(rows), self._columns), dtype=np.float32)
        for row_V, number in zip(rows_NV, rows):
            _read(self._descriptor, memoryview(row_V).cast("B"), 4 * number * self._columns)
        return rows_NV


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all: a disk that is filling up takes a part, and says so only when asked for the rest."""
    while data:
        done = os.pwrite(descriptor, data, offset)
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, offset = data[done:], offset + done


def _read(descriptor: int, into: memoryview, offset: int) -> None:
    while into:
        done = os.preadv(descriptor, [into], offset)
        if not done:
            raise OSError(errno.EIO, f"a scratch file ends at byte {offset:,}, before what was written to it")
        into, offset = into[done:], offset + done
