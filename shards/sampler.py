"""Which samples make up which batch: a pure function of data version, seed, epoch and step.

The permutation is our own (sort of keyed Philox words), because NumPy promises its generators' raw streams to be
stable across versions but not its shuffles. Order version: cadiff-order/1; a golden-value test holds it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from cadiff.errors import ConfigError

ORDER = "cadiff-order/1"


def keyed_permutation(n: int, *key: str | int) -> np.ndarray:
    """A permutation of 0..n-1 decided by ``key`` alone: int64 (n,)."""
    digest = hashlib.sha256("|".join([ORDER, *map(str, key)]).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)
    return np.argsort(words, kind="stable")


class Sampler:
    """Global batches over ``count`` positions.

    Every position occurs at most once per epoch. When ``count`` is no multiple of ``batch``, the remainder is left
    out, and the left-out positions rotate from epoch to epoch so that all are left out equally often.
    """

    def __init__(self, count: int, batch: int, seed: int, version: str) -> None:
        """Args: ``version`` names the data and selection (hashes, split, subjects), and so keys the order.

        Raises:
            ConfigError: fewer positions than one batch.
        """
        if not 0 < batch <= count:
            raise ConfigError(f"{count:,} samples cannot fill one batch of {batch:,}. Use a smaller train.batch.")
        self.count, self.batch, self.seed, self.version = count, batch, seed, version
        self.steps_per_epoch = count // batch
        self._order = lru_cache(maxsize=2)(self._make_order)

    def positions(self, step: int) -> np.ndarray:
        """Positions of the global batch of optimizer step ``step``: int64 (batch,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[within * self.batch : (within + 1) * self.batch]

    def left_out(self, epoch: int) -> np.ndarray:
        """Positions that do not occur in this epoch: int64 (count % batch,)."""
        rest = self.count % self.batch
        turn = keyed_permutation(self.count, self.version, self.seed, "left-out")
        return turn[(epoch * rest + np.arange(rest)) % self.count]

    def _make_order(self, epoch: int) -> np.ndarray:
        keep = np.ones(self.count, dtype=bool)
        keep[self.left_out(epoch)] = False
        kept = np.flatnonzero(keep)
        return kept[keyed_permutation(len(kept), self.version, self.seed, "epoch", epoch)]
