"""What a training job needs before its first step: data, phase, engine, and the checkpoint it continues from."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cadiff import checkpoint
from cadiff.attention import describe_attention
from cadiff.bad_steps import BadSteps
from cadiff.beginning import RIDGE, begin_by_ridge, is_finished
from cadiff.config import Job, dump_toml
from cadiff.devices import device_of
from cadiff.distributed import Place, processes_here
from cadiff.engine import Engine
from cadiff.errors import ConfigError
from cadiff.exports import parent_hash
from cadiff.feature_cache import check_encoder, features_identity, open_features
from cadiff.figures import Figures
from cadiff.files import read_json, write_json, write_text
from cadiff.fitting import agree_on_data, check_layout, check_negatives, check_pictures, signal_width, subject_voxels
from cadiff.holding import hold_signals
from cadiff.kernels.dispatch import describe as describe_kernels
from cadiff.kernels.dispatch import self_check
from cadiff.kernels.tuning import agree_on_tiles
from cadiff.phases import Space, build_phase
from cadiff.precision import choose_precision, describe_precision
from cadiff.schedule import job_steps
from cadiff.selection import Best, check_selection, chosen_by, validation_samples
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import FaultPolicy
from cadiff.shards.stream import Reading, Stream
from cadiff.telemetry import Meter, samples_by_voxels

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
    bad: BadSteps
    meter: Meter
    best: Best
    figures: Figures | None  # of validations, where the phase has any
    finished: bool = False  # by an earlier start; there is nothing left to do
    step: int = 0
    spent_s: float = 0.0  # training time of earlier starts
    started: float = field(default_factory=time.monotonic)
    stop_asked: bool = False


def prepare(job: Job, run: Path, place: Place) -> Session:
    """Open the shards, build the phase, wrap it, and restore the newest valid checkpoint."""
    check_layout(job)
    features = open_features(job)
    cache_bytes = int(job.data.remote_cache_gb * 1e9)  # of each set; test data cannot be read from here on
    datasets = [Dataset(folder, splits=("train", "val"), cache_bytes=cache_bytes) for folder in job.data.shards]
    agree_on_data(datasets, place)
    width = signal_width(job, datasets)
    micro = job.train.micro_batch or max(1, job.train.batch // place.world)
    options = {
        "subjects": job.data.subjects,
        "rank": place.rank,
        "world": place.world,
        "seed": job.seed,
        "width": width,
        "frames": job.data.clip_frames,
        "image_size": None if job.phase == "phase1" else job.data.image_size,
        "image_masks": job.loss.image_masks if job.phase == "phase2" else 0,
        "features": features,
        "reading": reading_of(job, run),
    }
    part = {"stimuli_fraction": job.data.stimuli_fraction}  # of training only: every run is judged on all of val
    stream = Stream(datasets, split="train", batch=job.train.batch, micro_batch=micro, **part, **options)
    check_pictures(job, stream)
    check_negatives(job, stream.subjects, micro)
    if width:
        whole = job.data.on_damage == "raise"
        hold_signals(datasets, job.data.cache, width, whole, device_of(place), processes_here(place))
    space = Space(width, len(stream.classes), subject_voxels(datasets, stream.subjects))
    count = validation_samples(job, datasets)
    val = _validation_stream(job, datasets, count, place, micro, options)
    figures = Figures(job, datasets, part, options) if job.phase == "phase2" and val is not None else None
    check_selection(job, figures.names if figures else [], count, place.world)
    torch.manual_seed(job.seed)  # fresh weights are the same on every rank
    phase = build_phase(job, space)
    explained = begin_by_ridge(phase, job, run, place, datasets)
    check_encoder(features, phase)
    precision = choose_precision(job.engine.precision, device_of(place), place)
    identity = {
        "job_hash": job_hash(job),
        "data": [dataset.hash for dataset in datasets],
        "parents": parents(job),
        "features": features_identity(features, precision),
        "world": place.world,
        "zero": job.engine.zero,
        "precision": precision,
    }
    finished = claim(run, identity, place)
    if place.is_main:
        write_text(run / "job.toml", dump_toml(job))
        if explained:
            write_json(run / RIDGE, explained)
    if place.world > 1:
        agree_on_tiles(device_of(place))
    self_check(device_of(place))
    engine = Engine(phase, job, place, micro, stream.accumulate, identity["precision"])
    if place.is_main:
        report_parameters(job, engine)
    steps = job_steps(job.train, stream.steps_per_epoch)
    counted = (samples_by_voxels(job, datasets, width), micro, place, engine.device, identity["precision"])
    meter = Meter(job, *counted, getattr(phase, "adapters", None))
    if place.is_main:
        log.info(meter.describe())
    bad = BadSteps(run, job, place.is_main)
    best = Best(run, job, place.is_main)
    fixed = (job, run, place, space, stream, val, engine, steps, identity, bad, meter, best, figures)
    session = Session(*fixed, finished)
    if not finished and restore(session):
        log.info("resuming %s at step %d of %d", job.name, session.step, session.steps)
    return session


def restore(session: Session) -> bool:
    """Take up the newest valid checkpoint, if there is one; all ranks call this."""
    newest = checkpoint.agreed_newest(session.engine, session.run)
    if newest is None:
        return False
    state = checkpoint.load(session.engine, newest, session.identity)
    session.engine.resume(state["engine"])
    session.best.restore(state.get("best"))
    session.step, session.spent_s, session.started = state["step"], state["spent_s"], time.monotonic()
    return True


def claim(run: Path, identity: dict[str, Any], place: Place) -> bool:
    """Make the run folder this job's, before anything else is written; True if the job is finished there.

    Raises:
        ConfigError: the folder is another job's; nothing in it was changed.
    """
    path = run / "identity.json"
    if path.is_file():
        owner = read_json(path)
        differing = sorted(key for key in identity if owner.get(key) != identity[key])
        if differing:
            raise ConfigError(
                f"{run}: is the run of another job (it differs in {', '.join(differing)}; see its job.toml). "
                "Continue with the settings of that run, or give another --out folder."
            )
        return is_finished(run)
    if place.is_main:
        write_json(path, identity)
    return False


def reading_of(job: Job, run: Path) -> Reading:
    """How the job's streams read."""
    data = job.data
    faults = FaultPolicy(data.on_damage, data.damage_budget, data.check, run / "quarantine.jsonl")
    patch = job.model.patch if job.phase == "phase1" else 1
    return Reading(data.order, tuple(data.weights), data.pad, patch, data.workers, faults)


