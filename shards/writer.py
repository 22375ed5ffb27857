"""Write a packed folder's files: samples into blocks in tar shards, pictures, the index, and the manifest last."""

from __future__ import annotations

import os
import zlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256, write_json
from cadiff.shards.arrays import npy_bytes
from cadiff.shards.manifest import BLOCK_COLUMNS, BLOCK_ROWS, FORMAT, IMAGE_COLUMNS, SAMPLE_COLUMNS
from cadiff.shards.record import SPLITS, Progress, Records, check_name, safe_key
from cadiff.shards.tars import Tars
from cadiff.shards.voxels import Stats, to_half


class Pack:
    """A packed folder in the making. ``add`` and ``picture`` stream to disk; only index columns stay in memory."""

    def __init__(
        self, folder: Path, kind: str, options: dict[str, Any], sources: dict[str, Path], progress: Progress
    ) -> None:
        self.folder, self.kind, self.options, self.progress = folder, kind, options, progress
        self.dropped: list[dict[str, str]] = []
        self.notes: dict[str, Any] = {}
        self.scans: dict[str, Any] | None = None
        self._sources = sources
        self._hashes: dict[str, dict[str, Any]] = {}
        self._names: dict[str, dict[str, int]] = {"subject": {}, "run": {}, "stimulus": {}, "label": {}}
        self._voxels: list[int] = []
        self._sample = {name: array("q") for name in SAMPLE_COLUMNS}
        self._block = {name: array("q") for name in BLOCK_COLUMNS}
        self._image: dict[int, tuple[int, int, int, int]] = {}
        self._rois: list[dict[str, str]] = []
        self._extra: dict[str, np.ndarray] = {}
        self._shards: list[Path] = []
        self._tars: dict[str, Tars] = {prefix: Tars(folder, prefix, self._shards) for prefix in ("fmri", "images")}

    @property
    def source_count(self) -> int:
        return len(self._sources)

    def source(self, name: str) -> str:
        """Hash one input file, once; best called when it is about to be read. Returns the sha256."""
        if name not in self._hashes:
            self._hashes[name] = fingerprint(name, self._sources[name])
        return self._hashes[name]["sha256"]

    def drop(self, what: str, why: str) -> None:
        """Report an input that is left out."""
        self.dropped.append({"what": what, "why": why})

    def declare(self, column: str, names: list[str]) -> None:
        """Fix the numbering of "label" or "stimulus" names before records use them."""
        for name in names:
            self._number(column, name)

    def names(self, column: str) -> list[str]:
        """Names numbered so far in the column "subject", "run", "stimulus" or "label"."""
        return list(self._names[column])

    def rois(self, subject: str, columns: dict[str, np.ndarray]) -> None:
        """Record which columns of a subject's signals ("*": of everyone's) belong to each region."""
        for name, positions in columns.items():
            key = f"roi_{len(self._rois):05d}"
            self._rois.append({"subject": subject, "name": check_name(name, "ROI"), "array": key})
            self._extra[key] = np.asarray(positions, dtype=np.int64)

    def stats(self, subject: str, stats: Stats) -> None:
        """Keep the statistics a subject was z-scored with. Call it after the subject's first ``add``."""
        number = self._names["subject"][subject]
        self._extra[f"mean_{number:05d}"], self._extra[f"std_{number:05d}"] = stats.mean, stats.std

    def extra(self, name: str, values: np.ndarray) -> None:
        """Keep a further array in the index."""
        self._extra[name] = values

    def add(self, records: Records) -> None:
        """Append samples: blocks of at most 64 rows, float16, one subject and run each.

        Raises:
            DataError: another voxel count than this subject had before, or values beyond float16.
        """
        voxels, who = records.signals_NV.shape[1], f"subject {records.subject}, run {records.run}"
        subject = self._number("subject", records.subject) if voxels else -1
        run = self._number("run", records.run) if voxels else -1
        if voxels and subject == len(self._voxels):
            self._voxels.append(voxels)
        if voxels and self._voxels[subject] != voxels:
            raise DataError(f"{who}: {voxels:,} voxels, but {self._voxels[subject]:,} in this subject's other runs.")
        first = len(self._sample["split"])
        numbers = [
            [subject] * len(records),
            [run] * len(records),
            [-1 if name is None else self._number("stimulus", name) for name in records.stimulus],
            [-1 if name is None else self._number("label", name) for name in records.label],
            [SPLITS.index(split) for split in records.split],
            records.repeat,
        ]
        for name, values in zip(SAMPLE_COLUMNS, numbers):
            self._sample[name].extend(values)
        for start in range(0, len(records) if voxels else 0, BLOCK_ROWS):
            self._add_block(records, start, first + start)

    def _add_block(self, records: Records, start: int, first: int) -> None:
        part = slice(start, start + BLOCK_ROWS)
        rows_NV = to_half(records.signals_NV[part]).astype("<f2", copy=False)
        if not np.isfinite(rows_NV).all():
            raise DataError(f"subject {records.subject}, run {records.run}: values beyond float16. z-score them first.")
        number = len(self._block["first"])
        key = f"{safe_key(records.subject)[:30]}_{safe_key(records.run)[:40]}_b{number:07d}"
        told = {
            "subject": records.subject,
            "run": records.run,
            "start": start,
            "first": first,
            "split": records.split[part],
        }
        told |= {"stimulus": records.stimulus[part], "label": records.label[part], "repeat": records.repeat[part]}
        data, header = npy_bytes(rows_NV)
        shard, offset = self._tars["fmri"].write(key, "npy", data, told)
        values = (shard, offset + header, len(rows_NV), first, zlib.crc32(memoryview(data)[header:]))
        for name, value in zip(BLOCK_COLUMNS, values):
            self._block[name].append(value)

    def picture(self, stimulus: str, data: bytes, extension: str) -> None:
        """Store one stimulus's picture, encoded as "png" or "jpg"; a stimulus has one, later ones are ignored."""
        number = self._number("stimulus", stimulus)
        if number in self._image:
            return
        key = f"{number:07d}_{safe_key(stimulus)}"
        shard, offset = self._tars["images"].write(key, extension, data, {"stimulus": stimulus})
        self._image[number] = (shard, offset, len(data), zlib.crc32(data))

    def finish(self) -> None:
        """Close the shards, then write the index and, last, the manifest.

        Raises:
            DataError: nothing was packed.
        """
        if not len(self._sample["split"]):
            why = "; ".join(f"{entry['what']}: {entry['why']}" for entry in self.dropped[:3])
            raise DataError(f"{self.folder.parent}: nothing was packed. {why or 'The inputs hold no samples.'}")
        for tars in self._tars.values():
            tars.close()
        for name in self._sources:
            self.source(name)
        self._write_index()
        files = [*self._shards, self.folder / "index.npz"]
        splits = np.bincount(np.array(self._sample["split"]), minlength=3).tolist()
        subjects = zip(self._names["subject"], self._voxels, strict=True)
        manifest = {
            "format": FORMAT,
            "kind": self.kind,
            "dtype": "<f2",
            "subjects": [{"name": name, "voxels": voxels} for name, voxels in subjects],
            "runs": list(self._names["run"]),
            "stimuli": list(self._names["stimulus"]),
            "classes": list(self._names["label"]),
            "samples": dict(zip(SPLITS, splits)),
            "options": self.options,
            "sources": [self._hashes[name] for name in self._sources],
            "files": [{"path": p.name, "bytes": p.stat().st_size, "sha256": sha256(p)} for p in files],
            "rois": self._rois,
            "dropped": self.dropped,
            "notes": self.notes,
            "scans": self.scans,
        }
        write_json(self.folder / "manifest.json", manifest)

    def _write_index(self) -> None:
        absent = (-1, 0, 0, 0)
        places = [self._image.get(number, absent) for number in range(len(self._names["stimulus"]))]
        images = np.array(places, dtype=np.int64).reshape(-1, len(IMAGE_COLUMNS))
        columns = {f"sample_{name}": np.array(values, dtype=np.int32) for name, values in self._sample.items()}
        columns |= {f"block_{name}": np.array(values, dtype=np.int64) for name, values in self._block.items()}
        columns |= {f"image_{name}": images[:, i] for i, name in enumerate(IMAGE_COLUMNS)}
        with open(self.folder / "index.npz", "wb") as handle:
            np.savez(handle, **columns, **self._extra)
            handle.flush()
            os.fsync(handle.fileno())

    def _number(self, column: str, name: str) -> int:
        numbers = self._names[column]
        if name not in numbers:
            numbers[check_name(name, column)] = len(numbers)
        return numbers[name]


def fingerprint(name: str, path: Path) -> dict[str, Any]:
    """Name, size and sha256 of one input file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256(path)}
