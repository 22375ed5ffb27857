"""Check a packed folder byte by byte: sizes, hashes, checksums of blocks, and that its tars are stock WebDataset."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.arrays import DAMAGED
from cadiff.shards.encoding import DTYPES, ITEM_BYTES, crc32c
from cadiff.shards.index import Index, read_index
from cadiff.shards.leaks import find_leak
from cadiff.shards.manifest import Manifest, parse_manifest, shard_names
from cadiff.shards.members import check_tar
from cadiff.shards.record import Progress, silent
from cadiff.shards.writer import digest
from cadiff.shards.zarr_store import archive_hash

_MB = 10**6
_REMEDY = "Mend it with `cadiff shards repair`."


@dataclass
class Checked:
    """What a check looked at, and the problems it found: one sentence each, none if the folder is intact."""

    problems: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0  # read and compared with a hash
    blocks: int = 0
    rows: int = 0
    pictures: int = 0


def verify(folder: str | Path, progress: Progress = silent) -> list[str]:
    """Read everything and list what is wrong, one sentence per problem; an empty list means intact."""
    return examine(folder, progress).problems


def examine(folder: str | Path, progress: Progress = silent) -> Checked:
    """Read everything: files by sha256, blocks, rows and pictures by their checksums, tar members, the scans.

    Each shard is hashed and then read again in pieces at once, while the system still has it in memory.
    """
    folder, checked = Path(folder), Checked()
    manifest, index = _open(folder, checked)
    if manifest is None:
        return checked
    scans = manifest.scans.bytes if manifest.scans else 0
    total = (sum(entry.bytes for entry in manifest.files) + scans) // _MB
    for entry in manifest.files:
        progress("MB", checked.bytes // _MB, total)
        path = folder / entry.path
        if path.suffix != ".tar" or not path.is_file():
            continue  # the index has been read, and what is missing has been told
        checked.files, checked.bytes = checked.files + 1, checked.bytes + path.stat().st_size
        whole = path.stat().st_size == entry.bytes  # else that is told, with what the file has lost
        if whole and (problem := check_file(path, entry.bytes, entry.sha256)):
            checked.problems.append(problem)
        if index is not None:
            _check_blocks(path, manifest, index, checked)
            _check_pictures(path, manifest, index, checked)
        if whole:
            checked.problems += check_tar(path, manifest, index)
    if manifest.scans:
        checked.problems += _check_scans(folder / manifest.scans.path, manifest, checked)
    progress("MB", total, total)
    return checked


def glance(folder: str | Path) -> Checked:
    """Compare sizes, and check the index, without reading the shards."""
    folder, checked = Path(folder), Checked()
    manifest, _ = _open(folder, checked)
    if manifest is not None and manifest.scans:
        checked.problems += _check_scans_size(folder / manifest.scans.path, manifest)
    return checked


def check_file(path: Path, size: int, expected: str) -> str | None:
    """What is wrong with a file, by its size and sha256, or None."""
    if problem := _check_size(path, size):
        return problem
    try:
        found = sha256(path)
    except OSError as problem:
        return f"{path}: cannot be read ({problem.strerror or problem})."
    if found != expected:
        return f"{path}: its sha256 differs from manifest.json; the content has changed."
    return None


def _check_size(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path}: missing, expected {size:,} bytes."
    if path.stat().st_size != size:
        return f"{path}: {path.stat().st_size:,} bytes, expected {size:,}."
    return None


def _check_scans_size(archive: Path, manifest: Manifest) -> list[str]:
    size = sum(path.stat().st_size for path in archive.rglob("*") if path.is_file())
    return [] if size == manifest.scans.bytes else [f"{archive}: {size:,} bytes, expected {manifest.scans.bytes:,}."]


def _check_scans(archive: Path, manifest: Manifest, checked: Checked) -> list[str]:
    """Compare the archive's size and then, if that is right, the hash over all its files."""
    if problems := _check_scans_size(archive, manifest):
        return problems
    checked.bytes += manifest.scans.bytes
    try:
        found = archive_hash(archive)[1]
    except OSError as problem:
        return [f"{archive}: cannot be read ({problem})."]
    return [] if found == manifest.scans.sha256 else [f"{archive}: the content differs from manifest.json."]


def _open(folder: Path, checked: Checked) -> tuple[Manifest | None, Index | None]:
    """Read the manifest and, if it is sound, the index; sizes, strangers and leaks are told."""
    if not (folder / "manifest.json").is_file():
        checked.problems.append(f"{folder}: no manifest.json, so this is not a finished packed folder. Pack it again.")
        return None, None
    try:
        manifest = parse_manifest(folder / "manifest.json")
    except DataError as problem:
        checked.problems.append(str(problem))
        return None, None
    checked.files, checked.bytes = 1, (folder / "manifest.json").stat().st_size
    sizes = {entry.path: _check_size(folder / entry.path, entry.bytes) for entry in manifest.files}
    index, faults = (None, []) if sizes.get("index.npz") else _try_index(folder, manifest, checked)
    for name, problem in sizes.items():
        if problem:
            lost = _count_lost(folder / name, manifest, index) if index and name.endswith(".tar") else ""
            checked.problems.append(f"{problem} {lost}{_REMEDY}")
    known = {*sizes, "manifest.json", manifest.scans.path if manifest.scans else ""}
    for name in sorted(path.name for path in folder.iterdir() if path.name not in known):
        checked.problems.append(f"{folder / name}: is not listed in manifest.json. Nothing reads it; remove it.")
    checked.problems += faults
    return manifest, index


