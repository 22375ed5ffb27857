"""The manifest and the index of a packed folder: their schema, safe reading, and verification.

``manifest.json`` is written last, so a folder with one is finished; its sha256 is the version of the data.
``index.npz`` says where each block of rows and each picture lies. Both are untrusted when read: every path, length
and offset is checked against the files before it is used, and nothing is ever unpickled or extracted.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadiff.errors import DataError
from cadiff.files import read_json, sha256

FORMAT = "cadiff-shards/1"
BLOCK_ROWS = 64  # most rows of a block: one contiguous read of about 0.5 MB at the paper's width
SAMPLE_COLUMNS = ("subject", "run", "stimulus", "label", "split", "repeat")
BLOCK_COLUMNS = ("shard", "offset", "rows", "first", "crc32")
IMAGE_COLUMNS = ("shard", "offset", "bytes", "crc32")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Subject(_Part):
    name: str
    voxels: Count


class PackedFile(_Part):
    path: FileName
    bytes: Count
    sha256: Sha256


class Source(_Part):
    """One input file, by a name relative to the folder the user gave."""

    name: str
    bytes: Count
    sha256: Sha256


class Roi(_Part):
    subject: str  # "*" for all subjects
    name: str
    array: FileName  # its columns, in index.npz


class Dropped(_Part):
    what: str
    why: str


class Scans(_Part):
    """The zarr archive beside the shards; ``sha256`` covers the names, sizes and hashes of its files."""

    path: FileName
    arrays: Count
    bytes: Count
    sha256: Sha256


class Manifest(_Part):
    format: Literal["cadiff-shards/1"]
    kind: Literal["hcp", "god", "bold5000", "table", "images"]
    dtype: Literal["<f2"]
    subjects: list[Subject]
    runs: list[str]
    stimuli: list[str]
    classes: list[str]
    samples: dict[Literal["train", "val", "test"], Count]
    options: dict[str, Any]
    sources: list[Source]
    files: list[PackedFile]
    rois: list[Roi]
    dropped: list[Dropped]
    notes: dict[str, Any]
    scans: Scans | None


@dataclass(frozen=True)
class Index:
    """Columns of index.npz: ``sample`` (N entries each), ``block`` and ``image`` tables, and further arrays."""

    sample: dict[str, np.ndarray]
    block: dict[str, np.ndarray]
    image: dict[str, np.ndarray]
    extra: dict[str, np.ndarray]


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check manifest.json, and that every file it lists has its full size.

    Raises:
        DataError: not a packed folder, an unfinished or damaged one, or one of another version.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder}: no manifest.json, so this is not a finished packed folder. Run cadiff pack again.")
    try:
        manifest = Manifest.model_validate(read_json(path))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise DataError(f"{path}: {where}: {first['msg']}. Damaged, or of another version; pack again.") from None
    for entry in manifest.files:
        file = folder / entry.path
        found = file.stat().st_size if file.is_file() else None
        if found != entry.bytes:
            state = "missing" if found is None else f"{found:,} bytes"
            raise DataError(f"{file}: {state}, expected {entry.bytes:,} bytes. Copy the folder again or pack again.")
    return manifest


def read_index(folder: str | Path, manifest: Manifest) -> Index:
    """Read index.npz and check that every row and picture it points to lies inside its file.

    Raises:
        DataError: damaged, or in disagreement with the manifest.
    """
    path = Path(folder) / "index.npz"
    listed = {entry.path: entry for entry in manifest.files}
    if "index.npz" not in listed or sha256(path) != listed["index.npz"].sha256:
        raise DataError(f"{path}: its hash differs from manifest.json. Damaged or changed; pack again.")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed members")
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        tables = [
            {name: loaded.pop(f"{table}_{name}") for name in names}
            for table, names in (("sample", SAMPLE_COLUMNS), ("block", BLOCK_COLUMNS), ("image", IMAGE_COLUMNS))
        ]
        index = Index(*tables, loaded)
        _check_samples(index, manifest)
        _check_places(index, manifest)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, OverflowError) as problem:
        raise DataError(f"{path}: not a valid index ({problem}). Pack again.") from None
    return index


def shard_names(manifest: Manifest) -> list[str]:
    """Tar shards in the order in which the index numbers them."""
    return [entry.path for entry in manifest.files if entry.path.endswith(".tar")]


def _check_samples(index: Index, manifest: Manifest) -> None:
    limits = {
        "subject": len(manifest.subjects),
        "run": len(manifest.runs),
        "stimulus": len(manifest.stimuli),
        "label": len(manifest.classes),
    }
    total = sum(manifest.samples.values())
    for name, column in index.sample.items():
        if column.shape != (total,) or column.dtype.kind != "i":
            raise ValueError(f"column {name} is {column.dtype} {column.shape}, expected {total} integers")
        if name in limits and total and not (column.min() >= -1 and column.max() < limits[name]):
            raise ValueError(f"column {name} is out of range")
    counts = np.bincount(index.sample["split"], minlength=3).tolist()
    if counts != [manifest.samples.get(split, 0) for split in ("train", "val", "test")]:
        raise ValueError("the splits differ from the manifest's counts")
    if index.image["offset"].shape != (len(manifest.stimuli),):
        raise ValueError("the picture table does not fit the list of stimuli")


def _check_places(index: Index, manifest: Manifest) -> None:
    sizes = np.array([entry.bytes for entry in manifest.files if entry.path.endswith(".tar")], dtype=np.int64)
    for table in (index.block, index.image):
        if len({column.shape for column in table.values()}) > 1 or any(
            c.dtype.kind not in "iu" for c in table.values()
        ):
            raise ValueError("a table's columns differ in length or are not integers")
    image, block = index.image, index.block
    stored = image["shard"] >= 0
    _inside(image["shard"][stored], image["offset"][stored], image["bytes"][stored], sizes)
    voxels = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)
    if len(block["first"]) == 0:
        if voxels.any():
            raise ValueError("no blocks of signals")
        return
    ends = np.cumsum(block["rows"])
    if (
        block["rows"].min() < 1
        or (block["first"] != ends - block["rows"]).any()
        or ends[-1] != len(index.sample["split"])
    ):
        raise ValueError("the blocks do not cover the samples")
    subject_of_block = index.sample["subject"][block["first"]]
    if (np.repeat(subject_of_block, block["rows"]) != index.sample["subject"]).any() or subject_of_block.min() < 0:
        raise ValueError("a block mixes subjects")
    if (block["offset"] % 2).any():
        raise ValueError("a block is not aligned")
    _inside(block["shard"], block["offset"], block["rows"] * voxels[subject_of_block] * 2, sizes)


def _inside(shard: np.ndarray, offset: np.ndarray, length: np.ndarray, sizes: np.ndarray) -> None:
    if len(shard) == 0:
        return
    if shard.min() < 0 or shard.max() >= len(sizes) or offset.min() < 0 or length.min() < 0:
        raise ValueError("a place is negative or names no shard")
    if (offset + length > sizes[shard]).any():
        raise ValueError("a place lies beyond the end of its shard")
