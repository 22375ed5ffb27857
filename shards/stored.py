"""Samples and pictures as they are stored: read with their checksums, and added to another pack bit for bit.

``Pack.add`` takes float signals and rounds them to the storage type. Doing that to stored values would round them a
second time wherever whole numbers share a scale, so what is stored is passed on as it is. Shapes: N samples, V voxels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.files import sha256
from cadiff.shards.encoding import DTYPES, block_rows, crc32c
from cadiff.shards.home import Home
from cadiff.shards.index import SAMPLE_COLUMNS, Index
from cadiff.shards.manifest import Manifest
from cadiff.shards.record import SPLITS
from cadiff.shards.verify import read_piece
from cadiff.shards.writer import NAMED, Pack

_JPEG = b"\xff\xd8\xff"  # how every JPEG begins; the other pictures that packers store are PNG

DamagedRows = Callable[[int, np.ndarray], None]  # block, sample numbers
DamagedPicture = Callable[[int], None]  # stimulus number


class StoredSet:
    """A packed set's blocks and pictures as bytes.

    Attributes:
        version: sha256 of the manifest.
        manifest_path: the manifest's file.
        names: the names behind the numbers of each column of ``NAMED``.
    """

    def __init__(self, manifest_path: Path, manifest: Manifest, index: Index, path: Callable[[int], Path]) -> None:
        """``path``: the local file of a shard's number; it may be missing or damaged."""
        self.manifest_path, self.manifest, self.index, self._path = manifest_path, manifest, index, path
        self.version, self._manifest_bytes = sha256(manifest_path), manifest_path.stat().st_size
        subjects = [subject.name for subject in manifest.subjects]
        lists = (subjects, manifest.runs, manifest.sessions, manifest.stimuli, manifest.classes)
        self.names: dict[str, list[str]] = dict(zip(NAMED, lists))
        self.voxels = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)

    def source(self, name: str, path: Path) -> dict[str, Any]:
        """The manifest as a source of another set, as it was when opened: a remote one may have left the cache."""
        return {"name": name, "bytes": self._manifest_bytes, "sha256": self.version}

    def provenance(self) -> dict[str, Any]:
        """What this set was made from, to be kept in the notes of a set that is made from it."""
        told = self.manifest.model_dump(
            include={"kind", "dtype", "split_by", "options", "recipe_sha256", "made_by", "sources", "notes"}
        )
        return {"version": self.version, **told}

    def rows(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored values of a block (N, V), and bool (N,): which rows are as packed. Values end where the file ends."""
        table = self.index.block
        first, rows, shard, offset = (int(table[name][block]) for name in ("first", "rows", "shard", "offset"))
        voxels, dtype = int(self.voxels[self.index.sample["subject"][first]]), np.dtype(DTYPES[self.manifest.dtype])
        length, readable, data = voxels * dtype.itemsize, 0, None
        try:
            with open(self._path(shard), "rb") as handle:
                there = os.fstat(handle.fileno()).st_size - offset
                readable = min(rows, max(0, there) // max(1, length))
                data = read_piece(handle.fileno(), offset, readable * length)
        except OSError:
            data = None
        if data is None:  # missing, or the disk cannot read it: no row is as packed
            data, readable = b"", 0
        rows_NV = np.frombuffer(data, dtype=dtype).reshape(readable, voxels)
        if readable == rows and crc32c(data) == table["crc32c"][block]:
            return rows_NV, np.ones(rows, dtype=bool)
        expected = self.index.sample["crc32c"][first : first + rows].tolist()
        sound = [crc32c(row_V) == wanted for row_V, wanted in zip(rows_NV, expected)]
        return rows_NV, np.array(sound + [False] * (rows - readable), dtype=bool)

    def picture(self, stimulus: int) -> bytes | None:
        """The stored picture of a stimulus, or None if it is not as packed."""
        shard, offset, length, crc = (
            int(self.index.image[name][stimulus]) for name in ("shard", "offset", "bytes", "crc32c")
        )
        try:
            with open(self._path(shard), "rb") as handle:
                data = read_piece(handle.fileno(), offset, length)
        except OSError:
            return None
        return data if data is not None and crc32c(data) == crc else None


def open_stored(folder: str | Path) -> StoredSet:
    """Open a packed folder or URL.

    Raises:
        DataError: not a packed folder, or damaged.
    """
    home = Home(folder)
    return StoredSet(home.manifest_path, home.manifest, home.index(), home.path)


def copy_samples(pack: Pack, stored: StoredSet, keep_N: np.ndarray, damaged: DamagedRows) -> None:
    """Add the chosen samples (bool, one entry per sample) in their order, without those that are damaged.

    Rows of one subject, run and scale are joined into whole blocks, so that a thin choice is not a block per row.
    """
    index, joined = stored.index, _Joined(pack, stored)
    starts = index.block["first"]
    if not stored.voxels.any():
        joined.add_without_rows(np.flatnonzero(keep_N))
        return
    for block, (first, rows) in enumerate(zip(starts.tolist(), index.block["rows"].tolist())):
        pack.progress("copying blocks", block, len(starts))
        wanted_N = keep_N[first : first + rows]
        if not wanted_N.any():
            continue
        rows_NV, sound_N = stored.rows(block)
        if (wanted_N & ~sound_N).any():
            damaged(block, first + np.flatnonzero(wanted_N & ~sound_N))
        taken = np.flatnonzero(wanted_N & sound_N)
        if len(taken):
            joined.add(rows_NV[taken], first + taken, float(index.block["scale"][block]))
    joined.flush()


def copy_pictures(pack: Pack, stored: StoredSet, stimuli: np.ndarray, damaged: DamagedPicture) -> None:
    """Add the pictures of these stimulus numbers, in this order, without those that are damaged."""
    for done, stimulus in enumerate(stimuli[stored.index.image["shard"][stimuli] >= 0].tolist()):
        pack.progress("copying pictures", done, len(stimuli))
        data = stored.picture(stimulus)
        if data is None:
            damaged(stimulus)
        else:
            pack.picture(stored.names["stimulus"][stimulus], data, "jpg" if data.startswith(_JPEG) else "png")


def copy_arrays(pack: Pack, stored: StoredSet) -> None:
    """Keep the regions, statistics and further arrays of the subjects that are in the pack, and their families."""
    here = set(pack.names("subject"))
    for entry in stored.manifest.arrays:
        if entry.subject in here or entry.subject == "*":
            pack.attach(entry.subject, entry.role, stored.index.extra[entry.array], entry.name)
    pack.families = {s.name: s.family for s in stored.manifest.subjects if s.family and s.name in here}


class _Joined:
    """Rows waiting for a whole block."""

    def __init__(self, pack: Pack, stored: StoredSet) -> None:
        self._pack, self._stored, self._column = pack, stored, stored.index.sample
        self._head: tuple | None = None
        self._rows: list[np.ndarray] = []
        self._samples: list[np.ndarray] = []

    def add(self, rows_NV: np.ndarray, samples_N: np.ndarray, scale: float) -> None:
        row = {name: int(self._column[name][samples_N[0]]) for name in ("subject", "run", "session", "frames", "start")}
        head = (row["subject"], row["run"], row["session"], row["frames"], row["start"] >= 0, scale)
        if head != self._head:
            self.flush()
            self._head = head
        self._rows.append(rows_NV)
        self._samples.append(samples_N)
        most = block_rows(rows_NV.shape[1], self._pack.dtype)
        while sum(map(len, self._rows)) >= most:
            all_NV, all_N = np.concatenate(self._rows), np.concatenate(self._samples)
            self._write(all_NV[:most], all_N[:most])
            self._rows, self._samples = [all_NV[most:]], [all_N[most:]]

    def flush(self) -> None:
        if any(map(len, self._rows)):
            self._write(np.concatenate(self._rows), np.concatenate(self._samples))
        self._rows, self._samples = [], []

    def _write(self, rows_NV: np.ndarray, samples_N: np.ndarray) -> None:
        """One block, as ``Pack.add`` writes it."""
        pack, scale = self._pack, self._head[-1]
        names = {column: self._name(column, samples_N) for column in NAMED}
        first = len(pack.sample["split"])
        self._add_columns(samples_N, names)
        if pack.sample["subject"][-1] == len(pack.voxels):
            pack.voxels.append(rows_NV.shape[1])
        told: dict[str, Any] = {
            "subject": names["subject"][0],
            "session": names["session"][0] or "",
            "run": names["run"][0],
        }
        told |= {"frames": self._head[3], "stimulus": names["stimulus"], "label": names["label"]}
        told |= {"split": [SPLITS[i] for i in self._column["split"][samples_N].tolist()]}
        told |= {"repeat": self._column["repeat"][samples_N].tolist()}
        told |= {"start": self._column["start"][samples_N].tolist() if self._head[4] else None}
        pack.write_block(rows_NV, scale, first, told)

    def add_without_rows(self, samples_N: np.ndarray) -> None:
        """Samples of a set of pictures: columns only."""
        self._add_columns(samples_N, {column: self._name(column, samples_N) for column in NAMED})
        self._pack.sample["crc32c"].extend([0] * len(samples_N))

    def _add_columns(self, samples_N: np.ndarray, names: dict[str, list[str | None]]) -> None:
        for column, values in names.items():
            self._pack.sample[column].extend(-1 if v is None else self._pack.number(column, v) for v in values)
        for column in SAMPLE_COLUMNS:
            if column not in NAMED and column != "crc32c":
                self._pack.sample[column].extend(self._column[column][samples_N].tolist())

    def _name(self, column: str, samples_N: np.ndarray) -> list[str | None]:
        names = [*self._stored.names[column], None]  # -1 stays none: it reaches the last
        return [names[number] for number in self._column[column][samples_N].tolist()]


def refuse_inside(folder: str | Path, out: str | Path) -> None:
    """Refuse to write into the set that is read.

    Raises:
        ConfigError: ``out`` is ``folder`` or lies inside it.
    """
    if Path(folder).resolve() in (Path(out).resolve(), *Path(out).resolve().parents):
        raise ConfigError(f"{out}: lies inside {folder}, which is read. Choose a folder beside it.")
