"""Take a finished packed folder into a pack: its tars as they are, its names in the pack's own numbering."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.index import BLOCK_COLUMNS, IMAGE_COLUMNS, Index, read_index
from cadiff.shards.manifest import Manifest, read_manifest, shard_names
from cadiff.shards.writer import NAMED, Pack


def absorb(pack: Pack, folder: Path, *, share: bool) -> None:
    """Append another packed folder's samples; the shards are the same files under a second name, or copies.

    Raises:
        DataError: another storage type, a subject of the same name with other voxels, or a source of a part (``share``)
            that was not the same all along.
    """
    manifest = read_manifest(folder)
    index = read_index(folder / "index.npz", manifest)
    if manifest.dtype != pack.dtype:
        raise DataError(f"{folder}: stored as {manifest.dtype}, the others as {pack.dtype}. Pack them alike.")
    maps = {column: _numbers(pack, column, names) for column, names in zip(NAMED, _names(manifest))}
    _take_voxels(pack, manifest, folder)
    first = len(pack.sample["split"])
    for name, values in pack.sample.items():
        column = index.sample[name].astype(np.int64)
        values.extend((maps[name][column] if name in NAMED else column).tolist())
    shard_of = [pack.tars[name.split("-")[0]].adopt(folder / name, share=share) for name in shard_names(manifest)]
    _take_blocks(pack, index, np.array([*shard_of, -1]), first)
    _take_pictures(pack, index, shard_of, maps["stimulus"])
    known = {(entry["subject"], entry["role"], entry["name"]): entry["array"] for entry in pack.arrays}
    for entry in manifest.arrays:
        owner = (entry.subject, entry.role, entry.name)
        _take_array(pack, owner, known.get(owner), index.extra[entry.array], folder)
    pack.dropped += [entry.model_dump() for entry in manifest.dropped]
    for name, value in manifest.notes.items():
        _take_note(pack, name, value)
    for source in manifest.sources:
        entry = source.model_dump()
        if pack.hashes.setdefault(source.name, entry) != entry and share:  # other sets' files may have the same names
            raise DataError(f"{source.name}: changed while it was being packed. Start again.")


def _names(manifest: Manifest) -> list[list[str]]:
    subjects = [subject.name for subject in manifest.subjects]
    return [subjects, manifest.runs, manifest.sessions, manifest.stimuli, manifest.classes]


def _numbers(pack: Pack, column: str, names: list[str]) -> np.ndarray:
    """The pack's numbers of a part's names; -1 stays -1, as the last entry is reached by index -1."""
    return np.array([*(pack.number(column, name) for name in names), -1], dtype=np.int64)


def _take_voxels(pack: Pack, manifest: Manifest, folder: Path) -> None:
    for subject in manifest.subjects:
        number = pack.number("subject", subject.name)
        if number == len(pack.voxels):
            pack.voxels.append(subject.voxels)
        if pack.voxels[number] != subject.voxels:
            raise DataError(
                f"{folder}: subject {subject.name} has {subject.voxels:,} voxels here and {pack.voxels[number]:,} in "
                "another set. They are different people or another choice of voxels; rename or repack one."
            )
        if subject.family:
            pack.families[subject.name] = subject.family


def _take_blocks(pack: Pack, index: Index, shard_of: np.ndarray, first: int) -> None:
    for name in BLOCK_COLUMNS:
        column = index.block[name]
        if name == "shard":
            column = shard_of[column]
        pack.block[name].extend((column + first if name == "first" else column).tolist())


def _take_pictures(pack: Pack, index: Index, shard_of: list[int], stimulus_of: np.ndarray) -> None:
    for number in np.flatnonzero(index.image["shard"] >= 0).tolist():
        shard, *rest = (int(index.image[name][number]) for name in IMAGE_COLUMNS)
        pack.image.setdefault(int(stimulus_of[number]), (shard_of[shard], *rest))


def _take_array(pack: Pack, owner: tuple[str, str, str], known: str | None, values: np.ndarray, folder: Path) -> None:
    subject, role, name = owner
    if known is None:
        pack.attach(subject, role, values, name)
    elif not np.array_equal(pack.values[known], values, equal_nan=values.dtype.kind == "f"):
        raise DataError(
            f"{folder}: the {role} {name} of subject {subject} differs from the other sets'. Their signals do not lie "
            "in one voxel space or were normalised differently; pack them together instead."
        )


def _take_note(pack: Pack, name: str, value: object) -> None:
    known = pack.notes.get(name)
    if isinstance(known, dict) and isinstance(value, dict):
        known.update(value)
    elif isinstance(known, list) and isinstance(value, list):
        known.extend(entry for entry in value if entry not in known)
    else:
        pack.notes.setdefault(name, value)
