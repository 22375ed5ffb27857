"""Packed folders are whole or absent: write into a hidden folder beside, rename when complete, never redo in vain."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cadiff.errors import ConfigError
from cadiff.files import sha256, sync_folder, sync_tree
from cadiff.shards.encoding import DTYPES
from cadiff.shards.index import read_index
from cadiff.shards.manifest import read_manifest
from cadiff.shards.partial import discard, fresh_partial, join_parts, remove_parts
from cadiff.shards.record import SPLITS, Progress
from cadiff.shards.writer import Fingerprint, Pack, fingerprint

_REMEDY = "Remove it to pack again, or choose another output folder."


class OtherOptions(ConfigError):
    """A set is there that was packed with other options. ``changed``: what each was and is now, by its name."""

    def __init__(self, out: Path, changed: dict[str, tuple[Any, Any]]) -> None:
        self.out, self.changed = out, changed
        shown = {name: (_shown(was), _shown(now)) for name, (was, now) in changed.items()}
        told = "; ".join(f"{name} was {was}, now {now}" for name, (was, now) in shown.items() if was and now)
        super().__init__(
            f"{out}: already packed with other options ({', '.join(changed)}){told and ': '}{told}. {_REMEDY}"
        )


def _shown(value: Any) -> str:
    """An option's value in few words; empty if that cannot be done."""
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "on", False: "off"}[value]
    if isinstance(value, dict):
        return ""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if not text:
        return "none"
    return text if len(text) <= 60 else f"{text[:57]}..."


def pack_folder(
    out: str | Path,
    kind: str,
    options: dict[str, Any],
    sources: dict[str, Path],
    fill: Callable[[Pack], None],
    progress: Progress,
    *,
    dtype: str = "float16",
    units: Sequence[Callable[[Pack], None]] = (),
    workers: int = 1,
    fingerprints: Fingerprint = fingerprint,
    after: Callable[[Pack], None] | None = None,
) -> dict[str, Any]:
    """Make the packed folder ``out``, or find that it is already there.

    Args:
        options: everything that decides the result, JSON values only.
        sources: every input file by a name relative to the user's folder; all are hashed.
        fill: adds the records and pictures to the Pack it is given, or what concerns the whole set if there are units.
        dtype: storage type of the signals: float16, float32, int16 or int8.
        units: pieces that fill parts of their own, in the order in which they are joined; picklable. Finished parts
            survive an interruption, and the same command continues after them, unless a source has changed that the
            unit has asked for by ``pack.source``: it asks for every file that it reads.
        workers: processes for the units; the result does not depend on it.
        fingerprints: how sources are hashed, where a hash of all their bytes would take longer than packing them;
            picklable.
        after: looks at the whole, once the units are joined.

    Returns:
        ``{"folder", "kind", "hash", "already", "samples", "labelled", "with_stimulus", "with_picture", "subjects",
        "voxels", "stimuli", "classes", "dropped", "notes", "bytes", "seconds"}``.

    Raises:
        ConfigError: ``out`` holds something else, or a set of other options (OtherOptions) or inputs; or it cannot be
            written, as when the disk is full.
        DataError: whatever ``fill`` finds wrong.
    """
    started, out = time.monotonic(), Path(out)
    options = json.loads(json.dumps(options, sort_keys=True))
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}': one of {', '.join(DTYPES)}.")
    already = _compare_existing(out, kind, {**options, "dtype": dtype}, sources, progress, fingerprints)
    if not already:
        partial = fresh_partial(out)
        told = {**options, "dtype": dtype}
        pack = Pack(partial, kind, told, sources, progress, dtype, fingerprints=fingerprints)
        try:
            fill(pack)
            if units:
                join_parts(pack, units, sources, workers)
            if after is not None:
                after(pack)
            pack.finish()
            sync_tree(partial)
            remove_parts(partial)
            _publish(partial, out)
        except OSError as problem:
            raise ConfigError(
                f"{out}: packing stopped ({problem}). Check the free space, quota and disk there; then pack again."
            ) from None
        finally:
            for tars in pack.tars.values():
                tars.abandon()
            discard(partial)
    return {**_summary(out), "already": already, "seconds": round(time.monotonic() - started, 3)}


def _compare_existing(
    out: Path, kind: str, options: dict, sources: dict[str, Path], progress: Progress, fingerprints: Fingerprint
) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "manifest.json").is_file():
        raise ConfigError(f"{out}: exists and is not a packed folder. Choose another output folder, or remove it.")
    manifest = read_manifest(out)
    if manifest.kind != kind:
        raise OtherOptions(out, {"kind": (manifest.kind, kind)})
    if manifest.options != options:
        was = manifest.options
        names = sorted({*was, *options})
        changed = [name for name in names if was.get(name, ...) != options.get(name, ...)]  # absent is not None
        raise OtherOptions(out, {name: (was.get(name), options.get(name)) for name in changed})
    before = {entry.name: entry.model_dump() for entry in manifest.sources}
    for done, (name, path) in enumerate(sources.items()):
        progress("checking inputs", done, len(sources))
        if before.get(name) != fingerprints(name, path):
            raise ConfigError(f"{out}: already packed, but {name} has changed since. {_REMEDY}")
    if gone := before.keys() - sources.keys():
        raise ConfigError(f"{out}: already packed from inputs that are gone now ({sorted(gone)[0]}). {_REMEDY}")
    return True


def _publish(partial: Path, out: Path) -> None:
    try:
        os.rename(partial, out)
    except OSError as problem:
        raise ConfigError(f"{out}: appeared while packing ({problem}). Remove it, or choose another folder.") from None
    sync_folder(out.parent)


def _summary(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    index = read_index(out / "index.npz", manifest)
    stimulus_N = index.sample["stimulus"]
    shown_N = stimulus_N[stimulus_N >= 0]
    scans = manifest.scans.bytes if manifest.scans else 0
    return {
        "folder": str(out),
        "kind": manifest.kind,
        "hash": sha256(out / "manifest.json"),
        "samples": {split: manifest.samples.get(split, 0) for split in SPLITS},
        "labelled": int((index.sample["label"] >= 0).sum()),
        "with_stimulus": len(shown_N),
        "with_picture": int((index.image["shard"][shown_N] >= 0).sum()),
        "subjects": [subject.name for subject in manifest.subjects],
        "voxels": max((subject.voxels for subject in manifest.subjects), default=0),
        "stimuli": len(manifest.stimuli),
        "classes": len(manifest.classes),
        "dropped": [entry.model_dump() for entry in manifest.dropped],
        "notes": manifest.notes,
        "bytes": sum(entry.bytes for entry in manifest.files) + scans,
    }
