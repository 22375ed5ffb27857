"""Read a packed folder: sample ids by split and subject, signals by mapped rows, pictures decoded once."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.files import sha256
from cadiff.shards.manifest import read_index, read_manifest, shard_names
from cadiff.shards.pictures import decode_square
from cadiff.shards.record import SPLITS
from cadiff.shards.voxels import Stats, to_single

PICTURE_CACHE_BYTES = 4 * 1024**3  # a larger set of decoded pictures is decoded anew each time


class Dataset:
    """One packed folder. Opening reads the manifest and the index only; shards are mapped when first used.

    Attributes:
        kind: "hcp", "god", "bold5000", "table" or "images".
        hash: sha256 of manifest.json, the version of the data.
        subjects, runs, stimuli, classes: names, in the order of the table's numbers.
        voxels: the widest subject's voxel count, 0 for pictures alone.
        voxel_counts: int64, one entry per subject.
        table: columns ``subject run stimulus label split repeat``, one int32 entry per sample; -1 means none, splits
            are 0 train, 1 val, 2 test, and repeat is -1 for a mean over repeats.
        rois: subject (or "*") -> region -> columns of the signals.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self._index = read_index(self.folder, manifest)
        self.manifest = manifest.model_dump()
        self.kind, self.hash = manifest.kind, sha256(self.folder / "manifest.json")
        self.subjects = [subject.name for subject in manifest.subjects]
        self.runs, self.stimuli, self.classes = manifest.runs, manifest.stimuli, manifest.classes
        self.voxel_counts = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)
        self.voxels = int(self.voxel_counts.max(initial=0))
        self.table = SimpleNamespace(**self._index.sample)
        self.rois: dict[str, dict[str, np.ndarray]] = {}
        for roi in manifest.rois:
            self.rois.setdefault(roi.subject, {})[roi.name] = self._extra(roi.array)
        self._shards = shard_names(manifest)
        self._maps: dict[int, np.ndarray] = {}
        self._pictures: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.table.split)

    def ids(self, split: str = "train", subjects: Iterable[str] | None = None) -> np.ndarray:
        """Sample ids of a split, ascending: int64. ``subjects`` keeps only those; None or empty keeps all.

        Raises:
            ConfigError: an unknown split or subject.
        """
        if split not in SPLITS:
            raise ConfigError(f"split '{split}': one of {', '.join(SPLITS)}.")
        chosen = self.table.split == SPLITS.index(split)
        names = list(subjects or ())
        if unknown := [name for name in names if name not in self.subjects]:
            known = ", ".join(self.subjects[:8]) or "none"
            raise ConfigError(f"{self.folder}: no subject '{unknown[0]}' here; there are {known}.")
        if names:
            chosen &= np.isin(self.table.subject, [self.subjects.index(name) for name in names])
        return np.flatnonzero(chosen)

    def signals(self, ids: np.ndarray, width: int) -> np.ndarray:
        """z-scored signals, wrap-padded from each subject's own voxel count to ``width``: float32 (n, width).

        Raises:
            ConfigError: the set has no signals, or a subject is wider than ``width`` (signals are never cut).
        """
        ids = self._checked(ids, len(self), "sample")
        if self.voxels == 0:
            raise ConfigError(f"{self.folder}: holds pictures only, no fMRI. Name a set packed from recordings.")
        block = self._index.block
        block_n = np.searchsorted(block["first"], ids, side="right") - 1
        voxels_n = self.voxel_counts[self.table.subject[ids]]
        if len(ids) and voxels_n.max() > width:
            raise ConfigError(
                f"{self.folder}: signals of {voxels_n.max():,} voxels do not fit a width of {width:,}. "
                f"Use a width of at least {self.voxels:,}."
            )
        start_n = (block["offset"][block_n] + (ids - block["first"][block_n]) * voxels_n * 2) // 2
        shard_n = block["shard"][block_n]
        signals_NW = np.empty((len(ids), width), dtype=np.float32)
        for voxels in np.unique(voxels_n).tolist():
            rows = np.flatnonzero(voxels_n == voxels)
            rows_NV = self._gather(shard_n[rows].tolist(), start_n[rows].tolist(), voxels)
            if len(rows) == len(ids):
                to_single(rows_NV, signals_NW[:, :voxels])
            else:
                signals_NW[rows, :voxels] = to_single(rows_NV, np.empty(rows_NV.shape, np.float32))
            padding = np.arange(voxels, width)
            signals_NW[rows[:, None], padding] = signals_NW[rows[:, None], padding % voxels]
        return signals_NW

    def _gather(self, shards: list[int], starts: list[int], voxels: int) -> np.ndarray:
        rows_NV = np.empty((len(starts), voxels), dtype=np.float16)
        for row, (shard, start) in enumerate(zip(shards, starts)):
            rows_NV[row] = self._values(shard)[start : start + voxels]
        return rows_NV

    def images(self, stimuli: np.ndarray, size: int) -> np.ndarray:
        """Pictures of these stimulus indices: the centre square, resized once and kept: uint8 (n, 3, size, size).

        Raises:
            DataError: a stimulus without a picture, or one that does not decode.
        """
        stimuli = self._checked(stimuli, len(self.stimuli), "stimulus")
        if not self.has_picture[stimuli].all():
            name = self.stimuli[stimuli[~self.has_picture[stimuli]][0]]
            raise DataError(f"{self.folder}: stimulus {name} has no picture. Pack again with the folder of pictures.")
        if len(self.stimuli) * 3 * size * size > PICTURE_CACHE_BYTES:
            return np.stack([self._decode(i, size) for i in stimuli.tolist()])
        if size not in self._pictures:
            # Memory is touched, and so taken, only as pictures are decoded.
            cache = np.empty((len(self.stimuli), 3, size, size), dtype=np.uint8)
            self._pictures[size] = cache, np.zeros(len(self.stimuli), dtype=bool)
        cache, ready = self._pictures[size]
        for i in np.unique(stimuli[~ready[stimuli]]).tolist():
            cache[i] = self._decode(i, size)
            ready[i] = True
        return cache[stimuli]

    @property
    def has_picture(self) -> np.ndarray:
        """bool, one entry per stimulus."""
        return self._index.image["shard"] >= 0

    def stats(self, subject: str) -> Stats | None:
        """The statistics this subject's signals were z-scored with, if the packer used one set per subject."""
        number = self.subjects.index(subject)
        if f"mean_{number:05d}" not in self._index.extra:
            return None
        mean, std = self._extra(f"mean_{number:05d}"), self._extra(f"std_{number:05d}")
        return Stats(mean, std, np.flatnonzero((mean == 0) & (std == 1)))

    def _extra(self, name: str) -> np.ndarray:
        if name not in self._index.extra:
            raise DataError(f"{self.folder}/index.npz: array {name} is missing. Pack again.")
        return self._index.extra[name]

    def _checked(self, numbers: np.ndarray, limit: int, what: str) -> np.ndarray:
        numbers = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < limit):
            raise ConfigError(f"{self.folder}: {what} {numbers.min()}..{numbers.max()} is not within 0..{limit - 1}.")
        return numbers

    def _decode(self, stimulus: int, size: int) -> np.ndarray:
        image = self._index.image
        shard, offset, length = (int(image[name][stimulus]) for name in ("shard", "offset", "bytes"))
        with open(self.folder / self._shards[shard], "rb") as handle:
            data = os.pread(handle.fileno(), length, offset)
        return decode_square(data, size, f"{self.folder}: stimulus {self.stimuli[stimulus]}")

    def _values(self, shard: int) -> np.ndarray:
        """A whole shard seen as float16; blocks begin at even offsets."""
        if shard not in self._maps:
            with open(self.folder / self._shards[shard], "rb") as handle:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            if self._beyond_memory() and hasattr(mmap, "MADV_RANDOM"):
                # Read-ahead would fetch 100 times what is asked for and push useful pages out.
                mapped.madvise(mmap.MADV_RANDOM)
            self._maps[shard] = np.frombuffer(mapped, dtype="<f2", count=len(mapped) // 2)
        return self._maps[shard]

    def _beyond_memory(self) -> bool:
        total = sum(entry["bytes"] for entry in self.manifest["files"])
        return total > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
