"""How signals are stored: float16, float32, or whole numbers with one scale per block. Shapes: N samples, V voxels."""

from __future__ import annotations

import google_crc32c
import numpy as np

from cadiff.errors import DataError
from cadiff.shards.voxels import to_half

# Name of a storage type -> its numpy type on disk (little-endian) and its bytes per value.
DTYPES = {"float16": "<f2", "float32": "<f4", "int16": "<i2", "int8": "|i1"}
ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in DTYPES.items()}
_LARGEST = {"int16": 32767, "int8": 127}
_BLOCK_BYTES = 2**20  # a block of wide signals has fewer rows, so that it stays one read of about 1 MB
_BLOCK_ROWS = 64


def block_rows(voxels: int, dtype: str) -> int:
    """Most rows of a block: 64 at the paper's width (0.5 MB in float16), fewer where rows are wide."""
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, voxels * ITEM_BYTES[dtype])))


def encode(signals_NV: np.ndarray, dtype: str, what: str) -> tuple[np.ndarray, float]:
    """Bring a block to its storage type; the scale is what stored values are multiplied by on reading.

    Rounding errors of z-scored signals: float16 about 2e-4 of a standard deviation, int16 less, int8 about 1 % of the
    block's largest value. Whole numbers use the block's own largest value, so nothing overflows.

    Raises:
        DataError: values that are not finite, or beyond float16: z-score them first.
    """
    signals_NV = np.asarray(signals_NV, dtype=np.float32)
    if not np.isfinite(signals_NV).all():
        raise DataError(f"{what}: values that are not finite. Leave those voxels out, or z-score them.")
    if dtype == "float32":
        return signals_NV.astype("<f4", copy=False), 1.0
    if dtype == "float16":
        half_NV = to_half(signals_NV).astype("<f2", copy=False)
        if not np.isfinite(half_NV).all():
            raise DataError(f"{what}: values beyond float16. z-score them first, or store float32.")
        return half_NV, 1.0
    top = float(np.abs(signals_NV).max(initial=0.0))
    scale = np.float32(top / _LARGEST[dtype]) if top > 0 else np.float32(1)
    scale = max(scale, np.finfo(np.float32).tiny)
    whole_NV = np.rint(signals_NV.astype(np.float64) / float(scale))
    return np.clip(whole_NV, -_LARGEST[dtype], _LARGEST[dtype]).astype(DTYPES[dtype]), float(scale)


def crc32c(data: np.ndarray | bytes) -> int:
    """CRC-32C of bytes or of an array's bytes: about 20 GB/s where the CPU has the instruction."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return google_crc32c.value(data)
