"""One training job, the same for every phase: stream -> engine(batch) -> backward -> step, with reports and checkpoints."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff import checkpoint
from cadiff.attention import describe_attention
from cadiff.config import Job, dump_toml
from cadiff.distributed import Place
from cadiff.engine import Engine, device_of, start_processes
from cadiff.errors import ConfigError, NonFiniteError, Preempted
from cadiff.exports import find_export, save_export
from cadiff.files import sha256, whole_file, write_json, write_text
from cadiff.kernels.dispatch import describe as describe_kernels
from cadiff.kernels.dispatch import self_check
from cadiff.phases import Space, build_phase
from cadiff.schedule import job_steps, lr_at
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.shards.voxels import padded_width
from cadiff.tracking import Tracker, read_metrics

log = logging.getLogger(__name__)


@dataclass
class Session:
    """What one call of ``train`` holds: the job's fixed parts and its running sums."""

    job: Job
    run: Path
    place: Place
    stream: Stream
    val: Stream | None
    engine: Engine
    steps: int
    identity: dict[str, Any]
    step: int = 0
    spent_s: float = 0.0  # training time of earlier starts
    started: float = field(default_factory=time.monotonic)
    stop_asked: bool = False


def train(job: Job, run: Path, place: Place) -> dict[str, Any]:
    """Train ``job`` in the folder ``run`` until its last step, from the newest valid checkpoint if there is one.

    Returns:
        The run's summary (also written to ``summary.json``), the same on every rank.

    Raises:
        ConfigError: the run folder belongs to another job, or the shards do not fit it.
        NonFiniteError: a loss became NaN or infinite; all ranks stop together.
        Preempted: the process was asked to stop and has saved its state.
    """
    start_processes(place)
    session = _prepare(job, run, place)
    signal.signal(signal.SIGTERM, lambda *_: setattr(session, "stop_asked", True))
    tracker = Tracker(run, job, session.step) if place.is_main else None
    try:
        _loop(session, tracker)
    finally:
        if tracker is not None:
            tracker.close()
    return _finish(session)


