"""Join several packed folders into one: their shards copied as they are, their names numbered anew, leaks refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.files import sha256
from cadiff.shards.absorb import absorb
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.stored import StoredSet, open_stored, refuse_inside
from cadiff.shards.writer import Pack

_SHARD = re.compile(r"(fmri|images)-[0-9]{6}\.tar")


def merge(folders: Sequence[str | Path], out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Make the packed folder ``out`` of two or more others, in the order given.

    A name means the same in all sets: subjects, runs, stimuli and classes of one name become one. The kind is the
    common one or "merged". ``split_by`` is the common one; where the sets differ, it is the strictest of "subject" and
    "run" that holds for the merged set, else "tail" if one of them has it, else "stimulus".

    Returns:
        ``pack_folder``'s summary, and ``shared_subjects``: names that occur in more than one set.

    Raises:
        ConfigError: fewer than two sets, the same data twice, other storage types, or pictures with fMRI.
        DataError: a damaged set, a leak, another picture or another voxel space under the same name.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise ConfigError(f"merging {len(folders)} set: name two or more packed folders and the folder to make.")
    for folder in folders:
        if "://" in str(folder) or not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder. Sets are merged from local packed folders; copy it first.")
        refuse_inside(folder, out)
    sets = [open_stored(folder) for folder in folders]
    _compare(folders, sets)
    kinds = {stored.manifest.kind for stored in sets}
    sources = {f"set-{number}/manifest.json": stored.manifest_path for number, stored in enumerate(sets)}

    def fill(pack: Pack) -> None:
        bounds, one_space = [0], _common_arrays(sets)
        for number, (folder, stored) in enumerate(zip(folders, sets)):
            progress("merging sets", number, len(sets))
            _take(pack, folder, stored, one_space)
            bounds.append(len(pack.sample["split"]))
            if stored.manifest.scans:
                pack.drop(f"{stored.manifest.scans.path} of set {number}", "archives of scans are not merged")
        _refuse_twice(pack, folders, bounds)
        pack.split_by = _rule(pack, folders, [stored.manifest.split_by for stored in sets], bounds)
        pack.hashes.clear()  # the sets' own sources are told in the notes; this set's sources are their manifests
        pack.notes = {"sets": [stored.provenance() for stored in sets]}

    kind = kinds.pop() if len(kinds) == 1 else "merged"
    options = {"merge": [stored.version for stored in sets]}
    told = pack_folder(out, kind, options, sources, fill, progress, dtype=sets[0].manifest.dtype)
    names = [name for stored in sets for name in stored.names["subject"]]
    return {**told, "shared_subjects": sorted({name for name in names if names.count(name) > 1})}


def _compare(folders: list[Path], sets: list[StoredSet]) -> None:
    """Refuse what cannot be one set, before anything is copied."""
    first, seen = sets[0], {}
    for folder, stored in zip(folders, sets):
        if stored.version in seen:
            raise ConfigError(f"{folder}: the same data as {seen[stored.version]}. Name each set once.")
        seen[stored.version] = folder
        if stored.manifest.dtype != first.manifest.dtype:
            raise ConfigError(
                f"{folder}: stored as {stored.manifest.dtype}, {folders[0]} as {first.manifest.dtype}. Pack them with "
                "the same dtype, or list both in data.shards, which mixes them."
            )
        if stored.voxels.any() != first.voxels.any():
            raise ConfigError(
                f"{folder} and {folders[0]}: one holds pictures only, the other fMRI; a set is either. List both in "
                "data.shards instead."
            )
        for entry in stored.manifest.files:
            if entry.path != "index.npz" and not _SHARD.fullmatch(entry.path):
                raise DataError(f"{folder / entry.path}: not the name of a shard, such as fmri-000000.tar. Pack again.")


def _take(pack: Pack, folder: Path, stored: StoredSet, one_space: bool) -> None:
    """Absorb one set; the copies must be what its manifest lists."""
    numbers = {name: number for number, name in enumerate(pack.names("stimulus"))}
    for name, has, digest in zip(
        stored.names["stimulus"], stored.index.image["shard"] >= 0, stored.index.image["digest"]
    ):
        before = pack.image.get(numbers.get(name, -1))
        if has and before is not None and before[-1] != digest:
            raise DataError(f"{folder}: stimulus {name} is another picture here than in an earlier set. Rename one.")
    shards, arrays = len(pack.shards), len(pack.arrays)
    absorb(pack, folder, share=False)
    tars = [entry for entry in stored.manifest.files if entry.path.endswith(".tar")]
    for copied, entry in zip(pack.shards[shards:], tars, strict=True):
        if sha256(copied) != entry.sha256:
            raise DataError(
                f"{folder / entry.path}: its sha256 differs from manifest.json. Mend it with `cadiff shards repair`."
            )
    if not one_space and len(stored.voxels):
        _give_to_each(pack, arrays, stored.names["subject"], folder)


def _common_arrays(sets: list[StoredSet]) -> bool:
    """Whether what each set keeps for all of its subjects ("*") is the same in all sets."""
    kept = [
        {
            (entry.role, entry.name): (values.dtype.str, values.shape, values.tobytes())
            for entry in stored.manifest.arrays
            if entry.subject == "*" and (values := stored.index.extra[entry.array]) is not None
        }
        for stored in sets
    ]
    return all(arrays == kept[0] for arrays in kept)


def _give_to_each(pack: Pack, known: int, subjects: list[str], folder: Path) -> None:
    """Turn one set's arrays for "*" into arrays of its own subjects: they do not describe the other sets' subjects."""
    kept = {(entry["subject"], entry["role"], entry["name"]): entry for entry in pack.arrays[:known]}
    for entry in pack.arrays[known:]:
        for subject in subjects if entry["subject"] == "*" else [entry["subject"]]:
            key = (subject, entry["role"], entry["name"])
            new, before = pack.values[entry["array"]], pack.values[kept.get(key, entry)["array"]]
            if not np.array_equal(new, before, equal_nan=new.dtype.kind == "f"):
                raise DataError(f"{folder}: the {key[1]} {key[2]} of subject {subject} differs from another set's.")
            kept.setdefault(key, {**entry, "subject": subject})
    # Numbered anew, so that Pack.attach, which counts entries, does not use a number again.
    numbers: dict[str, str] = {}
    for entry in kept.values():
        numbers.setdefault(entry["array"], f"array_{len(numbers):06d}")
    pack.values = {new: pack.values[old] for old, new in numbers.items()}
    pack.arrays = [{**entry, "array": numbers[entry["array"]]} for entry in kept.values()]


def _refuse_twice(pack: Pack, folders: list[Path], bounds: list[int]) -> None:
    """Refuse sets that overlap: a sample in two of them would count twice."""
    names = ("subject", "run", "session", "stimulus", "start", "repeat", "crc32c")
    columns = [np.array(pack.sample[name], dtype=np.int64) for name in names]
    set_N = np.repeat(np.arange(len(folders)), np.diff(bounds))
    order = np.lexsort((set_N, *columns))  # equal samples become neighbours, by set
    same = np.ones(len(order) - 1, dtype=bool)
    for column in columns:
        same &= np.diff(column[order]) == 0
    twice = np.flatnonzero(same & (np.diff(set_N[order]) > 0))
    if len(twice):
        one, other = order[twice[0]], order[twice[0] + 1]
        row = {name: int(column[one]) for name, column in zip(names, columns)}
        who = [f"{name} {pack.names(name)[row[name]]}" for name in ("subject", "run", "stimulus") if row[name] >= 0]
        raise ConfigError(
            f"{folders[set_N[one]]} and {folders[set_N[other]]}: {len(twice):,} samples are in both, such as "
            f"{', '.join(who)}. Leave one set out, or take the parts that differ with `cadiff shards split`."
        )


def _rule(pack: Pack, folders: list[Path], rules: list[str], bounds: list[int]) -> str:
    """What keeps the splits of the merged set apart; what a set promised of its subjects and runs must still hold."""
    if len(set(rules)) == 1:
        return rules[0]
    split_N, subject_N, run_N = (np.array(pack.sample[name], dtype=np.int64) for name in ("split", "subject", "run"))
    families: dict[str, int] = {}
    for name in pack.names("subject"):
        families.setdefault(pack.families.get(name) or f"\0{name}", len(families))
    family_S = [families[pack.families.get(name) or f"\0{name}"] for name in pack.names("subject")]
    numbers = {
        "subject": np.array([*family_S, -1])[subject_N],
        "run": subject_N * (len(pack.names("run")) + 1) + run_N,
    }
    for folder, rule, first, last in zip(folders, rules, bounds, bounds[1:]):
        if rule in numbers:
            mine_N = np.isin(numbers[rule], numbers[rule][first:last])
            if not _apart(numbers[rule][mine_N], split_N[mine_N]):
                raise DataError(
                    f"{folder}: its splits are kept apart by {rule}, but another set has one of its {rule}s in another "
                    "split; a score on that would be worthless. Take other parts with `cadiff shards split`."
                )
    for rule in ("subject", "run"):
        if _apart(numbers[rule], split_N):
            return rule
    return "tail" if "tail" in rules else "stimulus"


def _apart(numbers: np.ndarray, split_N: np.ndarray) -> bool:
    """Whether each number occurs in one split only."""
    return len(np.unique(numbers)) == len(np.unique(numbers * 3 + split_N))
