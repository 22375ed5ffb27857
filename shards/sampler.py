"""Which samples make up which batch: a pure function of data version, seed, epoch and step.

The permutation is our own (sort of keyed Philox words), because NumPy promises its generators' raw streams to be
stable across versions but not its shuffles. Order version: cadiff-order/1; a golden-value test holds it.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

import numpy as np

from cadiff.errors import ConfigError

ORDER = "cadiff-order/1"
MOST_STREAMS = 64  # of a windowed order; ranks that divide them share no piece of the data


def keyed_words(n: int, *key: str | int) -> np.ndarray:
    """``n`` random words decided by ``key`` alone: uint64 (n,)."""
    digest = hashlib.sha256("|".join([ORDER, *map(str, key)]).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(n)


def keyed_permutation(n: int, *key: str | int) -> np.ndarray:
    """A permutation of 0..n-1 decided by ``key`` alone: int64 (n,)."""
    return stable_order(keyed_words(n, *key))


def stable_order(words_N: np.ndarray) -> np.ndarray:
    """As ``np.argsort(words_N, kind="stable")`` of random uint64 words, several times faster: int64 (N,).

    Each word's low bits give way to its position, so that a plain sort finds the order; the few words that differ in
    those bits only are put right afterwards.
    """
    low = np.uint64(max(1, (len(words_N) - 1).bit_length()))
    keys_N = (words_N >> low << low) | np.arange(len(words_N), dtype=np.uint64)
    keys_N.sort()
    order_N = (keys_N & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64)
    keys_N >>= low
    alike = np.flatnonzero(keys_N[1:] == keys_N[:-1])
    if len(alike):
        places = np.union1d(alike, alike + 1)
        tied = order_N[places]
        order_N[places] = tied[np.lexsort((tied, words_N[tied]))]
    return order_N


def stream_count(batch: int) -> int:
    """The largest divisor of a batch up to ``MOST_STREAMS``: into so many equal parts it falls, for any ranks."""
    return next(n for n in range(min(batch, MOST_STREAMS), 0, -1) if batch % n == 0)


class Sampler:
    """Global batches over ``count`` positions, in random order.

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
        self._turn = cache(lambda: keyed_permutation(count, version, seed, "left-out"))

    def positions(self, step: int) -> np.ndarray:
        """Positions of the global batch of optimizer step ``step``: int64 (batch,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[within * self.batch : (within + 1) * self.batch]

    def left_out(self, epoch: int) -> np.ndarray:
        """Positions that do not occur in this epoch: int64 (count % batch,)."""
        rest = self.count % self.batch
        if rest == 0:
            return np.empty(0, dtype=np.int64)
        turn = self._turn()
        return turn[(epoch * rest + np.arange(rest)) % self.count]

    def _kept(self, epoch: int) -> np.ndarray:
        if self.count % self.batch == 0:
            return np.arange(self.count)
        keep = np.ones(self.count, dtype=bool)
        keep[self.left_out(epoch)] = False
        return np.flatnonzero(keep)

    def _make_order(self, epoch: int) -> np.ndarray:
        kept = self._kept(epoch)
        return kept[keyed_permutation(len(kept), self.version, self.seed, "epoch", epoch)]


class WindowedSampler(Sampler):
    """Global batches in an order that reads the data in pieces: for sets that do not fit in memory.

    The pieces (neighbouring blocks) are permuted anew each epoch and laid end to end; that line is cut into equal
    streams, and samples are shuffled within windows of each stream. A batch takes the same share of every stream, so
    a rank's contiguous part of all batches needs its own streams only. The number of streams depends on the batch
    alone: the largest divisor up to ``MOST_STREAMS``.
    """

    def __init__(self, piece_of: np.ndarray, window: int, batch: int, seed: int, version: str) -> None:
        """Args:
        piece_of: int64, the piece that each position lies in, ascending.
        window: samples shuffled together within a stream.
        """
        super().__init__(len(piece_of), batch, seed, version)
        self.streams = stream_count(batch)
        self._piece_of, self.window = piece_of, window

    def _make_order(self, epoch: int) -> np.ndarray:
        key = (self.version, self.seed, "window", epoch)
        kept = self._kept(epoch)
        pieces = int(self._piece_of[-1]) + 1
        place = np.argsort(keyed_permutation(pieces, *key, "pieces"), kind="stable")
        line = kept[np.argsort(place[self._piece_of[kept]], kind="stable")]
        # Each stream's windows begin a little later than the last one's, so that reading is spread evenly in time.
        length = len(line) // self.streams
        late = np.arange(self.streams) * self.window // self.streams
        window_of = (np.arange(length)[None, :] + late[:, None]) // self.window
        words = keyed_words(len(line), *key, "samples").reshape(self.streams, length)
        keys = (window_of.astype(np.uint64) << np.uint64(40)) | (words >> np.uint64(24))
        mixed = np.argsort(keys, axis=1, kind="stable")
        order = np.take_along_axis(line.reshape(self.streams, length), mixed, axis=1)
        return order.reshape(self.streams, self.steps_per_epoch, -1).transpose(1, 0, 2).reshape(-1)
