"""Packed folders under test: what their files hold, one flipped bit, and hashes made to agree with a change."""

import hashlib
import json
from pathlib import Path

import numpy as np

from cadiff.files import sha256
from cadiff.shards.manifest import manifest_checksum


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path in there."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def flip(path: Path, *places: int) -> None:
    """Flip one bit of the byte at each of these places, where the file lies: a reader may have it open."""
    with open(path, "rb+") as handle:
        for place in places:
            handle.seek(place)
            byte = handle.read(1)[0]
            handle.seek(place)
            handle.write(bytes([byte ^ 1]))


def reseal(folder: Path, change=lambda manifest: None) -> dict:
    """Change the manifest the way an attacker could: every size and hash in it agrees with the files that are there."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["files"]:
        file = folder / entry["path"]
        entry.update(bytes=file.stat().st_size, sha256=sha256(file))
    change(manifest)
    manifest["checksum"] = manifest_checksum(manifest)
    path.write_text(json.dumps(manifest))
    return manifest


def reindex(folder: Path, change) -> dict:
    """Change arrays of the index, and let the manifest agree."""
    arrays = dict(np.load(folder / "index.npz"))
    change(arrays)
    np.savez(folder / "index.npz", **arrays)
    return reseal(folder)