def _try_index(folder: Path, manifest: Manifest, checked: Checked) -> tuple[Index | None, list[str]]:
    """The index if it is sound, and what is wrong with it."""
    path = folder / "index.npz"
    try:
        index = read_index(path, manifest)
    except DataError as problem:
        return None, [str(problem)]
    checked.files, checked.bytes = 2, checked.bytes + path.stat().st_size
    leak = find_leak(index, manifest)
    return index, [f"{path}: {leak}."] if leak else []


def _count_lost(path: Path, manifest: Manifest, index: Index) -> str:
    """How many of a shard's blocks and pictures do not end within the file as it is: a sentence if there are any."""
    size, shard = path.stat().st_size if path.is_file() else 0, shard_names(manifest).index(path.name)
    ends = {"blocks": index.block["offset"] + _block_bytes(manifest, index)}
    ends["pictures"] = index.image["offset"] + index.image["bytes"]
    told = []
    for what, table in (("blocks", index.block), ("pictures", index.image)):
        ends_here = ends[what][table["shard"] == shard]
        if lost := int((ends_here > size).sum()):
            told.append(f"{lost:,} of its {len(ends_here):,} {what}")
    return f"Lost: {' and '.join(told)}. " if told else ""


def _block_bytes(manifest: Manifest, index: Index) -> np.ndarray:
    """int64, the bytes of each block's values."""
    voxels = np.array([subject.voxels for subject in manifest.subjects], dtype=np.int64)
    return index.block["rows"] * voxels[index.sample["subject"][index.block["first"]]] * ITEM_BYTES[manifest.dtype]


def _check_blocks(path: Path, manifest: Manifest, index: Index, checked: Checked) -> None:
    """Compare each block's and each row's crc32c; a .npy header must also stand right before a block.

    Blocks that the file does not hold to their end were told with its size.
    """
    table, dtype = index.block, np.dtype(DTYPES[manifest.dtype])
    for number, handle in _places(path, manifest, table):
        first, rows, offset = (int(table[name][number]) for name in ("first", "rows", "offset"))
        shape = (rows, manifest.subjects[index.sample["subject"][first]].voxels)
        where, length = f"{path}: block {number} at byte {offset:,}", shape[1] * dtype.itemsize
        if offset + rows * length > os.fstat(handle).st_size:
            continue
        checked.blocks, checked.rows = checked.blocks + 1, checked.rows + rows
        if _header_before(handle, offset) != (shape, False, dtype):
            checked.problems.append(f"{where} has no .npy header.")
        data = read_piece(handle, offset, rows * length)
        if data is None:
            checked.problems.append(f"{where} cannot be read.")
        elif crc32c(data) != table["crc32c"][number]:
            checked.problems.append(f"{where} fails its crc32c.")
        else:
            sums = [crc32c(data[row * length : (row + 1) * length]) for row in range(rows)]
            if sums != index.sample["crc32c"][first : first + rows].tolist():
                checked.problems.append(f"{where}: the index has other checksums for its rows.")


def _check_pictures(path: Path, manifest: Manifest, index: Index, checked: Checked) -> None:
    table = index.image
    for number, handle in _places(path, manifest, table):
        offset, length = int(table["offset"][number]), int(table["bytes"][number])
        if offset + length > os.fstat(handle).st_size:
            continue  # told with the file's size
        where = f"{path}: picture {number}"
        checked.pictures += 1
        data = read_piece(handle, offset, length)
        if data is None:
            checked.problems.append(f"{where} at byte {offset:,} cannot be read.")
        elif crc32c(data) != table["crc32c"][number]:
            checked.problems.append(f"{where} at byte {offset:,} fails its crc32c.")
        elif digest(data) != table["digest"][number]:
            checked.problems.append(f"{where}: the index has another digest of it.")


def _places(path: Path, manifest: Manifest, table: dict[str, np.ndarray]) -> Iterator[tuple[int, int]]:
    """Numbers of the blocks or pictures of one shard in the file's order, each with an open descriptor."""
    inside = np.flatnonzero(table["shard"] == shard_names(manifest).index(path.name))
    with open(path, "rb") as handle:
        for number in inside[np.argsort(table["offset"][inside], kind="stable")].tolist():
            yield number, handle.fileno()


def read_piece(descriptor: int, offset: int, length: int) -> bytes | None:
    """A byte range of a file, or None if the file ends before or the disk cannot read it.

    The file's size is asked first, as lengths from an index are not trusted.
    """
    if offset + length > os.fstat(descriptor).st_size:
        return None
    try:
        return os.pread(descriptor, length, offset)
    except OSError:
        return None


def _header_before(descriptor: int, offset: int) -> tuple | None:
    try:
        data = os.pread(descriptor, 128, max(0, offset - 128))
        stream = io.BytesIO(data)
        np.lib.format.read_magic(stream)
        return np.lib.format.read_array_header_1_0(stream)
    except DAMAGED:
        return None
