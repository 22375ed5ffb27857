"""Write a packed folder's files: samples into blocks in tar shards, pictures, the index, and the manifest last."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.arrays import npy_bytes
from cadiff.shards.encoding import block_rows, crc32c, encode
from cadiff.shards.index import BLOCK_COLUMNS, SAMPLE_COLUMNS
from cadiff.shards.record import SPLITS, Progress, Records, check_name, safe_key
from cadiff.shards.seal import refuse_leak, seal
from cadiff.shards.tars import SHARD_BYTES, Tars
from cadiff.shards.voxels import Stats

# Name and path of an input file -> its manifest entry: a hash of all bytes that the packed folder depends on.
Fingerprint = Callable[[str, Path], dict[str, Any]]
NAMED = ("subject", "run", "session", "stimulus", "label")  # columns of numbers that stand for names


class Pack:
    """A packed folder in the making. ``add`` and ``picture`` stream to disk; only index columns stay in memory.

    Attributes:
        split_by: what keeps the splits apart ("subject", "run", "stimulus" or "tail"); checked by ``finish``.
        notes: whatever the packer reports, JSON values by name.
        scans: the manifest's entry of the zarr archive, if the packer writes one.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        options: dict[str, Any],
        sources: dict[str, Path],
        progress: Progress,
        dtype: str = "float16",
        shard_bytes: int = SHARD_BYTES,
        fingerprints: Fingerprint | None = None,
    ) -> None:
        self.folder, self.kind, self.options, self.progress, self.dtype = folder, kind, options, progress, dtype
        self.split_by = {"hcp": "subject", "table": "run"}.get(kind, "stimulus")
        self.dropped: list[dict[str, str]] = []
        self.notes: dict[str, Any] = {}
        self.scans: dict[str, Any] | None = None
        self.families: dict[str, str] = {}
        self.voxels: list[int] = []  # of each subject
        self.sample = {name: array("q") for name in SAMPLE_COLUMNS}
        self.block = {name: array("d" if name == "scale" else "q") for name in BLOCK_COLUMNS}
        self.image: dict[int, tuple[int, int, int, int, int]] = {}
        self.arrays: list[dict[str, str]] = []
        self.values: dict[str, np.ndarray] = {}
        self.shards: list[Path] = []
        self.hashes: dict[str, dict[str, Any]] = {}
        self._sources = sources
        self.fingerprints = fingerprints or fingerprint
        self._numbers: dict[str, dict[str, int]] = {column: {} for column in NAMED}
        self.tars = {prefix: Tars(folder, prefix, self.shards, shard_bytes) for prefix in ("fmri", "images")}

    def source(self, name: str) -> str:
        """Hash one input file, once; best called when it is about to be read. Returns the sha256."""
        if name not in self.hashes:
            self.hashes[name] = self.fingerprints(name, self._sources[name])
        return self.hashes[name]["sha256"]

    def drop(self, what: str, why: str) -> None:
        """Report an input that is left out."""
        self.dropped.append({"what": what, "why": why})

    def declare(self, column: str, names: list[str]) -> None:
        """Fix the numbering of "label" or "stimulus" names before records use them."""
        for name in names:
            self.number(column, name)

    def names(self, column: str) -> list[str]:
        """Names numbered so far in one of the columns ``NAMED``."""
        return list(self._numbers[column])

    def attach(self, subject: str, role: str, values: np.ndarray, name: str = "") -> None:
        """Keep an array of one subject, or ("*") of all, in the index; roles are explained in ``manifest.Array``."""
        key = f"array_{len(self.arrays):06d}"
        self.arrays.append({"subject": subject, "role": role, "name": name, "array": key})
        self.values[key] = np.asarray(values)

    def extra(self, name: str, values: np.ndarray) -> None:
        """Keep a further array of the whole set in the index."""
        self.attach("*", name, values)

    def rois(self, subject: str, columns: dict[str, np.ndarray]) -> None:
        """Record which columns of a subject's signals ("*": of everyone's) belong to each region."""
        for name, positions in columns.items():
            self.attach(subject, "roi", np.asarray(positions, dtype=np.int64), check_name(name, "ROI"))

    def stats(self, subject: str, stats: Stats) -> None:
        """Keep the statistics a subject was z-scored with."""
        self.attach(subject, "mean", stats.mean)
        self.attach(subject, "std", stats.std)

    def space(self, subject: str, ids: np.ndarray, xyz: np.ndarray | None = None) -> None:
        """Keep what each voxel of a subject ("*": of everyone) is: ids (V,) in the source's own numbering, and
        coordinates (V, 3) in the source's own space."""
        self.attach(subject, "ids", np.asarray(ids, dtype=np.int64))
        if xyz is not None:
            self.attach(subject, "xyz", np.asarray(xyz, dtype=np.float32))

    def add(self, records: Records) -> None:
        """Append samples in blocks of one subject and run each.

        Raises:
            DataError: another voxel count than this subject had before, or values that cannot be stored.
        """
        voxels, who = records.signals_NV.shape[1], f"subject {records.subject}, run {records.run}"
        subject = self.number("subject", records.subject) if voxels else -1
        if voxels and subject == len(self.voxels):
            self.voxels.append(voxels)
        if voxels and self.voxels[subject] != voxels:
            raise DataError(f"{who}: {voxels:,} voxels, but {self.voxels[subject]:,} in this subject's other runs.")
        first, n = len(self.sample["split"]), len(records)
        columns = {
            "subject": [subject] * n,
            "run": [self.number("run", records.run) if voxels else -1] * n,
            "session": [self.number("session", records.session) if records.session else -1] * n,
            "stimulus": [-1 if name is None else self.number("stimulus", name) for name in records.stimulus],
            "label": [-1 if name is None else self.number("label", name) for name in records.label],
            "split": [SPLITS.index(split) for split in records.split],
            "repeat": records.repeat,
            "start": [-1] * n if records.start is None else records.start,
            "frames": [records.frames] * n,
        }
        for name, values in columns.items():
            self.sample[name].extend(values)
        if not voxels:
            self.sample["crc32c"].extend([0] * n)
            return
        most = block_rows(voxels, self.dtype)
        for start in range(0, n, most):
            self._add_block(records, slice(start, start + most), first + start)

    def _add_block(self, records: Records, part: slice, first: int) -> None:
        who = f"subject {records.subject}, run {records.run}"
        rows_NV, scale = encode(records.signals_NV[part], self.dtype, who)
        told = {"subject": records.subject, "session": records.session, "run": records.run}
        told |= {"split": records.split[part], "stimulus": records.stimulus[part], "label": records.label[part]}
        told |= {"repeat": records.repeat[part], "frames": records.frames}
        told |= {"start": None if records.start is None else records.start[part]}
        self.write_block(rows_NV, scale, first, told)

    def write_block(self, rows_NV: np.ndarray, scale: float, first: int, told: dict[str, Any]) -> None:
        """Write one block of values in their storage type; ``first`` is the number of its first sample."""
        number = len(self.block["first"])
        key = f"{safe_key(told['subject'])[:30]}_{safe_key(told['run'] or '')[:40]}_b{number:07d}"
        told["scale"] = scale
        data, header = npy_bytes(rows_NV)
        shard, offset = self.tars["fmri"].write(key, "npy", data, told)
        values = (shard, offset + header, len(rows_NV), first, crc32c(data[header:]), scale)
        for name, value in zip(BLOCK_COLUMNS, values):
            self.block[name].append(value)
        self.sample["crc32c"].extend(crc32c(row_V) for row_V in rows_NV)

    def picture(self, stimulus: str, data: bytes, extension: str) -> None:
        """Store one stimulus's picture, encoded as "png" or "jpg"; a stimulus has one, later ones are ignored."""
        number = self.number("stimulus", stimulus)
        if number in self.image:
            return
        key = f"{number:07d}_{safe_key(stimulus)}"
        shard, offset = self.tars["images"].write(key, extension, data, {"stimulus": stimulus})
        self.image[number] = (shard, offset, len(data), crc32c(data), digest(data))

    def number(self, column: str, name: str) -> int:
        """The number that stands for a name in a column; new names get the next one."""
        numbers = self._numbers[column]
        if name not in numbers:
            numbers[check_name(name, column)] = len(numbers)
        return numbers[name]

    def finish(self) -> None:
        """Close the shards, then write the index and, last, the manifest.

        Raises:
            DataError: nothing was packed, or a split leaks.
        """
        if not len(self.sample["split"]):
            why = "; ".join(f"{entry['what']}: {entry['why']}" for entry in self.dropped[:3])
            raise DataError(f"packing {self.kind}: nothing was packed. {why or 'The inputs hold no samples.'}")
        for name in self._sources:
            self.source(name)
        self.finish_part()
        refuse_leak(self)

    def finish_part(self) -> None:
        """Close a part of a larger pack; it may be empty, and only the whole can be judged for leaks."""
        for tars in self.tars.values():
            tars.close()
        seal(self)


def digest(data: bytes) -> int:
    """A picture's content as one number, so that the same picture under two names is found: 63 bits of sha256."""
    import hashlib

    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1


def fingerprint(name: str, path: Path) -> dict[str, Any]:
    """Name, size and sha256 of one input file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256(path)}
