"""A matrix product whose result does not depend on the number of threads."""

from __future__ import annotations

import numpy as np

BLOCK = 128


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` for float32 (n, k) and (k, m), summed over k in fixed blocks.

    BLAS libraries cut long sums differently when they use more threads, and so round differently; a sum of 128 terms
    they do not cut.
    """
    total = np.zeros((left.shape[0], right.shape[1]), dtype=np.float32)
    for start in range(0, left.shape[1], BLOCK):
        total += left[:, start : start + BLOCK] @ right[start : start + BLOCK]
    return total
