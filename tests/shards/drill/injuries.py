"""Accidents that befall the files of a packed set: cut short, flipped, missing, exchanged, or something else in place.

An injury is a function (folder, rng, turn) -> names: it harms the set in ``folder`` and returns what a message about
it must name, one of them at least. ``turn`` counts the injuries of a kind, so that each kind goes round all sorts of
files; ``rng`` chooses the place. Bytes change and no hash follows, so a reader must never be given wrong data.
"""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Injury = Callable[[Path, np.random.Generator, int], set[str]]


def sorts(folder: Path) -> dict[str, list[Path]]:
    """The files of a set by their sort, the sorts that it has."""
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {
        "signals": [path for path in inside if path.name.startswith("fmri-")],
        "pictures": [path for path in inside if path.name.startswith("images-")],
        "index": [path for path in inside if path.name == "index.npz"],
        "manifest": [path for path in inside if path.name == "manifest.json"],
        "chunk": [path for path in inside if path.parent.name in ("c", "0", "1") and path.name.isdigit()],
        "zarr.json": [path for path in inside if path.name == "zarr.json"],
    }
    return {sort: paths for sort, paths in found.items() if paths}


def pick(folder: Path, rng: np.random.Generator, turn: int) -> Path:
    """A file of the sort whose turn it is."""
    paths = list(sorts(folder).values())
    paths = paths[turn % len(paths)]
    return paths[rng.integers(len(paths))]


def named(folder: Path, path: Path) -> set[str]:
    """What messages call a file: the archive of scans is one entry of the manifest."""
    return {path.relative_to(folder).parts[0]}


def truncate(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    path = pick(folder, rng, turn)
    os.truncate(path, 0 if rng.random() < 0.25 else int(rng.integers(path.stat().st_size)))
    return named(folder, path)


def grow(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """Bytes are appended, as by a copy that went on into the next file; or ten gigabytes of hole."""
    path = pick(folder, rng, turn)
    if rng.random() < 0.4:
        os.truncate(path, 10**10)
    else:
        path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 2000))))
    return named(folder, path)


def remove(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    path = pick(folder, rng, turn)
    path.unlink()
    return named(folder, path)


def replace(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """In the place of a file: a folder, a pipe, a link to nothing, to itself, or to a device that never ends."""
    path = pick(folder, rng, turn)
    path.unlink()
    kind = ("folder", "pipe", "dangling", "loop", "device")[int(rng.integers(5))]
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"dangling": "nowhere", "loop": path.name, "device": "/dev/zero"}[kind])
    return named(folder, path)


def flip_bytes(path: Path, rng: np.random.Generator, start: int, stop: int) -> None:
    """Flip a bit, or write up to 16 random bytes, within [start, stop)."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(start, stop))
    if rng.random() < 0.5:
        data[at] ^= 1 << int(rng.integers(8))
    else:
        before = bytes(data[at : min(stop, at + 16)])
        while data[at : at + len(before)] == before:
            data[at : at + len(before)] = rng.bytes(len(before))
    path.write_bytes(data)


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        return archive.getmembers()


def flip_in_tar(prefix: str, wanted: str) -> Injury:
    """Flip within one part of a member: "header" (of the tar), "npy" (its header), "data", "json" or "padding"."""

    def injure(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
        paths = sorts(folder)[prefix]
        path = paths[turn % len(paths)]
        found = [m for m in members(path) if wanted == "header" or m.name.endswith(".json") == (wanted == "json")]
        member = found[int(rng.integers(len(found)))]
        start, stop = member.offset_data, member.offset_data + member.size
        if wanted == "header":
            start, stop = member.offset, member.offset_data
        elif wanted == "npy":
            stop = start + 128
        elif wanted == "padding":
            start, stop = stop, start + -(-member.size // 512) * 512
        elif prefix == "signals" and wanted == "data":
            start += 128
        flip_bytes(path, rng, start, max(stop, start + 1))
        return named(folder, path)

    return injure


def flip_in(sort: str) -> Injury:
    def injure(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
        paths = sorts(folder)[sort]
        path = paths[turn % len(paths)]
        flip_bytes(path, rng, 0, path.stat().st_size)
        return named(folder, path)

    return injure


def exchange(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """Two files of one sort, or of two, change places."""
    found = sorts(folder)
    one, other = (found[sort] for sort in _pairs(found)[turn % len(_pairs(found))])
    first = one[int(rng.integers(len(one)))]
    second = next(p for p in rng.permutation([q for q in other if q != first]) if p.read_bytes() != first.read_bytes())
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return named(folder, first) | named(folder, second)


def _pairs(found: dict[str, list[Path]]) -> list[tuple[str, str]]:
    same = [(sort, sort) for sort in ("signals", "pictures", "chunk", "zarr.json") if sort in found]
    return [*same, ("signals", "index"), ("index", "manifest"), *([("signals", "pictures")] * ("pictures" in found))]


def exchange_with(other: Path) -> Injury:
    """A file comes from ``other``: another set whose files have the same names and sizes."""

    def injure(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
        path = pick(folder, rng, turn)
        theirs = other / path.relative_to(folder)
        if theirs.read_bytes() == path.read_bytes():  # a zarr.json says the same of both
            return remove(folder, rng, turn)
        shutil.copyfile(theirs, path)
        return {path.name} if path.name == "manifest.json" else named(folder, path)

    return injure


def accidents(other: Path, has_pictures: bool, has_scans: bool) -> dict[str, Injury]:
    """Kinds of accidents that can befall a set."""
    kinds: dict[str, Injury] = {
        "cut short": truncate,
        "grown": grow,
        "missing": remove,
        "another thing in its place": replace,
        "exchanged": exchange,
        "from another set": exchange_with(other),
        "flip: block": flip_in_tar("signals", "data"),
        "flip: .npy header": flip_in_tar("signals", "npy"),
        "flip: tar header": flip_in_tar("signals", "header"),
        "flip: .json member": flip_in_tar("signals", "json"),
        "flip: padding": flip_in_tar("signals", "padding"),
        "flip: index.npz": flip_in("index"),
        "flip: manifest.json": flip_in("manifest"),
    }
    if has_pictures:
        kinds["flip: picture"] = flip_in_tar("pictures", "data")
        kinds["flip: tar of pictures"] = flip_in_tar("pictures", "header")
    if has_scans:
        kinds |= {"flip: zarr chunk": flip_in("chunk"), "flip: zarr.json": flip_in("zarr.json")}
    return kinds
