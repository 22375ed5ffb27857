"""One training job, the same for every phase: stream -> engine(batch) -> backward -> step, reports and checkpoints."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff import checkpoint
from cadiff.config import Job
from cadiff.distributed import Place
from cadiff.engine import start_processes
from cadiff.errors import NonFiniteError, Preempted
from cadiff.files import read_json
from cadiff.finish import finish
from cadiff.schedule import lr_at
from cadiff.session import Session, prepare
from cadiff.tracking import Tracker

log = logging.getLogger(__name__)


def train(job: Job, run: Path, place: Place) -> dict[str, Any]:
    """Train ``job`` in the folder ``run`` until its last step, from the newest valid checkpoint if there is one.

    Returns:
        The run's summary, which ``summary.json`` holds too; on other ranks than 0 it may be empty.

    Raises:
        ConfigError: the run folder belongs to another job, or the shards do not fit it.
        NonFiniteError: a loss became NaN or infinite; all ranks stop together.
        Preempted: the process was asked to stop and has saved its state.
    """
    start_processes(place)
    session = prepare(job, run, place)
    if session.finished:
        log.info("%s: finished before; nothing to do", job.name)
        return read_json(run / "summary.json")
    signal.signal(signal.SIGTERM, lambda *_: setattr(session, "stop_asked", True))
    tracker = Tracker(run, job, session.step) if place.is_main else None
    try:
        _loop(session, tracker)
    finally:
        if tracker is not None:
            tracker.close()
    return finish(session)


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
    saving = step % train_options.save_every == 0
    if step % train_options.log_every == 0 or saving or last or step == 1:  # nothing is saved after a bad loss
        stopping = _report(session, tracker, window, lr)
    if session.val is not None and (step % train_options.val_every == 0 or last):
        values = validate(session)
        if tracker is not None:
            tracker.log(step, values)
            log.info("step %d/%d | validation loss %.4f", step, session.steps, values["val/loss"])
        window.restart()
    if (saving or stopping) and not last:
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
    norm = engine.gradient_norm()
    numbers = {**dict(zip(names, terms)), "the gradient's norm": norm}
    bad = [f"{name} is {value}" for name, value in numbers.items() if not np.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{job.name}: by step {session.step} {', '.join(bad)}. Lower optim.lr or check the shards with "
            "`cadiff shards verify`. Checkpoints are only saved after finite losses."
        )
    seconds = time.monotonic() - window.started
    samples = window.count * job.train.batch / session.stream.accumulate
    values = {
        "time_s": session.spent_s + time.monotonic() - session.started,
        "train/loss": sum(terms),
        **{f"train/{name}": value for name, value in zip(names, terms)},
        "optim/lr": lr,
        "optim/grad_norm": norm,
        "perf/samples_per_s": samples / seconds,
        "perf/data_wait": window.wait_s / seconds,
        **_data_seconds(session, seconds),
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


def _data_seconds(session: Session, seconds: float) -> dict[str, float]:
    """Where preparing data spent its time since the last report, by set and stage: seconds of work per second.

    The threads work ahead, so this is what would be waited for if they did not; above 1 they cannot keep up with one
    core. ``transfer`` is the copy to the device, which nobody does ahead.
    """
    spent = {**session.stream.seconds, ("all", "transfer"): session.engine.transfer_s}
    told = {f"data/{Path(name).name}/{stage}": (value - session.staged.get((name, stage), 0.0)) / seconds
            for (name, stage), value in spent.items()}  # fmt: skip
    session.staged = spent
    return told


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
        for index in range(stream.accumulate):
            window.add(engine(stream.micro(step, index)))
    engine.phase.train()
    means = engine.mean_over_ranks(torch.stack([value / window.count for value in window.sums.values()]).double())
    terms = dict(zip((f"val/{name}" for name in window.sums), means.tolist()))
    return {"val/loss": sum(terms.values()), **terms}


def _save(session: Session) -> None:
    spent = session.spent_s + time.monotonic() - session.started
    state = {**session.identity, "step": session.step, "spent_s": spent}
    checkpoint.save(session.engine, session.run, state, session.job.train.keep)
