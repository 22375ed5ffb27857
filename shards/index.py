"""The index of a packed folder: where each block, row and picture lies; checked against the manifest before use.

``index.npz`` is untrusted when read: nothing is unpickled, and every offset must lie inside its file.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.arrays import DAMAGED
from cadiff.shards.encoding import ITEM_BYTES
from cadiff.shards.manifest import Manifest, shard_names
from cadiff.shards.record import SPLITS

# One entry per sample, int32; -1 means none. ``start`` and ``frames``: the window of TRs within the run.
SAMPLE_COLUMNS = ("subject", "run", "session", "stimulus", "label", "split", "repeat", "start", "frames", "crc32c")
BLOCK_COLUMNS = ("shard", "offset", "rows", "first", "crc32c", "scale")
IMAGE_COLUMNS = ("shard", "offset", "bytes", "crc32c", "digest")


@dataclass(frozen=True)
class Index:
    """Columns of index.npz: ``sample`` (N entries each), ``block`` and ``image`` tables, and further arrays."""

    sample: dict[str, np.ndarray]
    block: dict[str, np.ndarray]
    image: dict[str, np.ndarray]
    extra: dict[str, np.ndarray]


def read_index(path: str | Path, manifest: Manifest) -> Index:
    """Read index.npz and check that every row and picture it points to lies inside its file.

    Raises:
        DataError: damaged, or in disagreement with the manifest.
    """
    path = Path(path)
    listed = {entry.path: entry for entry in manifest.files}
    if "index.npz" not in listed or sha256(path) != listed["index.npz"].sha256:
        raise DataError(
            f"{path}: its hash differs from manifest.json. Mend it with `cadiff shards repair FOLDER --from COPY`, or "
            "pack again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed members")
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        if strange := [name for name, values in loaded.items() if not isinstance(values, np.ndarray)]:
            raise ValueError(f"member {strange[0]} is no array")
        tables = [
            {name: loaded.pop(f"{table}_{name}") for name in names}
            for table, names in (("sample", SAMPLE_COLUMNS), ("block", BLOCK_COLUMNS), ("image", IMAGE_COLUMNS))
        ]
        index = Index(*tables, loaded)
        _check_samples(index, manifest)
        _check_places(index, manifest)
        _check_arrays(index, manifest)
    except DAMAGED as problem:
        raise DataError(f"{path}: not a valid index ({problem}). Pack again.") from None
    return index


def _check_samples(index: Index, manifest: Manifest) -> None:
    limits = {
        "subject": len(manifest.subjects),
        "run": len(manifest.runs),
        "session": len(manifest.sessions),
        "stimulus": len(manifest.stimuli),
        "label": len(manifest.classes),
        "split": len(SPLITS),
    }
    total = sum(manifest.samples.values())
    for name, column in index.sample.items():
        wanted = np.dtype(np.uint32 if name == "crc32c" else np.int32)
        if column.shape != (total,) or column.dtype != wanted:
            raise ValueError(f"column {name} is {column.dtype} {column.shape}, expected {wanted} ({total},)")
        if name in limits and total and not (column.min() >= -1 and column.max() < limits[name]):
            raise ValueError(f"column {name} is out of range")
    counts = np.bincount(index.sample["split"], minlength=3).tolist()
    if counts != [manifest.samples.get(split, 0) for split in ("train", "val", "test")]:
        raise ValueError("the splits differ from the manifest's counts")
    if index.image["offset"].shape != (len(manifest.stimuli),):
        raise ValueError("the picture table does not fit the list of stimuli")


def _check_places(index: Index, manifest: Manifest) -> None:
    listed = {entry.path: entry.bytes for entry in manifest.files}
    sizes = np.array([listed[name] for name in shard_names(manifest)], dtype=np.int64)
    for table in (index.block, index.image):
        shapes = {column.shape for column in table.values()}
        wanted = {name: np.dtype(np.float32 if name == "scale" else np.int64) for name in table}
        if len(shapes) > 1 or any(column.ndim != 1 or column.dtype != wanted[n] for n, column in table.items()):
            raise ValueError("a table's columns differ in length or type")
    image, block = index.image, index.block
    stored = image["shard"] >= 0
    _inside(image["shard"][stored], image["offset"][stored], image["bytes"][stored], sizes)
    voxels = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)
    if voxels.min(initial=1) < 1:
        raise ValueError("a subject has no voxels")
    if len(block["first"]) == 0:
        if len(voxels):
            raise ValueError("no blocks of signals")
        return
    ends = np.cumsum(block["rows"])
    if (
        block["rows"].min() < 1
        or block["rows"].max() > len(index.sample["split"])
        or (block["first"] != ends - block["rows"]).any()
        or ends[-1] != len(index.sample["split"])
    ):
        raise ValueError("the blocks do not cover the samples")
    subject_of_block = index.sample["subject"][block["first"]]
    if (np.repeat(subject_of_block, block["rows"]) != index.sample["subject"]).any() or subject_of_block.min() < 0:
        raise ValueError("a block mixes subjects")
    item = ITEM_BYTES[manifest.dtype]
    if (block["offset"] % item).any() or not (np.isfinite(block["scale"]).all() and (block["scale"] > 0).all()):
        raise ValueError("a block is not aligned, or its scale is not a positive number")
    if voxels.max() > max(sizes, default=0):
        raise ValueError("a subject has more voxels than the files have bytes")
    _inside(block["shard"], block["offset"], block["rows"] * voxels[subject_of_block] * item, sizes)


def _check_arrays(index: Index, manifest: Manifest) -> None:
    voxels = {subject.name: subject.voxels for subject in manifest.subjects}
    widest = max(voxels.values(), default=0)
    for entry in manifest.arrays:
        if entry.array not in index.extra:
            raise ValueError(f"array {entry.array} ({entry.role} of {entry.subject}) is missing")
        values = index.extra[entry.array]
        if entry.role == "roi":
            limit = voxels.get(entry.subject, widest)
            if values.dtype.kind not in "iu" or values.ndim != 1 or not ((values >= 0) & (values < limit)).all():
                raise ValueError(f"region {entry.name} of {entry.subject} names columns outside the signals")
        shapes = {(1,), (voxels.get(entry.subject, widest),)}
        if entry.role in ("mean", "std") and (values.dtype.kind != "f" or values.shape not in shapes):
            raise ValueError(f"{entry.role} of {entry.subject} is {values.dtype} {values.shape}, expected numbers (V,)")


def _inside(shard: np.ndarray, offset: np.ndarray, length: np.ndarray, sizes: np.ndarray) -> None:
    if len(shard) == 0:
        return
    if shard.min() < 0 or shard.max() >= len(sizes) or offset.min() < 0 or length.min() < 0:
        raise ValueError("a place is negative or names no shard")
    if (offset > sizes[shard]).any() or (length > sizes[shard] - offset).any():
        raise ValueError("a place lies beyond the end of its shard")
