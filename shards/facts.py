"""What a packed folder holds: its figures at a glance, and its samples one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset

_FIRST = 5  # dropped inputs that are told one by one
# A sample's fields in the order in which they are told; the last are where its values and its picture lie.
_FIELDS = ("sample", "subject", "session", "run", "start", "frames", "stimulus", "label", "split", "repeat")
_FIELDS += ("shard", "offset", "bytes", "crc32c")
_FIELDS += ("picture_shard", "picture_offset", "picture_bytes", "picture_crc32c")


def facts(folder: str | Path) -> dict[str, Any]:
    """Figures of a packed folder or URL, from its manifest and index; JSON values.

    ``version`` is the sha256 of the manifest, ``dtype`` that of the signals (None where there are pictures only).
    ``regions`` gives the voxels of each subject's ("*": everyone's) regions, ``notes`` all that the packer noted.

    Raises:
        DataError: not a packed folder, or damaged.
    """
    ds = Dataset(folder)
    told = ds.manifest
    return {
        "kind": ds.kind,
        "version": ds.hash,
        "recipe_sha256": told["recipe_sha256"],
        "made_by": told["made_by"],
        "options": told["options"],
        "dtype": told["dtype"] if ds.voxels else None,
        "split_by": told["split_by"],
        "samples": {split: told["samples"].get(split, 0) for split in ("train", "val", "test")},
        "subjects": told["subjects"],
        "families": len({subject["family"] for subject in told["subjects"]} - {""}),
        "runs": len(ds.runs),
        "sessions": len(ds.sessions),
        "stimuli": len(ds.stimuli),
        "pictures": int(ds.has_picture.sum()),
        "classes": ds.classes,
        "blocks": len(ds.blocks["rows"]),
        "shards": len(ds.home.shards),
        "bytes": sum(entry["bytes"] for entry in told["files"]),
        "regions": {
            subject: {name: len(columns) for name, columns in regions.items()} for subject, regions in ds.rois.items()
        },
        "scans": told["scans"],
        "sources": {"count": len(told["sources"]), "bytes": sum(source["bytes"] for source in told["sources"])},
        "dropped": {"count": len(told["dropped"]), "first": told["dropped"][:_FIRST]},
        "notes": told["notes"],
    }


def list_samples(
    folder: str | Path,
    *,
    split: str | None = None,
    subject: str | None = None,
    stimulus: str | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Each sample's entry of the per-sample index (``Dataset.describe``), in order, one at a time.

    Raises:
        ConfigError: an unknown split, subject or stimulus.
        DataError: not a packed folder, or damaged.
    """
    ds = Dataset(folder)
    if stimulus is not None and stimulus not in ds.stimuli:
        raise ConfigError(f"{folder}: no stimulus '{stimulus}' here; `cadiff shards ls` lists the samples with theirs.")
    chosen = np.zeros(len(ds), dtype=bool)
    for name in ("train", "val", "test") if split is None else (split,):
        chosen[ds.ids(name, [subject] if subject else None)] = True
    if stimulus is not None:
        chosen &= ds.table.stimulus == ds.stimuli.index(stimulus)
    for sample in np.flatnonzero(chosen)[:limit].tolist():
        row = ds.describe(sample)
        yield {name: row[name] for name in _FIELDS if name in row}
