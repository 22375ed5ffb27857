"""Save what is sound of a damaged packed folder into a new one, down to single rows, and report what is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.files import sha256
from cadiff.shards.index import read_index
from cadiff.shards.manifest import parse_manifest, shard_names
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.repair import damaged_files, damaged_scans
from cadiff.shards.stored import StoredSet, copy_arrays, copy_pictures, copy_samples, refuse_inside
from cadiff.shards.writer import Pack


def salvage(folder: str | Path, out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Make ``out`` of all samples and pictures of a damaged set that are as packed; ``folder`` is not changed.

    Each row has a checksum of its own, so a damaged block loses its damaged rows only. A picture that is lost leaves
    its stimulus without one; in a set of pictures the sample goes with it. All of this is in ``dropped``.

    Returns:
        ``pack_folder``'s summary.

    Raises:
        ConfigError: nothing is damaged.
        DataError: manifest.json or index.npz is damaged: then nobody knows what lies where.
    """
    folder = Path(folder)
    refuse_inside(folder, out)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Name the packed folder to save from.")
    try:
        manifest = parse_manifest(folder / "manifest.json")
        index = read_index(folder / "index.npz", manifest)
    except (DataError, FileNotFoundError) as problem:
        raise DataError(f"{problem} Without it nothing can be saved: mend the folder with --from and a copy.") from None
    bad = [entry.path for entry in damaged_files(folder, manifest, progress)]
    scans = damaged_scans(folder, manifest)
    if not bad and not scans:
        raise ConfigError(f"{folder}: nothing is damaged, so there is nothing to save. Copy the folder instead.")
    shards = shard_names(manifest)
    stored = StoredSet(folder / "manifest.json", manifest, index, lambda shard: folder / shards[shard])

    def fill(pack: Pack) -> None:
        pack.split_by = manifest.split_by
        pack.dropped = [entry.model_dump() for entry in manifest.dropped]
        pack.notes = {"sets": [stored.provenance()]}
        _save(pack, stored)
        if scans:
            pack.drop(manifest.scans.path, "damaged")
        elif manifest.scans:
            shutil.copytree(folder / manifest.scans.path, pack.folder / manifest.scans.path)
            if damaged_scans(pack.folder, manifest):
                raise DataError(f"{folder / manifest.scans.path}: changed while it was copied. Start again.")
            pack.scans = manifest.scans.model_dump()

    options = {"salvage": {"of": stored.version, "damaged": [_state(folder, name) for name in bad], "scans": scans}}
    sources = {"set/manifest.json": stored.manifest_path}
    return pack_folder(out, manifest.kind, options, sources, fill, progress, dtype=manifest.dtype)


def _state(folder: Path, name: str) -> list[str]:
    """A damaged file as it was found: part of the recipe, as other damage saves other samples."""
    try:
        return [name, sha256(folder / name)]
    except OSError as problem:
        return [name, type(problem).__name__]


def _save(pack: Pack, stored: StoredSet) -> None:
    """Add what is sound, and report what is not. All names keep their numbers."""
    shards, column = shard_names(stored.manifest), stored.index.sample
    keep_N = np.ones(len(column["split"]), dtype=bool)

    def lost_rows(block: int, samples: np.ndarray) -> None:
        names = {name: stored.names[name][column[name][samples[0]]] for name in ("subject", "run")}
        where = f"block {block} of {shards[stored.index.block['shard'][block]]}"
        pack.drop(f"{where}, subject {names['subject']}, run {names['run']}", f"damaged: {_ranges(samples)}")

    def lost_picture(stimulus: int) -> None:
        where = f"picture of stimulus {stored.names['stimulus'][stimulus]}"
        shown = np.flatnonzero(column["stimulus"] == stimulus)
        why = f"damaged: {_ranges(shown)} {'left out' if not stored.voxels.any() else 'kept without a picture'}"
        pack.drop(f"{where}, in {shards[stored.index.image['shard'][stimulus]]}", why)
        if not stored.voxels.any():
            keep_N[shown] = False

    pack.declare("label", stored.names["label"])
    pack.declare("stimulus", stored.names["stimulus"])
    copy_pictures(pack, stored, np.arange(len(stored.names["stimulus"])), lost_picture)
    copy_samples(pack, stored, keep_N, lost_rows)
    copy_arrays(pack, stored)


def _ranges(samples: np.ndarray) -> str:
    """Ascending sample numbers as text: "samples 3, 5-9"."""
    pieces = np.split(samples, np.flatnonzero(np.diff(samples) > 1) + 1)
    spans = [f"{piece[0]}-{piece[-1]}" if len(piece) > 1 else f"{piece[0]}" for piece in pieces if len(piece)]
    return f"samples {', '.join(spans) or 'none'}"
