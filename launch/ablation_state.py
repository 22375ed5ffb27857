"""How far a run of an ablation is, by hashes of all that went into it; what is large is hashed once in a process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cadiff.errors import DataError
from cadiff.files import read_json

if TYPE_CHECKING:
    from cadiff.config import Job
    from cadiff.launch.ablation_cells import Run
    from cadiff.shards.features import Features


def state_of(run: Run) -> str:
    """``new``, ``begun``, ``finished``, or ``other``: the folder holds a run of other settings or data."""
    from cadiff.feature_cache import features_identity
    from cadiff.session import job_hash

    if not (run.folder / "identity.json").is_file():
        return "new"
    found = read_json(run.folder / "identity.json")
    data = run.job.data
    wanted: dict[str, Any] = {"job_hash": job_hash(run.job), "data": [_data_hash(one) for one in data.shards]}
    wanted["features"] = features_identity(_features(data.features), found.get("precision"))
    if any(found.get(key) != value for key, value in wanted.items()):
        return "other"
    if not ((run.folder / "summary.json").is_file() and (run.folder / "export" / "card.json").is_file()):
        return "begun"
    try:
        return "finished" if found.get("parents") == _parents(run.job) else "other"
    except DataError:  # what it started from is gone and will be made again; the trainer then says if it is the same
        return "begun"


@functools.cache
def _data_hash(folder: str) -> str:
    from cadiff.shards.dataset import Dataset

    return Dataset(folder).hash


@functools.cache
def _features(folder: str) -> Features | None:
    from cadiff.shards.features import Features

    return Features(folder) if folder else None


def _parents(job: Job) -> dict[str, str]:
    """``cadiff.session.parents``, but foreign weights that lie there unchanged are hashed once in a process."""
    init = job.init.model_dump() if hasattr(job, "init") else {}
    return {key: _parent_hash(folder) for key, folder in init.items() if folder}


def _parent_hash(folder: str) -> str:
    from cadiff.exports import parent_hash

    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():  # an export: its card is small, and changes when this ablation trains it
        return parent_hash(folder)
    about = weights.stat()
    return _weights_hash(folder, about.st_mtime_ns, about.st_size)


@functools.cache
def _weights_hash(folder: str, mtime_ns: int, size: int) -> str:
    """The hash of a folder's ``model.safetensors``; time and size are the cache's key."""
    from cadiff.exports import parent_hash

    return parent_hash(folder)
