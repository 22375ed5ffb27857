"""Whether a job and its data fit each other: what is looked at before anything is built."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from cadiff.config import Job
from cadiff.devices import device_of
from cadiff.distributed import Place
from cadiff.errors import ConfigError, DataError
from cadiff.models.image_mae import check_contrast
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.shards.voxels import padded_width

LOOKED_AT = 32  # pictures of each set that are decoded before a job starts


def check_layout(job: Job) -> None:
    """Refuse samples of a shape that only phase 1 takes."""
    data = job.data
    if job.phase != "phase1" and (data.pad, data.clip_frames) != ("wrap", 1):
        raise ConfigError(
            f"data.pad = '{data.pad}', data.clip_frames = {data.clip_frames}: packed samples and clips are phase 1's, "
            f"not {job.phase}'s. Set data.pad=wrap and data.clip_frames=1."
        )


def agree_on_data(datasets: list[Dataset], place: Place) -> None:
    """See that every rank has opened the same version of every set: batches are cut from one common order.

    Raises:
        DataError: on all ranks, each naming what it has opened.
    """
    if place.world == 1:
        return
    opened = ", ".join(f"{ds.folder} ({ds.hash[:12]})" for ds in datasets)
    number = int(hashlib.sha256("".join(ds.hash for ds in datasets).encode()).hexdigest()[:15], 16)
    extremes = torch.tensor([number, -number], device=device_of(place))
    torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX)
    if extremes[0] != -extremes[1]:
        raise DataError(
            f"Ranks have opened different versions of the data; rank {place.rank} has {opened}. Give every machine the "
            "same packed folder, and start again once nothing is being written to it."
        )


def check_pictures(job: Job, stream: Stream) -> None:
    """Refuse data without what the phase reads, and for phase 2 pictures that show next to nothing."""
    if job.phase != "phase1" and "image" not in stream.keys:
        raise ConfigError(f"data.shards: {job.data.shards} do not all hold pictures; {job.phase} needs them.")
    if job.phase == "phase2":
        for ds in stream.datasets:
            stimuli = np.unique(ds.table.stimulus[ds.ids("train")])
            stimuli = stimuli[(stimuli >= 0) & ds.has_picture[stimuli]][:LOOKED_AT]
            # A damaged picture is dealt with when it is due.
            stimuli = np.setdiff1d(stimuli, ds.pictures.damaged(stimuli, job.data.image_size))
            if len(stimuli):
                check_contrast(torch.from_numpy(ds.images(stimuli, job.data.image_size)), f"{ds.folder}")


def check_negatives(job: Job, subjects: list[str], micro_batch: int) -> None:
    """Refuse a choice of negatives that leaves none: the loss would be zero from the first step to the last."""
    if job.phase == "phase1" and job.loss.scale and (job.loss.self_contrast or job.loss.cross_contrast):
        whole = job.loss.negatives in ("global", "ring")
        if (job.train.batch if whole else micro_batch) < 2:
            raise ConfigError(
                f"loss.negatives = '{job.loss.negatives}' contrasts one sample with no other. Raise "
                f"{'train.batch' if whole else 'train.micro_batch'}, or set loss.scale=0."
            )
    if job.phase == "phase1" and job.loss.negative_subjects == "across" and len(subjects) < 2:
        raise ConfigError(
            f"loss.negative_subjects = 'across' takes other subjects' samples, and data.shards hold {len(subjects)} "
            "subject. Use more subjects, or set loss.negative_subjects=any."
        )


def signal_width(job: Job, datasets: list[Dataset]) -> int:
    """Voxels of a padded signal: the widest subject's, in whole patches; 0 for the phases that read pictures only."""
    if job.phase not in ("phase1", "phase2", "phase3"):
        return 0
    voxels = max(dataset.voxels for dataset in datasets)
    if voxels == 0:
        raise ConfigError(f"data.shards: {job.data.shards} hold pictures only; {job.phase} needs fMRI.")
    return padded_width(voxels, job.model.patch)


def subject_voxels(datasets: list[Dataset], subjects: list[str]) -> dict[str, tuple[int, ...]]:
    """Voxels of each of these subjects before padding: one number, or several where sets give it different ones."""
    found: dict[str, set[int]] = {name: set() for name in subjects}
    for dataset in datasets:
        for name, voxels in zip(dataset.subjects, dataset.voxel_counts.tolist()):
            found[name].add(voxels)
    return {name: tuple(sorted(counts)) for name, counts in found.items()}
