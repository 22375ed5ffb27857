"""What an attacker, or a broken program, could write: hashes agree with the bytes, but the bytes are wrong or absurd.

An injury is a function (folder, rng, turn) -> names, as in injuries.py. Files now contradict each other, and nothing
says which is right, so a message may name any that the manifest joins.
"""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import packed_folder

TRILLION = 10**12


def any_file(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} | {"index.npz", "manifest.json"}


def reseal(folder: Path, change=lambda manifest: None) -> set[str]:
    """Change the manifest and let every size and hash in it agree with the files that are there."""
    manifest = packed_folder.reseal(folder, change)
    listed = [*manifest.get("files", []), manifest.get("scans") or {"path": "index.npz"}]
    return any_file(folder) | {entry["path"] for entry in listed}


def reindex(folder: Path, change) -> set[str]:
    """Change arrays of the index, and let its hash agree."""
    packed_folder.reindex(folder, change)
    return reseal(folder)


def put(folder: Path, name: str, data: bytes) -> set[str]:
    (folder / name).write_bytes(data)
    return reseal(folder)


# Changes of the manifest: (manifest, rng) -> nothing. Each leaves it well-formed JSON.
def _swap(values: list, rng: np.random.Generator) -> None:
    one, other = rng.choice(len(values), 2, replace=False).tolist()
    values[one], values[other] = values[other], values[one]


def _swap_names(manifest: dict, rng: np.random.Generator) -> None:
    one, other = manifest["subjects"][:2]
    one["name"], other["name"] = other["name"], one["name"]


def _entry(manifest: dict, rng: np.random.Generator) -> dict:
    return manifest["files"][int(rng.integers(len(manifest["files"])))]


def _names(manifest: dict) -> list[str]:
    return manifest["stimuli"] or manifest["runs"]


def _scans(path: str) -> dict:
    return {"path": path, "arrays": 1, "bytes": 1, "sha256": "0" * 64}


MANIFESTS = {
    "a voxel more": lambda m, rng: m["subjects"][0].update(voxels=m["subjects"][0]["voxels"] + 1),
    "a voxel less": lambda m, rng: m["subjects"][0].update(voxels=m["subjects"][0]["voxels"] - 1),
    "a billion voxels": lambda m, rng: m["subjects"][0].update(voxels=10**9),
    "most voxels there are": lambda m, rng: m["subjects"][0].update(voxels=2**53 - 1),
    "no voxels": lambda m, rng: m["subjects"][0].update(voxels=0),
    "names of subjects exchanged": _swap_names,
    "a subject more": lambda m, rng: m["subjects"].append({"name": "x", "voxels": 1, "family": ""}),
    "a subject less": lambda m, rng: m["subjects"].pop(),
    "classes exchanged": lambda m, rng: _swap(m["classes"] or m["runs"], rng),
    "stimuli exchanged": lambda m, rng: _swap(_names(m), rng),
    "runs exchanged": lambda m, rng: _swap(m["runs"], rng),
    "a name changed": lambda m, rng: _names(m).__setitem__(1, "another"),
    "a name twice": lambda m, rng: _names(m).__setitem__(1, _names(m)[0]),
    "a name less": lambda m, rng: _names(m).pop(),
    "a name that steers a terminal": lambda m, rng: _names(m).__setitem__(0, "\x1b[2J"),
    "a name that is no text": lambda m, rng: _names(m).__setitem__(0, "\ud800"),
    "a name of a megabyte": lambda m, rng: _names(m).__setitem__(0, "x" * 10**6),
    "counts of the splits": lambda m, rng: m["samples"].update(train=m["samples"]["train"] - 1, val=99),
    "another storage type": lambda m, rng: m.update(dtype="int16" if m["dtype"] == "float16" else "float16"),
    "a wider storage type": lambda m, rng: m.update(dtype="float32"),
    "another way of splitting": lambda m, rng: m.update(split_by="run" if m["kind"] == "hcp" else "subject"),
    "another kind": lambda m, rng: m.update(kind="nsd"),
    "another size": lambda m, rng: _entry(m, rng).update(bytes=int(rng.integers(2**40))),
    "another hash": lambda m, rng: _entry(m, rng).update(sha256="0" * 64),
    "a file twice": lambda m, rng: m["files"].append(_entry(m, rng)),
    "files in another order": lambda m, rng: _swap(m["files"][:2], rng) or m["files"].reverse(),
    "a file that is not there": lambda m, rng: m["files"].append({**_entry(m, rng), "path": "more-000000.tar"}),
    "a shard not listed": lambda m, rng: m["files"].pop(0),
    "no index": lambda m, rng: m["files"].pop(),
    "an array that is not there": lambda m, rng: m["arrays"][0].update(array="array_9"),
    "an array under another role": lambda m, rng: [entry.update(role="roi") for entry in m["arrays"]],
    "no scans": lambda m, rng: m.update(scans=None if m["scans"] else _scans("other.zarr")),
    "a number for a list": lambda m, rng: m.update(stimuli=7),
    "a key more": lambda m, rng: m.update(surprise=1),
    "a key less": lambda m, rng: m.pop(sorted(m)[int(rng.integers(len(m)))]),
    "another version": lambda m, rng: m.update(format="cadiff-shards/3"),
    "no number": lambda m, rng: _entry(m, rng).update(bytes=float("nan")),
    "a negative number": lambda m, rng: _entry(m, rng).update(bytes=-1),
    "a path upwards": lambda m, rng: _entry(m, rng).update(path="../outside"),
    "a path from the root": lambda m, rng: _entry(m, rng).update(path="/etc/passwd"),
    "a path into a folder": lambda m, rng: _entry(m, rng).update(path="a/b.tar"),
    "scans upwards": lambda m, rng: m.update(scans=_scans("..")),
    "the manifest itself": lambda m, rng: _entry(m, rng).update(path="manifest.json"),
}  # fmt: skip


