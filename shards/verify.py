"""Check a packed folder byte by byte: sizes, hashes, checksums of blocks, and that its tars are stock WebDataset."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.manifest import Index, Manifest, read_index, read_manifest, shard_names
from cadiff.shards.record import Progress, silent
from cadiff.shards.zarr_store import archive_hash


def verify(folder: str | Path, progress: Progress = silent) -> list[str]:
    """Read everything and list what is wrong, one sentence per problem; an empty list means intact."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except DataError as problem:
        return [str(problem)]
    problems = []
    for done, entry in enumerate(manifest.files):
        progress("verifying files", done, len(manifest.files))
        if sha256(folder / entry.path) != entry.sha256:
            problems.append(f"{folder / entry.path}: its sha256 differs from manifest.json; the content has changed.")
    try:
        index = read_index(folder, manifest)
    except DataError as problem:
        return [*problems, str(problem)]
    for table, name in ((index.block, "block"), (index.image, "picture")):
        problems += _check_sums(folder, manifest, index, table, name)
    for name in shard_names(manifest):
        problems += _check_tar(folder / name)
    if manifest.scans:
        size, digest = archive_hash(folder / manifest.scans.path)
        if (size, digest) != (manifest.scans.bytes, manifest.scans.sha256):
            problems.append(f"{folder / manifest.scans.path}: differs from manifest.json ({size:,} bytes found).")
    return problems


def _check_sums(folder: Path, manifest: Manifest, index: Index, table: dict, what: str) -> list[str]:
    """Compare each block's or picture's crc32; a .npy header must also stand right before a block."""
    problems, shards = [], shard_names(manifest)
    for number in np.flatnonzero(table["shard"] >= 0).tolist():
        path, offset = folder / shards[table["shard"][number]], int(table["offset"][number])
        with open(path, "rb") as handle:
            if what == "block":
                subject = index.sample["subject"][table["first"][number]]
                shape = (int(table["rows"][number]), manifest.subjects[subject].voxels)
                length = shape[0] * shape[1] * 2
                if _header_before(handle.fileno(), offset) != (shape, False, np.dtype("<f2")):
                    problems.append(f"{path}: block {number} is not the .npy array {shape} that the index promises.")
            else:
                length = int(table["bytes"][number])
            if zlib.crc32(os.pread(handle.fileno(), length, offset)) != table["crc32"][number]:
                problems.append(f"{path}: {what} {number} at byte {offset:,} fails its crc32.")
    return problems


def _header_before(descriptor: int, offset: int) -> tuple | None:
    data = os.pread(descriptor, 128, max(0, offset - 128))
    try:
        stream = io.BytesIO(data)
        np.lib.format.read_magic(stream)
        return np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        return None


def _check_tar(path: Path) -> list[str]:
    """Walk the members as WebDataset would: plain files named <key>.<extension>, two successive ones per key."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(member.name, member.isfile()) for member in archive]
    except (tarfile.TarError, OSError, EOFError, ValueError) as problem:
        return [f"{path}: not readable as a tar file ({problem})."]
    keys = [name.partition(".")[0] for name, _ in members]
    sound = all(is_file and name.count(".") == 1 and "/" not in name for name, is_file in members)
    if not sound or keys[::2] != keys[1::2] or len(set(keys)) * 2 != len(keys):
        return [f"{path}: its members are not pairs <key>.npy/.png/.jpg + <key>.json, as WebDataset needs."]
    return []
