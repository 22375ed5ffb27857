"""Random generators keyed by names: the same key gives the same numbers, whatever was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A Philox generator whose 128-bit key is a hash of ``seed`` and ``names``; nothing is shared between calls."""
    digest = hashlib.blake2b(repr((int(seed), *names)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