def _prepare(job: Job, run: Path, place: Place) -> Session:
    datasets = [Dataset(folder) for folder in job.data.shards]
    space = data_space(job, datasets)
    micro = job.train.micro_batch or max(1, job.train.batch // place.world)
    options = {
        "subjects": job.data.subjects,
        "rank": place.rank,
        "world": place.world,
        "seed": job.seed,
        "width": space.voxels,
        "image_size": None if job.phase == "phase1" else job.data.image_size,
    }
    stream = Stream(datasets, split="train", batch=job.train.batch, micro_batch=micro, **options)
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
    session = Session(job, run, place, stream, val, engine, job_steps(job.train, stream.steps_per_epoch), identity)
    newest = checkpoint.newest_valid(run)
    if newest is not None:
        state = checkpoint.load(engine, newest, identity)
        session.step, session.spent_s = state["step"], state["spent_s"]
        log.info("resuming %s at step %d of %d", job.name, session.step, session.steps)
    return session


def data_space(job: Job, datasets: list[Dataset]) -> Space:
    """Width and classes of the job's data; all its sets must agree on the class names."""
    classes = {tuple(dataset.classes) for dataset in datasets if dataset.classes}
    if len(classes) > 1:
        raise ConfigError(f"data.shards: {job.data.shards} name different classes; train on sets that share them.")
    voxels = max(dataset.voxels for dataset in datasets)
    patch = getattr(job.model, "patch", 1)
    return Space(voxels=padded_width(voxels, patch) if voxels else 0, classes=len(next(iter(classes), ())))


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
    kernels = ", ".join(f"{key} {value}" for key, value in describe_kernels().items())
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


def _loop(session: Session, tracker: Tracker | None) -> None:
    job, engine = session.job, session.engine
    engine.phase.train()
    window = _Window()
    waited = time.monotonic()
    for step, index, batch in session.stream.iterate(session.step, session.steps):
        window.wait_s += time.monotonic() - waited
        if index == 0:
            lr = lr_at(step, job.optim, session.steps, session.stream.steps_per_epoch)
            engine.set_lr(lr)
        terms = engine(batch)
        engine.backward_and_step(torch.stack(list(terms.values())).sum())
        window.add(terms)
        if index == session.stream.accumulate - 1:
            session.step = step + 1
            _after_step(session, tracker, window, lr)
        waited = time.monotonic()


def _after_step(session: Session, tracker: Tracker | None, window: _Window, lr: float) -> None:
    train_options, step = session.job.train, session.step
    last = step == session.steps
    stopping = False
    if step % train_options.log_every == 0 or last or step == 1:
        stopping = _report(session, tracker, window, lr)
    if session.val is not None and (step % train_options.val_every == 0 or last):
        values = validate(session)
        if tracker is not None:
            tracker.log(step, values)
            log.info("step %d/%d | validation loss %.4f", step, session.steps, values["val/loss"])
        window.restart()
    if (step % train_options.save_every == 0 or stopping) and not last:
        _save(session)
        window.restart()
    if stopping and not last:
        raise Preempted(f"{session.job.name}: asked to stop; saved at step {step}. The same command continues.")


def _report(session: Session, tracker: Tracker | None, window: _Window, lr: float) -> bool:
    """Average the window over ranks, stop everyone on a bad value, and say whether any rank was asked to stop."""
    engine, job = session.engine, session.job
    names = list(window.sums)
    asked = torch.tensor(float(session.stop_asked), device=engine.device)
    means = torch.stack([*(window.sums[name] / window.count for name in names), asked])
    *terms, asked_share = engine.mean_over_ranks(means.double()).tolist()
    bad = [f"{name} is {value}" for name, value in zip(names, terms) if not np.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{job.name}: by step {session.step} {', '.join(bad)}. Lower optim.lr or check the shards with "
            "`cadiff shards verify`; the last checkpoint is intact."
        )
    seconds = time.monotonic() - window.started
    samples = window.count * job.train.batch / session.stream.accumulate
    values = {
        "time_s": session.spent_s + time.monotonic() - session.started,
        "train/loss": sum(terms),
        **{f"train/{name}": value for name, value in zip(names, terms)},
        "optim/lr": lr,
        "optim/grad_norm": engine.gradient_norm(),
        "perf/samples_per_s": samples / seconds,
        "perf/data_wait": window.wait_s / seconds,
    }
    if tracker is not None:
        tracker.log(session.step, values)
        done = session.step / session.steps
        log.info(
            "step %d/%d | loss %.4f | gnorm %.2f | lr %.1e | %.0f samples/s | data %.0f%% | eta %s",
            session.step, session.steps, values["train/loss"], values["optim/grad_norm"], lr,
            values["perf/samples_per_s"], 100 * values["perf/data_wait"], _clock(values["time_s"] * (1 / done - 1)),
        )  # fmt: skip
    window.restart()
    return asked_share > 0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class _Window:
    """Sums of the terms since the last report; they stay on the device, so no step waits for the host."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.wait_s, self.started = 0, 0.0, time.monotonic()

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1


@torch.no_grad()
def validate(session: Session) -> dict[str, float]:
    """Mean terms over the validation split, with the masks and noise of epoch -1 every time."""
    stream, engine = session.val, session.engine
    engine.phase.eval()
    window = _Window()
    for step in range(min(session.job.train.val_batches, stream.steps_per_epoch)):
        batch = stream.micro(step, 0)
        batch["epoch"] = torch.full_like(batch["epoch"], -1)
        window.add(engine(batch))
    engine.phase.train()
    means = engine.mean_over_ranks(torch.stack([value / window.count for value in window.sums.values()]).double())
    terms = dict(zip((f"val/{name}" for name in window.sums), means.tolist()))
    return {"val/loss": sum(terms.values()), **terms}


def _save(session: Session) -> None:
    spent = session.spent_s + time.monotonic() - session.started
    state = {**session.identity, "step": session.step, "spent_s": spent}
    checkpoint.save(session.engine, session.run, state, session.job.train.keep)


def _finish(session: Session) -> dict[str, Any]:
    """Write the preview, the export that the next phase reads, and the summary; the summary comes last."""
    job, run, engine = session.job, session.run, session.engine
    states = engine.part_states()
    preview = _preview(session)
    summary: dict[str, Any] = {}
    if session.place.is_main:
        with whole_file(run / "preview.npz") as beside, open(beside, "wb") as handle:
            np.savez(handle, **preview)
        save_export(run / "export", states, _card(session))
        reports = [line for line in read_metrics(run) if "train/loss" in line]
        validations = [line["val/loss"] for line in read_metrics(run) if "val/loss" in line]
        summary = {
            "phase": job.phase,
            "name": job.name,
            "steps": session.steps,
            "seconds": reports[-1]["time_s"],
            "samples_per_s": float(np.median([line["perf/samples_per_s"] for line in reports])),
            "loss_first": reports[0]["train/loss"],
            "loss_last": reports[-1]["train/loss"],
            "val_loss": validations[-1] if validations else None,
            "parameters": sum(p.numel() for p in engine.phase.parameters()),
            "trainable": sum(p.numel() for p in engine.phase.parameters() if p.requires_grad),
            "world": session.place.world,
            "zero": job.engine.zero,
            "precision": job.engine.precision,
            "device": engine.device.type,
            "kernels": describe_kernels(),
            "attention": describe_attention(engine.device),
        }
        write_json(run / "summary.json", summary)
    engine.barrier()
    return summary


@torch.no_grad()
def _preview(session: Session) -> dict[str, np.ndarray]:
    stream = session.val or session.stream
    batch = {key: value[:4].to(session.engine.device) for key, value in stream.micro(0, 0).items()}
    batch["epoch"] = torch.full_like(batch["epoch"], -1)
    session.engine.phase.eval()
    return {key: value.float().cpu().numpy() for key, value in session.engine.phase.preview(batch).items()}


def _card(session: Session) -> dict[str, Any]:
    job = session.job
    init = job.init.model_dump() if hasattr(job, "init") else {}
    parents = {key: sha256(find_export(path) / "card.json") for key, path in init.items() if path and key != "image"}
    space = data_space(job, session.stream.datasets)
    return {
        "phase": job.phase,
        "job": job.model_dump(),
        "space": {"voxels": space.voxels, "classes": space.classes},
        "steps": session.steps,
        "lineage": {**session.identity, "parents": parents},
    }