def job_hash(job: Job) -> str:
    """What makes two jobs the same experiment: all settings but names, reporting, saving, mirrors and paths.

    Data and parents count by what is in them, not by where they lie: ``identity`` holds their hashes beside this one.
    Kept features are what the job would compute, and count only where they are not quite (``features_identity``). A key
    that is new and at its default does not count either: a run begun without it goes on.
    """
    tree = job.model_dump(exclude={"name", "track", "init"})
    for key in ("shards", "workers", "cache", "remote_cache_gb", "on_damage", "damage_budget", "check", "features"):
        tree["data"].pop(key)
    if job.data.stimuli_fraction == 1:
        tree["data"].pop("stimuli_fraction")
    tree["engine"].pop("precision")  # what "auto" came to is in the identity
    for key in ("log_every", "save_every", "keep", "on_bad_step", "bad_budget"):
        tree["train"].pop(key)
    tree["train"]["select"] = chosen_by(job)
    if tree["train"]["select"] == "last":  # else validations decide what is exported
        for key in ("val_every", "val_batches", "select"):
            tree["train"].pop(key)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def parents(job: Job) -> dict[str, str]:
    """The hash of what each init.* names."""
    init = job.init.model_dump() if hasattr(job, "init") else {}
    return {key: parent_hash(folder) for key, folder in init.items() if folder}


def _validation_stream(
    job: Job, datasets: list[Dataset], count: int, place: Place, micro: int, options: dict[str, Any]
) -> Stream | None:
    """The validation split, ``count`` samples, in batches no larger than training's; None for fewer than ranks."""
    micro = min(micro, count // place.world)
    if micro == 0:
        return None
    whole = micro * place.world
    batch = min(job.train.batch, count) // whole * whole
    options = {**options, "reading": replace(options["reading"], weights=(), order="random")}
    return Stream(datasets, split="val", batch=batch, micro_batch=micro, **options)


def report_parameters(job: Job, engine: Engine) -> None:
    """Print once what runs here: sizes, device, precision, kernels, attention; nothing is chosen in silence."""
    device = engine.device
    said = dict(describe_kernels(device))
    kernels = f"{said.pop('kernels')} ({', '.join(f'{key} {value}' for key, value in said.items())})"
    log.info(
        "%s: %s parameters, %s trained | %d ranks on %s, ZeRO-%d, %s | attention: %s | kernels: %s",
        job.name, f"{engine.parameters:,}", f"{engine.trained:,}", engine.place.world, device.type, job.engine.zero,
        describe_precision(engine.precision, device), describe_attention(device), kernels,
    )  # fmt: skip
    for source, fit in engine.phase.init_report.items():
        log.info(
            "%s: %d tensors matched, %d missing, %d resized, %d unused",
            source, *(len(fit[key]) for key in ("matched", "missing", "resized", "unused")),
        )  # fmt: skip
