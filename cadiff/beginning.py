"""Whether a job begins, goes on or is over in its run folder, and what is done for one that begins only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from cadiff import checkpoint
from cadiff.adapting import start_by_ridge
from cadiff.config import Job
from cadiff.devices import device_of
from cadiff.distributed import Place
from cadiff.files import read_json
from cadiff.shards.dataset import Dataset

RIDGE = "ridge.json"  # of a run folder: what `begin_by_ridge` gave, for the cards of later starts


def is_finished(run: Path) -> bool:
    """Whether the job of this folder has left all that it leaves."""
    return (run / "summary.json").is_file() and (run / "export" / "card.json").is_file()


def begin_by_ridge(
    phase: nn.Module, job: Job, run: Path, place: Place, datasets: Sequence[Dataset]
) -> dict[str, float]:
    """``start_by_ridge``, if the job asks for it and begins here: a checkpoint will bring its own maps.

    Rank 0 looks and all ranks, which call this together, do as it says. Nothing is written: the folder may turn out to
    be another job's.

    Returns:
        What it explained, by subject; nothing where it was not done.
    """
    if job.phase != "phase2" or job.adapter.init != "ridge":
        return {}
    told = [place.is_main and not is_finished(run) and checkpoint.newest_valid(run) is None]
    if place.world > 1:
        torch.distributed.broadcast_object_list(told, src=0, device=device_of(place))
    return start_by_ridge(phase.adapters, job, datasets) if told[0] else {}


def ridge_of(run: Path) -> dict[str, dict[str, float]]:
    """What a card says of the start by ridge regression: ``{"ridge": {subject: part of the variance explained}}``."""
    path = run / RIDGE
    return {"ridge": read_json(path)} if path.is_file() else {}