def manifest_edited(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """One of the changes above, by somebody who thinks of no checksum: an accident."""
    change = list(MANIFESTS.values())[int(rng.integers(len(MANIFESTS)))]
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest, rng)
    path.write_text(json.dumps(manifest))
    return {"manifest.json"}


# Those of them that must be noticed before anything is fetched or read.
AT_ONCE = (
    "a billion voxels", "most voxels there are", "another size", "another hash", "a file that is not there", "no index",
    "a path upwards", "a path from the root", "a path into a folder", "scans upwards", "the manifest itself",
)  # fmt: skip


def manifest_refused(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """Of the changes above, those that opening a set must refuse."""
    change = MANIFESTS[AT_ONCE[turn % len(AT_ONCE)]]
    return reseal(folder, lambda manifest: change(manifest, rng))


def manifest_wrong(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    change = list(MANIFESTS.values())[turn % len(MANIFESTS)]
    return reseal(folder, lambda manifest: change(manifest, rng))


# Changes of one array of the index: (array, rng) -> array.
def _one_value(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    values = values.copy()
    limits = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
    far = (0, 1, -1, 3, 2**20, 2**28, -(2**31), 2**31 - 1, 2**62, -(2**62))
    extremes = [value for value in far if limits.min <= value <= limits.max]
    values.flat[rng.integers(values.size)] = extremes[rng.integers(len(extremes))]
    return values


def _two_exchanged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    values = values.copy()
    differ = np.flatnonzero(values != values.flat[0])
    if len(differ):
        other = differ[rng.integers(len(differ))]
        values[[0, other]] = values[[other, 0]]
    return values


ARRAYS = {
    "a value": _one_value,
    "two values exchanged": _two_exchanged,
    "all a little more": lambda a, rng: a + a.dtype.type(1),
    "uint64": lambda a, rng: a.astype(np.uint64),
    "float64": lambda a, rng: a.astype(np.float64),
    "the other byte order": lambda a, rng: a.astype(a.dtype.newbyteorder(">")),
    "complex": lambda a, rng: a.astype(complex),
    "text": lambda a, rng: a.astype("U"),
    "objects": lambda a, rng: np.array([{"evil": 1}] * max(1, a.size), dtype=object),
    "fields": lambda a, rng: np.zeros(a.shape, dtype=[("x", "<i8"), ("y", "<f4")]),
    "one number": lambda a, rng: a.reshape(-1)[0],
    "two dimensions": lambda a, rng: a.reshape(1, -1),
    "one entry more": lambda a, rng: np.append(a, a[-1:]),
    "one entry less": lambda a, rng: a[:-1],
    "empty": lambda a, rng: a[:0],
}


def index_wrong(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """Any array, in each of the ways above in turn."""
    names = sorted(np.load(folder / "index.npz").files)
    name, way = names[int(rng.integers(len(names)))], list(ARRAYS.values())[turn % len(ARRAYS)]
    return reindex(folder, lambda arrays: arrays.update({name: way(arrays[name], rng)}))


def index_odd(folder: Path, rng: np.random.Generator, turn: int) -> set[str]:
    """An archive that says odd things of its members."""
    path = folder / "index.npz"
    arrays = dict(np.load(path))
    name = sorted(arrays)[int(rng.integers(len(arrays)))]
    kind = turn % 7
    with zipfile.ZipFile(path) as archive:
        parts = {m: archive.read(m) for m in archive.namelist()}
    member = f"{name}.npy"
    if kind == 0:  # rows that nobody has
        parts[member] = npy_header(f"({TRILLION},)") + parts[member][128:]
    elif kind == 1:  # not an array at all
        parts[member] = b"not an array"
    elif kind == 2:  # a header that is not Python
        parts[member] = npy_header("((((", whole=True)
    elif kind == 3:
        parts["../../evil.npy"] = parts[member]
    elif kind == 4:
        parts.pop(member)
    elif kind == 5:
        parts[member] = npy_header("(9223372036854775807, 9223372036854775807)")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, data in parts.items():
            archive.writestr(key, data)
    if kind == 6:  # the central directory lies about sizes
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\x01\x02")
        struct.pack_into("<II", data, at + 20, 2**32 - 2, 2**32 - 2)
        path.write_bytes(data)
    return reseal(folder)


def npy_header(shape: str, *, whole: bool = False) -> bytes:
    """A .npy header of 128 bytes with any text as its shape, or as all of it."""
    text = shape if whole else f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode().ljust(117) + b"\n"
