"""A matrix product whose result does not depend on the number of threads."""

from __future__ import annotations

from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` on one thread: (n, k) and (k, m) to (n, m).

    BLAS libraries divide a product between threads, and which kernel finishes the edge of a part, and so how sums are
    rounded, depends on where it was cut. Cutting long sums into fixed blocks ourselves was not enough on every CPU.
    """
    with _blas().limit(limits=1, user_api="blas"):
        return left @ right


@cache
def _blas() -> ThreadpoolController:
    """Looking for the loaded libraries takes milliseconds; NumPy's is loaded by now and stays."""
    return ThreadpoolController()
