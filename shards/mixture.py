"""Several packed sets as one source of samples: pooled, or mixed by weights; in random or windowed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.sampler import Sampler, WindowedSampler, stream_count

RANDOM_BYTES = 16 * 1024**3  # "auto": larger sets are read in windows; a smaller one fits the page cache of a node
PIECE_BYTES = 2 * 1024**2  # neighbouring blocks read in one go: near the disk's sequential rate
WINDOW_BYTES = 256 * 1024**2  # read ahead and shuffled together, over all streams


@dataclass(frozen=True)
class Chosen:
    """Samples that may occur: which set, and their ids within it; int64 (M,) each, ordered by set and id."""

    which: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def choose(datasets: Sequence[Dataset], split: str, subjects: list[str], pictures: bool, least: int) -> Chosen:
    """The samples of a split, of these subjects (empty: all), with a picture if ``pictures``.

    Raises:
        ConfigError: an unknown subject, or fewer samples than ``least``.
    """
    folders = ", ".join(str(ds.folder) for ds in datasets)
    known = sorted({name for ds in datasets for name in ds.subjects})
    if unknown := set(subjects) - set(known):
        names = ", ".join(known[:8]) or "none"
        raise ConfigError(f"data.subjects: no subject '{min(unknown)}' in {folders}; there are {names}.")
    parts = [_choose_of_one(ds, split, subjects, pictures) for ds in datasets]
    which = np.concatenate([np.full(len(part), k) for k, part in enumerate(parts)]).astype(np.int64)
    if len(which) < max(least, 1):
        raise ConfigError(
            f"{folders}: the {split} split has {len(which)} samples, fewer than one batch of {least}. Use a smaller "
            "batch, more subjects, or pack with another val_fraction."
        )
    return Chosen(which, np.concatenate(parts))


def _choose_of_one(ds: Dataset, split: str, subjects: list[str], pictures: bool) -> np.ndarray:
    mine = [name for name in subjects if name in ds.subjects]
    if subjects and not mine and ds.subjects:
        return np.empty(0, dtype=np.int64)
    ids = ds.ids(split, mine)
    if pictures:
        stimulus = ds.table.stimulus[ids]
        ids = ids[(stimulus >= 0) & ds.has_picture[stimulus]]
    return ids


class Mixture:
    """Positions of each global batch among the chosen samples, and the epoch of each one's source.

    Without weights all sets are one source. With weights a source is a set, and every batch holds the same number of
    samples of each: the weights as nearly as whole numbers can give them, spread evenly over the batch.

    Attributes:
        order: "random" or "window".
        shares: samples of each source in every batch.
        steps_per_epoch: steps in which as many samples are seen as there are.
    """

    def __init__(
        self, datasets: Sequence[Dataset], chosen: Chosen, batch: int, seed: int, version: str, order: str, weights
    ) -> None:
        """Raises: ConfigError: weights that fit neither the sets nor the batch; a source smaller than its share."""
        self.order = choose_order(datasets, order)
        if weights and len(weights) != len(datasets):
            raise ConfigError(f"data.weights: {len(weights)} weights for {len(datasets)} sets in data.shards.")
        sources = [chosen.which == k for k in range(len(datasets))] if weights else [np.ones(len(chosen), dtype=bool)]
        self._positions = [np.flatnonzero(source) for source in sources]
        self.shares = _shares(weights, batch) if weights else [batch]
        self.steps_per_epoch = max(1, len(chosen) // batch)
        self._slots = _spread(self.shares)
        self._samplers: list[Sampler] = []
        for k, (positions, share) in enumerate(zip(self._positions, self.shares)):
            key = f"{version}|source {k}" if weights else version
            if len(positions) < share:
                raise ConfigError(
                    f"data.weights: {len(positions):,} samples of {datasets[k].folder} cannot fill its share of "
                    f"{share:,} in each batch. Give it less weight."
                )
            if self.order == "window":
                pieces = piece_of_samples(datasets, Chosen(chosen.which[positions], chosen.ids[positions]))
                window = _window(datasets, share)
                self._samplers.append(WindowedSampler(pieces, window, share, seed, key))
            else:
                self._samplers.append(Sampler(len(positions), share, seed, key))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions among the chosen samples, and the epoch of each: int64 (batch,) both."""
        if len(self._samplers) == 1:
            sampler = self._samplers[0]
            epoch = np.full(len(self._slots[0]), step // sampler.steps_per_epoch, dtype=np.int64)
            return sampler.positions(step), epoch  # one source has all positions
        source, place = self._slots
        position, epoch = np.empty(len(source), dtype=np.int64), np.empty(len(source), dtype=np.int64)
        for k, sampler in enumerate(self._samplers):
            mine = source == k
            position[mine] = self._positions[k][sampler.positions(step)[place[mine]]]
            epoch[mine] = step // sampler.steps_per_epoch
        return position, epoch

    def counters(self, step: int) -> list[dict[str, int]]:
        """What each source has given by the beginning of ``step``: samples, and its epoch."""
        return [
            {"samples": step * share, "epoch": step // sampler.steps_per_epoch}
            for share, sampler in zip(self.shares, self._samplers)
        ]


def choose_order(datasets: Sequence[Dataset], order: str) -> str:
    """What "auto" means for these sets: by their size alone, so that every machine decides alike."""
    if order not in ("auto", "random", "window"):
        raise ConfigError(f"data.order = '{order}': one of auto, random, window.")
    total = sum(entry["bytes"] for ds in datasets if ds.voxels for entry in ds.manifest["files"])
    return order if order != "auto" else "window" if total > RANDOM_BYTES else "random"


def piece_of_samples(datasets: Sequence[Dataset], chosen: Chosen) -> np.ndarray:
    """The piece of each chosen sample, numbered over all sets: int64, ascending."""
    pieces = np.empty(len(chosen), dtype=np.int64)
    first = 0
    for k, ds in enumerate(datasets):
        mine = chosen.which == k
        if ds.voxels:
            of_block = pieces_of_blocks(ds)
            pieces[mine] = first + of_block[ds.block_of[chosen.ids[mine]]]
        else:
            of_block = np.arange(len(ds)) // 64  # pictures alone
            pieces[mine] = first + of_block[chosen.ids[mine]]
        first += int(of_block.max(initial=-1)) + 1
    return np.unique(pieces, return_inverse=True)[1]


def pieces_of_blocks(ds: Dataset) -> np.ndarray:
    """Neighbouring blocks of one shard are a piece while they stay within ``PIECE_BYTES``: int64, one per block."""
    lengths, shard = ds.checks.lengths, ds.blocks["shard"]
    before = np.cumsum(lengths) - lengths
    begins = np.flatnonzero(np.diff(shard, prepend=-1))
    of_shard = before[begins][np.searchsorted(begins, np.arange(len(shard)), side="right") - 1]
    within = (before - of_shard) // max(PIECE_BYTES, int(lengths.max(initial=1)))
    return np.cumsum((np.diff(within, prepend=-1) != 0) | (np.diff(shard, prepend=-1) != 0)) - 1


def _window(datasets: Sequence[Dataset], share: int) -> int:
    """Samples per stream and window: the budget of memory over streams, at least two pieces."""
    row = max(1, max(int(ds.checks.lengths.sum()) // max(1, len(ds)) for ds in datasets))
    return max(2 * PIECE_BYTES // row, WINDOW_BYTES // stream_count(share) // row, 1)


def _shares(weights: Sequence[float], batch: int) -> list[int]:
    """Whole numbers that sum to ``batch``, as near to the weights as can be (largest remainders first)."""
    total = float(sum(weights))
    if not total > 0 or min(weights) <= 0 or not np.isfinite(total):
        raise ConfigError(f"data.weights = {list(weights)}: every weight is a number above 0.")
    wished = np.array(weights, dtype=np.float64) / total * batch
    shares = np.floor(wished + 1e-9).astype(int)
    for k in np.argsort(shares - wished, kind="stable")[: batch - int(shares.sum())]:
        shares[k] += 1
    if shares.min() < 1:
        raise ConfigError(f"data.weights = {list(weights)}: a batch of {batch} has no room for the smallest of them.")
    return shares.tolist()


def _spread(shares: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each place of a batch its source, evenly interleaved, and which of that source's samples it is."""
    due = np.concatenate([(np.arange(n) + 0.5) / n for n in shares])
    source = np.concatenate([np.full(n, k) for k, n in enumerate(shares)])
    place = np.concatenate([np.arange(n) for n in shares])
    order = np.lexsort((source, due))
    return source[order], place[order]
