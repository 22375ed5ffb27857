"""The end of packing: the index and the manifest of a Pack, written so that the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256, write_json
from cadiff.shards.index import IMAGE_COLUMNS, read_index
from cadiff.shards.leaks import find_leak
from cadiff.shards.manifest import FORMAT, manifest_checksum, parse_manifest
from cadiff.shards.record import SPLITS

if TYPE_CHECKING:
    from cadiff.shards.writer import Pack

_TOOLS = ("cadiff", "numpy", "torch", "webdataset", "zarr", "nibabel", "pillow")  # whose versions can change the bytes


def recipe_hash(kind: str, options: dict[str, Any], dtype: str) -> str:
    """sha256 of what decides a packed folder besides its sources."""
    text = json.dumps([FORMAT, kind, dtype, options], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(pack: Pack) -> None:
    """Write index.npz and manifest.json of a pack whose shards are closed."""
    _write_index(pack)
    files = [*pack.shards, pack.folder / "index.npz"]
    splits = np.bincount(np.array(pack.sample["split"]), minlength=3).tolist()
    subjects = zip(pack.names("subject"), pack.voxels, strict=True)
    manifest = {
        "format": FORMAT,
        "kind": pack.kind,
        "dtype": pack.dtype,
        "split_by": pack.split_by,
        "subjects": [{"name": n, "voxels": v, "family": pack.families.get(n, "")} for n, v in subjects],
        "runs": pack.names("run"),
        "sessions": pack.names("session"),
        "stimuli": pack.names("stimulus"),
        "classes": pack.names("label"),
        "samples": dict(zip(SPLITS, splits)),
        "options": pack.options,
        "recipe_sha256": recipe_hash(pack.kind, pack.options, pack.dtype),
        "made_by": versions(),
        "sources": [pack.hashes[name] for name in sorted(pack.hashes)],
        "files": [{"path": p.name, "bytes": p.stat().st_size, "sha256": sha256(p)} for p in files],
        "arrays": pack.arrays,
        "dropped": pack.dropped,
        "notes": pack.notes,
        "scans": pack.scans,
    }
    write_json(pack.folder / "manifest.json", {**manifest, "checksum": manifest_checksum(manifest)})


def refuse_leak(pack: Pack) -> None:
    """Judge the files as a reader will see them; the folder is hidden until this has passed.

    Raises:
        DataError: a split leaks; the manifest is gone, so the folder counts as unfinished.
    """
    manifest = parse_manifest(pack.folder / "manifest.json")
    leak = find_leak(read_index(pack.folder / "index.npz", manifest), manifest)
    if leak:
        (pack.folder / "manifest.json").unlink()
        raise DataError(
            f"packing {pack.kind}: {leak}; a score on such a split would be worthless. Correct the splits in the "
            "source, or choose another way of splitting."
        )


def _write_index(pack: Pack) -> None:
    absent = (-1, 0, 0, 0, 0)
    places = [pack.image.get(number, absent) for number in range(len(pack.names("stimulus")))]
    images = np.array(places, dtype=np.int64).reshape(-1, len(IMAGE_COLUMNS))
    columns = {
        f"sample_{name}": np.array(values, dtype=np.uint32 if name == "crc32c" else np.int32)
        for name, values in pack.sample.items()
    }
    for name, values in pack.block.items():
        columns[f"block_{name}"] = np.array(values, dtype=np.float32 if name == "scale" else np.int64)
    columns |= {f"image_{name}": images[:, i] for i, name in enumerate(IMAGE_COLUMNS)}
    with open(pack.folder / "index.npz", "wb") as handle:
        np.savez(handle, **columns, **pack.values)
        handle.flush()
        os.fsync(handle.fileno())


def versions() -> dict[str, str]:
    """The tools that decide the bytes of a packed folder, with their versions."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build of another name is in use; its absence is told too
            found[name] = "not installed"
    return found
