"""Read a packed folder: sample ids by split and subject, signals gathered from blocks, pictures decoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import ConfigError, DataError
from cadiff.shards.encoding import ITEM_BYTES, crc32c
from cadiff.shards.guarded import Closed, GuardedChecks, GuardedPictures, GuardedStore
from cadiff.shards.home import CACHE_BYTES, Home
from cadiff.shards.leaks import find_leak
from cadiff.shards.record import SPLITS
from cadiff.shards.voxels import Stats


class Dataset:
    """One packed folder or URL. Opening reads the manifest and the index only; shards are read when first used.

    Attributes:
        kind: "hcp", "god", "bold5000", "things", "nsd", "table", "images" or "merged".
        hash: sha256 of manifest.json, the version of the data.
        subjects, runs, sessions, stimuli, classes: names, in the order of the table's numbers.
        voxels: the widest subject's voxel count, 0 for pictures alone.
        voxel_counts: int64, one entry per subject.
        table: columns ``subject run session stimulus label split repeat start frames``, one int32 entry per sample;
            -1 means none, splits are 0 train, 1 val, 2 test, repeat is -1 for a mean over repeats, and ``start`` and
            ``frames`` are the window of TRs within the run.
        block_of: int64, the block of each sample; ``blocks`` is the table of them (shard, offset, rows, first, …).
        rois: subject (or "*") -> region -> columns of the signals.
        checks: which blocks have been found sound.
    """

    def __init__(self, folder: str | Path, *, splits: Sequence[str] = SPLITS, cache_bytes: int = CACHE_BYTES) -> None:
        """Args: ``splits``: what may be read; signals and pictures of other samples cannot be had from this dataset.

        Raises: DataError: not a packed folder, damaged, of another version, or with a split that leaks.
        """
        self.home = Home(folder, cap_bytes=cache_bytes)
        self.folder = Path(folder) if self.home.folder == Path(folder) else folder
        manifest = self.home.manifest
        self._index = self.home.index()
        if leak := find_leak(self._index, manifest):
            raise DataError(f"{folder}/index.npz: {leak}; no score on such a split means anything. Pack again.")
        self.manifest = manifest.model_dump()
        self.kind, self.hash = manifest.kind, self.home.hash
        self.subjects = [subject.name for subject in manifest.subjects]
        self.runs, self.sessions = manifest.runs, manifest.sessions
        self.stimuli, self.classes = manifest.stimuli, manifest.classes
        self.voxel_counts = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)
        self.voxels = int(self.voxel_counts.max(initial=0))
        self.table = SimpleNamespace(**self._index.sample)
        self.rois: dict[str, dict[str, np.ndarray]] = {}
        for entry in manifest.arrays:
            if entry.role == "roi":
                self.rois.setdefault(entry.subject, {})[entry.name] = self._index.extra[entry.array]
        self.blocks = self._index.block
        self.block_of = np.repeat(np.arange(len(self.blocks["rows"])), self.blocks["rows"])
        subject_of_block = self.table.subject[self.blocks["first"]] if len(self.block_of) else self.blocks["first"]
        item = ITEM_BYTES[manifest.dtype]
        lengths = self.blocks["rows"] * (self.voxel_counts[subject_of_block] if len(self.block_of) else 0) * item
        self.closed = Closed(str(folder), splits, self.table, self.blocks, len(self.stimuli))
        self.checks = GuardedChecks(self.home, self.blocks, lengths, "block", self.closed.block_B)
        guarded = (self.home, manifest.dtype, self.blocks, self.checks, self.closed)
        self.store = GuardedStore(*guarded) if self.voxels else None
        self._one_width = len(np.unique(self.voxel_counts)) == 1
        self.pictures = GuardedPictures(self.home, self._index.image, self.stimuli, self.closed)

    def __len__(self) -> int:
        return len(self.table.split)

    def ids(self, split: str = "train", subjects: Iterable[str] | None = None) -> np.ndarray:
        """Sample ids of a split, ascending: int64. ``subjects`` keeps only those; None or empty keeps all.

        Raises:
            ConfigError: an unknown split or subject, or a split that this dataset was opened without.
        """
        if split not in SPLITS:
            raise ConfigError(f"split '{split}': one of {', '.join(SPLITS)}.")
        self.closed.refuse_split(split)
        chosen = self.table.split == SPLITS.index(split)
        names = list(subjects or ())
        self._refuse_unknown(names)
        if names:
            chosen &= np.isin(self.table.subject, [self.subjects.index(name) for name in names])
        return np.flatnonzero(chosen)

    def _refuse_unknown(self, subjects: list[str]) -> None:
        if unknown := [name for name in subjects if name not in self.subjects]:
            known = ", ".join(self.subjects[:8]) or "none"
            raise ConfigError(f"{self.folder}: no subject '{unknown[0]}' here; there are {known}.")

    def signals(self, ids: np.ndarray, width: int, pad: str = "wrap") -> np.ndarray:
        """z-scored signals, padded from each subject's own voxel count to ``width``: float32 (n, width).

        Raises:
            ConfigError: the set has no signals, or a subject is wider than ``width`` (signals are never cut).
            DataError: a block's bytes are not as packed.
        """
        ids = self._checked(ids, len(self), "sample")
        held = self.store is not None and self.store.has(width, pad)
        out_NW = torch.empty(len(ids), width, device=self.store.device if held else None)
        self.read_signals(ids, out_NW, pad)
        return out_NW.cpu().numpy()

    def read_signals(self, ids: np.ndarray, out_NW: Tensor, pad: str = "wrap") -> None:
        """As ``signals``, into a float32 buffer on the device where the rows are.

        Args:
            pad: "wrap" repeats the signal's own beginning, "zero" fills with zeros.
        """
        if self.store is None:
            raise ConfigError(f"{self.folder}: holds pictures only, no fMRI. Name a set packed from recordings.")
        width = out_NW.shape[1]
        if self.voxels > width:
            self._refuse_width(ids, width)
        if not self.checks.all_sound:
            self.checks.require(self.block_of[ids])
        if self.store.has(width, pad):
            self.store.take(ids, out_NW)
            return
        if self._one_width:
            self.store.gather(ids, self.voxels, out_NW, pad)
            return
        voxels_N = self.voxel_counts[self.table.subject[ids]]
        for voxels in np.unique(voxels_N).tolist():
            rows = np.flatnonzero(voxels_N == voxels)
            part_NW = torch.empty(len(rows), width, device=out_NW.device)
            self.store.gather(ids[rows], voxels, part_NW, pad)
            out_NW[torch.from_numpy(rows).to(out_NW.device)] = part_NW

    def _refuse_width(self, ids: np.ndarray, width: int) -> None:
        widest = int(self.voxel_counts[self.table.subject[ids]].max(initial=0))
        if widest > width:
            raise ConfigError(
                f"{self.folder}: signals of {widest:,} voxels do not fit a width of {width:,}. "
                f"Use a width of at least {self.voxels:,}."
            )

    def check_rows(self, ids: np.ndarray) -> None:
        """Compare every row's own checksum with what is read now, and note the blocks of those that differ."""
        found = [crc32c(row_V) for row_V in self.store.raw(ids)]
        bad = np.array(found, dtype=np.int64) != self.table.crc32c[ids].astype(np.int64)
        if bad.any():
            self.checks.mark(np.unique(self.block_of[ids[bad]]))

    def images(self, stimuli: np.ndarray, size: int) -> np.ndarray:
        """Pictures of these stimulus indices: the centre square, resized once and kept: uint8 (n, 3, size, size).

        Raises:
            ConfigError: a number that is no stimulus; -1 is that of a sample which has none.
            DataError: a stimulus without a picture, or one that does not decode.
        """
        stimuli = np.asarray(stimuli, dtype=np.int64).reshape(-1)
        if (stimuli == -1).any():
            if not self.has_picture.any():
                raise ConfigError(f"{self.folder}: holds no pictures. Name a set that was packed with pictures.")
            raise ConfigError(
                f"{self.folder}: stimulus -1: a sample without a stimulus has no picture. Ask for samples whose "
                "table.stimulus is not -1."
            )
        stimuli = self._checked(stimuli, len(self.stimuli), "stimulus")
        out_NSS3 = np.empty((len(stimuli), size, size, 3), dtype=np.uint8)
        self.pictures.read(stimuli, out_NSS3)
        return np.ascontiguousarray(out_NSS3.transpose(0, 3, 1, 2))

    def regions(self, subject: str) -> dict[str, np.ndarray]:
        """Region -> columns of this subject's signals, those that all subjects share among them.

        Raises:
            ConfigError: an unknown subject.
        """
        self._refuse_unknown([subject])
        return {**self.rois.get("*", {}), **self.rois.get(subject, {})}

    def labels(self, ids: np.ndarray) -> list[str | None]:
        """Class name of each sample, None where it has no label."""
        self.closed.refuse_samples(ids)
        return [self.classes[i] if i >= 0 else None for i in self.table.label[ids].tolist()]

    @property
    def has_picture(self) -> np.ndarray:
        """bool, one entry per stimulus."""
        return self.pictures.has

    def array(self, subject: str, role: str, name: str = "") -> np.ndarray | None:
        """An array kept with the set, such as ("sbj_1", "ids"); what belongs to all subjects is found for each."""
        for entry in self.manifest["arrays"]:
            if entry["subject"] in (subject, "*") and (entry["role"], entry["name"]) == (role, name):
                return self._index.extra[entry["array"]]
        return None

    def stats(self, subject: str) -> Stats | None:
        """The statistics this subject's signals were z-scored with, if the packer used one set per subject."""
        mean, std = self.array(subject, "mean"), self.array(subject, "std")
        if mean is None or std is None:
            return None
        return Stats(mean, std, np.flatnonzero((mean == 0) & (std == 1)))

    def describe(self, sample: int) -> dict[str, Any]:
        """Where a sample lies and what it is: its entry of the per-sample index, by name.

        ``shard``, ``offset``, ``bytes`` and ``crc32c`` are those of the signal; where the set has pictures too, those
        of the sample's picture follow as ``picture_shard`` and so on. In a set of pictures alone they are a picture's.
        """
        row = {name: int(column[sample]) for name, column in self._index.sample.items()}
        block = int(self.block_of[sample]) if self.voxels else -1
        told: dict[str, Any] = {"sample": sample, "split": SPLITS[row["split"]]}
        for column, names in zip(
            ("subject", "session", "run", "stimulus", "label"),
            (self.subjects, self.sessions, self.runs, self.stimuli, self.classes),
        ):
            told[column] = names[row[column]] if row[column] >= 0 else None
        told |= {name: row[name] for name in ("repeat", "start", "frames", "crc32c")}
        if block >= 0:
            length = int(self.voxel_counts[row["subject"]]) * ITEM_BYTES[self.manifest["dtype"]]
            offset = int(self.blocks["offset"][block]) + (sample - int(self.blocks["first"][block])) * length
            told |= {"shard": self.home.shards[self.blocks["shard"][block]].path, "offset": offset, "bytes": length}
        if block < 0 or self.has_picture.any():
            beside = "picture_" if block >= 0 else ""
            told |= {beside + name: value for name, value in self.pictures.place(row["stimulus"]).items()}
        return told

    def _checked(self, numbers: np.ndarray, limit: int, what: str) -> np.ndarray:
        numbers = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < limit):
            raise ConfigError(f"{self.folder}: {what} {numbers.min()}..{numbers.max()} is not within 0..{limit - 1}.")
        return numbers
