"""What a training job needs before its first step: data, phase, engine, and the checkpoint it continues from."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cadiff import checkpoint
from cadiff.attention import describe_attention
from cadiff.config import Job, dump_toml
from cadiff.distributed import Place
from cadiff.engine import Engine, device_of
from cadiff.errors import ConfigError
from cadiff.files import write_text
from cadiff.kernels.dispatch import describe as describe_kernels
from cadiff.kernels.dispatch import self_check
from cadiff.phases import Space, build_phase
from cadiff.schedule import job_steps
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.shards.voxels import padded_width

log = logging.getLogger(__name__)


@dataclass
class Session:
    """What one call of ``train`` holds: the job's fixed parts and its running sums."""

    job: Job
    run: Path
    place: Place
    space: Space
    stream: Stream
    val: Stream | None
    engine: Engine
    steps: int
    identity: dict[str, Any]
    step: int = 0
    spent_s: float = 0.0  # training time of earlier starts
    started: float = field(default_factory=time.monotonic)
    stop_asked: bool = False


def prepare(job: Job, run: Path, place: Place) -> Session:
    """Open the shards, build the phase, wrap it, and restore the newest valid checkpoint."""
    datasets = [Dataset(folder) for folder in job.data.shards]
    width = signal_width(job, datasets)
    micro = job.train.micro_batch or max(1, job.train.batch // place.world)
    options = {
        "subjects": job.data.subjects,
        "rank": place.rank,
        "world": place.world,
        "seed": job.seed,
        "width": width,
        "image_size": None if job.phase == "phase1" else job.data.image_size,
    }
    stream = Stream(datasets, split="train", batch=job.train.batch, micro_batch=micro, **options)
    space = Space(width, len(stream.classes))
    val = _validation_stream(job, datasets, place, options)
    torch.manual_seed(job.seed)  # fresh weights are the same on every rank
    phase = build_phase(job, space)
    identity = {
        "job_hash": job_hash(job),
        "data": [dataset.hash for dataset in datasets],
        "world": place.world,
        "zero": job.engine.zero,
    }
    if place.is_main:
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "job.toml", dump_toml(job))
        report_parameters(phase, job, place, describe_attention(device_of(place)))
    self_check(device_of(place))
    engine = Engine(phase, job, place, micro, stream.accumulate)
    steps = job_steps(job.train, stream.steps_per_epoch)
    session = Session(job, run, place, space, stream, val, engine, steps, identity)
    newest = checkpoint.newest_valid(run)
    if newest is not None:
        state = checkpoint.load(engine, newest, identity)
        session.step, session.spent_s = state["step"], state["spent_s"]
        log.info("resuming %s at step %d of %d", job.name, session.step, session.steps)
    return session


def signal_width(job: Job, datasets: list[Dataset]) -> int:
    """Voxels of a padded signal: the widest subject's, in whole patches; 0 for the phases that read pictures only."""
    if job.phase not in ("phase1", "phase2", "phase3"):
        return 0
    voxels = max(dataset.voxels for dataset in datasets)
    if voxels == 0:
        raise ConfigError(f"data.shards: {job.data.shards} hold pictures only; {job.phase} needs fMRI.")
    return padded_width(voxels, job.model.patch)


def job_hash(job: Job) -> str:
    """What makes two jobs the same experiment: everything but names, reporting, saving and mirrors."""
    tree = job.model_dump(exclude={"name", "track"})
    for key in ("log_every", "save_every", "keep", "val_every", "val_batches"):
        tree["train"].pop(key)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _validation_stream(job: Job, datasets: list[Dataset], place: Place, options: dict[str, Any]) -> Stream | None:
    count = sum(len(dataset.ids(split="val", subjects=job.data.subjects or None)) for dataset in datasets)
    batch = min(job.train.batch, count) // place.world * place.world
    if batch == 0:
        return None
    return Stream(datasets, split="val", batch=batch, micro_batch=batch // place.world, **options)


def report_parameters(phase: torch.nn.Module, job: Job, place: Place, attention: str) -> None:
    """Print once what runs here: sizes, device, kernels, attention; nothing is chosen in silence."""
    total = sum(p.numel() for p in phase.parameters())
    trained = sum(p.numel() for p in phase.parameters() if p.requires_grad)
    said = dict(describe_kernels(device_of(place)))
    kernels = f"{said.pop('kernels')} ({', '.join(f'{key} {value}' for key, value in said.items())})"
    log.info(
        "%s: %s parameters, %s trained | %d ranks on %s, ZeRO-%d, %s | attention: %s | kernels: %s",
        job.name, f"{total:,}", f"{trained:,}", place.world, device_of(place).type, job.engine.zero,
        job.engine.precision, attention, kernels,
    )  # fmt: skip
    for source, fit in phase.init_report.items():
        log.info(
            "%s: %d tensors matched, %d missing, %d resized, %d unused",
            source, *(len(fit[key]) for key in ("matched", "missing", "resized", "unused")),
        )  # fmt: skip
