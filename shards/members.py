"""What a tar shard says of itself: members as stock WebDataset needs them, whose .json members agree with the index.

The same facts are stored twice, in the tars for stock readers and in the index and the manifest for ours, so that a
name or a scale that was changed in one of them shows.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.shards.arrays import DAMAGED
from cadiff.shards.encoding import ITEM_BYTES
from cadiff.shards.index import Index
from cadiff.shards.manifest import Manifest, shard_names
from cadiff.shards.record import SPLITS

_JSON_BYTES = 16 * 1024**2  # a larger .json member is damage: those of blocks have some kB


class _NotPairs(Exception):
    """The members are not what WebDataset needs."""


def check_tar(path: Path, manifest: Manifest, index: Index | None) -> list[str]:
    """Walk the members as WebDataset would, and compare what each says of itself with the index if there is one."""
    places = _places(path, manifest, index) if index is not None else None
    problems: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for end, told in _samples(archive):
                if places is None:
                    continue
                what, number = places.pop(end, ("sample", -1))
                if number < 0:
                    problems.append(f"{path}: the sample whose values end at byte {end:,} is not in index.npz.")
                elif differs := _differs(told, what, number, manifest, index):
                    where = f"{path}: {what} {number}: its .json member"
                    problems.append(f"{where} has another {differs} than index.npz and manifest.json.")
    except _NotPairs:
        return [f"{path}: its members are not pairs <key>.npy/.png/.jpg + <key>.json, as WebDataset needs."]
    except (*DAMAGED, tarfile.TarError) as problem:
        return [f"{path}: not readable as a tar file ({problem})."]
    if places:
        what, number = next(iter(places.values()))
        problems.append(f"{path}: {what} {number} of index.npz, and {len(places) - 1} more, are no members of it.")
    return problems


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[int, Any]]:
    """Each sample's last byte of values, and what its .json member says; None if that is not readable."""
    seen: set[str] = set()
    before: tarfile.TarInfo | None = None
    for member in archive:
        key, dot, _ = member.name.partition(".")
        if not member.isreg() or member.issparse() or not dot or member.name.count(".") > 1 or "/" in member.name:
            raise _NotPairs
        if before is None:
            before = member
            continue
        two = sorted((before, member), key=lambda part: part.name.endswith(".json"))
        if before.name.partition(".")[0] != key or key in seen or not two[1].name.endswith(".json"):
            raise _NotPairs
        seen.add(key)
        before = None
        yield two[0].offset_data + two[0].size, _read(archive, two[1])
    if before is not None:
        raise _NotPairs


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    if member.size > _JSON_BYTES:
        return None
    try:
        return json.loads(archive.extractfile(member).read())
    except (ValueError, RecursionError):
        return None


def _places(path: Path, manifest: Manifest, index: Index) -> dict[int, tuple[str, int]]:
    """Where the values of each block and picture of a shard end: last byte -> ("block" or "picture", number)."""
    shard, block, image = shard_names(manifest).index(path.name), index.block, index.image
    found: dict[int, tuple[str, int]] = {}
    for number in np.flatnonzero(block["shard"] == shard).tolist():
        voxels = manifest.subjects[index.sample["subject"][block["first"][number]]].voxels
        length = int(block["rows"][number]) * voxels * ITEM_BYTES[manifest.dtype]
        found[int(block["offset"][number]) + length] = "block", number
    for number in np.flatnonzero(image["shard"] == shard).tolist():
        found[int(image["offset"][number] + image["bytes"][number])] = "picture", number
    return found


def _differs(told: Any, what: str, number: int, manifest: Manifest, index: Index) -> str:
    """The first fact that a .json member says otherwise than the index, or nothing."""
    if not isinstance(told, dict):
        return "text, none that can be read,"
    facts = {"stimulus": manifest.stimuli[number]} if what == "picture" else _facts(number, manifest, index)
    return next((name for name, value in facts.items() if told.get(name) != value), "")


def _facts(block: int, manifest: Manifest, index: Index) -> dict[str, Any]:
    """What the index and the manifest say of a block, in the form in which its .json member says it."""
    first, rows = (int(index.block[name][block]) for name in ("first", "rows"))
    column = {name: values[first : first + rows].tolist() for name, values in index.sample.items()}

    def of_all(values: list) -> Any:
        return values[0] if len(set(values)) == 1 else values

    def names(known: list[str], name: str) -> list[str | None]:
        return [known[number] if number >= 0 else None for number in column[name]]

    return {
        "subject": manifest.subjects[column["subject"][0]].name,
        "session": of_all(names(manifest.sessions, "session")) or "",
        "run": of_all(names(manifest.runs, "run")),
        "split": [SPLITS[number] for number in column["split"]],
        "stimulus": names(manifest.stimuli, "stimulus"),
        "label": names(manifest.classes, "label"),
        "repeat": column["repeat"],
        "start": None if of_all(column["start"]) == -1 else column["start"],
        "frames": of_all(column["frames"]),
        "scale": float(index.block["scale"][block]),
    }
