"""Packed folders are whole or absent: write into a hidden folder beside, rename when complete, never redo in vain."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cadiff.errors import ConfigError
from cadiff.files import sha256, sync_folder
from cadiff.shards.manifest import read_manifest
from cadiff.shards.record import Progress, safe_key
from cadiff.shards.writer import Pack, fingerprint


def pack_folder(
    out: str | Path,
    kind: str,
    options: dict[str, Any],
    sources: dict[str, Path],
    fill: Callable[[Pack], None],
    progress: Progress,
) -> dict[str, Any]:
    """Make the packed folder ``out``, or find that it is already there.

    Args:
        options: everything that decides the result, JSON values only.
        sources: every input file by a name relative to the user's folder; all are hashed.
        fill: adds the records and pictures to the Pack it is given.

    Returns:
        ``{"folder", "kind", "hash", "already", "samples", "subjects", "voxels", "stimuli", "classes", "dropped",
        "notes", "bytes", "seconds"}``.

    Raises:
        ConfigError: ``out`` holds something else, or the same kind packed with other options or inputs.
        DataError: whatever ``fill`` finds wrong.
    """
    started, out = time.monotonic(), Path(out)
    options = json.loads(json.dumps(options, sort_keys=True))
    already = _compare_existing(out, kind, options, sources, progress)
    if not already:
        partial = _fresh_partial(out)
        try:
            pack = Pack(partial, kind, options, sources, progress)
            fill(pack)
            pack.finish()
            _publish(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {**_summary(out), "already": already, "seconds": round(time.monotonic() - started, 3)}


def _compare_existing(out: Path, kind: str, options: dict, sources: dict[str, Path], progress: Progress) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "manifest.json").is_file():
        raise ConfigError(f"{out}: exists and is not a packed folder. Choose another output folder, or remove it.")
    manifest = read_manifest(out)
    remedy = "Remove it to pack again, or choose another output folder."
    if (manifest.kind, manifest.options) != (kind, options):
        changed = [k for k in sorted({*options, *manifest.options}) if options.get(k) != manifest.options.get(k)]
        raise ConfigError(f"{out}: already packed with other options ({', '.join(changed) or manifest.kind}). {remedy}")
    before = {entry.name: entry.model_dump() for entry in manifest.sources}
    for done, (name, path) in enumerate(sources.items()):
        progress("checking inputs", done, len(sources))
        if before.get(name) != fingerprint(name, path):
            raise ConfigError(f"{out}: already packed, but {name} has changed since. {remedy}")
    if gone := before.keys() - sources.keys():
        raise ConfigError(f"{out}: already packed from inputs that are gone now ({sorted(gone)[0]}). {remedy}")
    return True


def _fresh_partial(out: Path) -> Path:
    """A new hidden folder beside ``out``; those left by killed packs of this machine are removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{out.name}.partial-{safe_key(socket.gethostname())}-"
    for stale in out.parent.glob(f"{glob.escape(stem)}*"):
        if stale.name.removeprefix(stem).isdigit() and not _alive(int(stale.name.removeprefix(stem))):
            shutil.rmtree(stale, ignore_errors=True)
    partial = out.parent / f"{stem}{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _publish(partial: Path, out: Path) -> None:
    sync_folder(partial)
    try:
        os.rename(partial, out)
    except OSError as problem:
        raise ConfigError(f"{out}: appeared while packing ({problem}). Remove it, or choose another folder.") from None
    sync_folder(out.parent)


def _summary(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    scans = manifest.scans.bytes if manifest.scans else 0
    return {
        "folder": str(out),
        "kind": manifest.kind,
        "hash": sha256(out / "manifest.json"),
        "samples": dict(manifest.samples),
        "subjects": [subject.name for subject in manifest.subjects],
        "voxels": max((subject.voxels for subject in manifest.subjects), default=0),
        "stimuli": len(manifest.stimuli),
        "classes": len(manifest.classes),
        "dropped": [entry.model_dump() for entry in manifest.dropped],
        "notes": manifest.notes,
        "bytes": sum(entry.bytes for entry in manifest.files) + scans,
    }
