"""One training job, the same for every phase: stream -> engine(batch) -> backward -> step, reports and checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadiff import checkpoint
from cadiff.accumulate import Forwards
from cadiff.bad_steps import Rewind
from cadiff.config import Job
from cadiff.distributed import Place
from cadiff.engine import start_processes
from cadiff.errors import NonFiniteError, Preempted
from cadiff.files import read_json
from cadiff.finish import finish, keep_best
from cadiff.leakage import validation_leak
from cadiff.phases.pretrain import Pretrain
from cadiff.previews import draw
from cadiff.reporter import Reporter
from cadiff.schedule import lr_at
from cadiff.session import Session, prepare, restore
from cadiff.tracking import Tracker
from cadiff.window import Window

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
        while not _loop(session, tracker):
            _go_back(session, tracker)
    finally:
        if tracker is not None:
            tracker.close()
    return finish(session)


def _loop(session: Session, tracker: Tracker | None) -> bool:
    """Train to the last step; False if the job has to go back to its newest checkpoint."""
    job, engine, stream = session.job, session.engine, session.stream
    engine.phase.train()
    window, forwards = Window(engine.device), Forwards(engine, stream.accumulate, session.bad.passed_by)
    report = Reporter(session, tracker, window, forwards)
    with contextlib.closing(stream.iterate(session.step, session.steps)) as batches:
        for step, index, terms in forwards.over(batches):
            if index == 0:
                report.lr = lr_at(step, job.optim, session.steps, stream.steps_per_epoch)
                engine.set_lr(report.lr)
            if terms:
                engine.backward_and_step(torch.stack(list(terms.values())).sum(), step)
                window.add(terms)
            if index == stream.accumulate - 1:
                session.step = step + 1
                try:
                    _after_step(session, report)
                except Rewind:
                    return False
    return True


def _after_step(session: Session, report: Reporter) -> None:
    train_options, step = session.job.train, session.step
    last = step == session.steps
    stopping = False
    saving = step % train_options.save_every == 0
    if (
        step % train_options.log_every == 0 or saving or last or step == 1
    ):  # nothing is saved before bad steps are known
        stopping = report.terms()
    if session.val is not None and (step % train_options.val_every == 0 or last):
        values = validate(session)
        report.validation(values)
        keep_best(session, values)
        draw(session, report.tracker)
        report.restart()
    if (saving or stopping) and not last:
        _save(session)
        report.restart()
    if stopping and not last:
        raise Preempted(f"{session.job.name}: asked to stop; saved at step {step}. The same command continues.")


def _go_back(session: Session, tracker: Tracker | None) -> None:
    """Return to the newest checkpoint; the steps around the bad one will be passed by."""
    reached, spent_s = session.step, session.spent_s + time.monotonic() - session.started
    if not restore(session):
        raise NonFiniteError(
            f"{session.job.name}: a bad step before the first checkpoint leaves nothing to go back to; see "
            f"{session.bad.path}. Start again with a lower optim.lr, or with train.on_bad_step=skip."
        )
    session.spent_s = spent_s  # what is done again was paid for
    log.warning("%s: a bad step; from step %d back to step %d", session.job.name, reached, session.step)
    if tracker is not None:
        tracker.go_back(session.step)


@torch.no_grad()
def validate(session: Session) -> dict[str, float]:
    """Mean terms over the validation split, with the masks and noise of epoch -1 every time.

    Where a running mean of the weights is kept, the same with it, under ``val_ema``. The figures of a phase that has
    any are those of the weights that would be exported. ``perf/val_s`` is what all this took.
    """
    began = time.monotonic()
    session.engine.phase.eval()
    values = _mean_terms(session, "val")
    if isinstance(session.engine.phase, Pretrain):
        rows = (session.engine.features(batch) for _, _, batch in _validation_batches(session))
        values |= validation_leak(rows, session.job.loss.temperature)  # of this rank's share; rank 0 reports
    with session.engine.averaged():
        if session.engine.mean is not None:
            values |= _mean_terms(session, "val_ema")
        if session.figures is not None:
            values |= session.figures.of(session.engine, "val_ema" if session.engine.mean is not None else "val")
    session.engine.phase.train()
    return values | {"perf/val_s": time.monotonic() - began}


def _mean_terms(session: Session, name: str) -> dict[str, float]:
    window = Window(session.engine.device)
    for _, _, terms in Forwards(session.engine, session.val.accumulate).over(_validation_batches(session)):
        window.add(terms)
    totals = session.engine.mean_over_ranks(window.totals()).tolist()
    found = {  # unlike in training, one bad value shows
        term: total / count if count == window.count else math.nan
        for term, (total, count) in zip(window.names(), totals)
    }
    return {f"{name}/loss": sum(found.values()), **{f"{name}/{term}": value for term, value in found.items()}}


def _validation_batches(session: Session) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    stream = session.val
    for step in range(min(session.job.train.val_batches, stream.steps_per_epoch)):
        for index in range(stream.accumulate):
            yield step, index, stream.micro(step, index)


def _save(session: Session) -> None:
    spent = session.spent_s + time.monotonic() - session.started
    state = {**session.identity, "step": session.step, "spent_s": spent, "engine": session.engine.state()}
    state["best"] = session.best.found
    checkpoint.save(session.engine, session.run, state, session.job.train.keep)
