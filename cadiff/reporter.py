"""Reports of a training job: means over ranks since the last one, speed, and where the time went."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch

from cadiff.accumulate import Forwards
from cadiff.session import Session
from cadiff.telemetry import peak_memory_bytes
from cadiff.tracking import Tracker
from cadiff.window import Window, means

log = logging.getLogger(__name__)


class Reporter:
    """Turns what has been added up since the last report into numbers; the only place where the host waits.

    Attributes:
        lr: the learning rate of the latest step.
        tracker: where reports go, on rank 0.
    """

    def __init__(self, session: Session, tracker: Tracker | None, window: Window, forwards: Forwards) -> None:
        self._session, self.tracker, self._window, self._forwards = session, tracker, window, forwards
        self.lr, self._waited_s, self._staged = 0.0, 0.0, dict(_staged(session))

    def terms(self) -> bool:
        """Report the window; True if any rank was asked to stop.

        Raises:
            NonFiniteError: there was a bad step, and the job is to stop.
            Rewind: the job goes back on account of one.
        """
        session, window = self._session, self._window
        names, totals = window.names(), window.totals()
        asked = torch.tensor([[float(session.stop_asked), 0.0]], device=totals.device, dtype=totals.dtype)
        *totals, (asked_share, _) = session.engine.mean_over_ranks(torch.cat([totals, asked])).tolist()
        try:
            session.bad.settle(session.engine.guard.take(), session.stream)
        finally:  # what led to a stop is worth a line too
            values = self._values(means(names, totals))
            if self.tracker is not None:
                self.tracker.log(session.step, values)
                self._say(values)
            self.restart()
        return asked_share > 0

    def validation(self, values: dict[str, float]) -> None:
        """Report what validation found."""
        session = self._session
        if self.tracker is not None:
            self.tracker.log(session.step, finite(values))
            log.info("step %d/%d | validation loss %.4f", session.step, session.steps, values["val/loss"])

    def restart(self) -> None:
        """Begin a new window: what lies between is no training."""
        self._window.restart()
        self._waited_s, self._staged = self._forwards.wait_s, dict(_staged(self._session))

    def _values(self, terms: dict[str, float]) -> dict[str, float]:
        session, window = self._session, self._window
        seconds = time.monotonic() - window.started
        samples = window.count * session.job.train.batch / session.stream.accumulate
        spent_s = session.spent_s + time.monotonic() - session.started
        memory = session.engine.max_over_ranks(peak_memory_bytes(session.engine.device))
        values = {
            "time_s": spent_s,
            "train/loss": sum(terms.values()) if terms else math.nan,
            **{f"train/{name}": value for name, value in terms.items()},
            **{f"train/{name}": value.item() for name, value in getattr(session.engine.phase, "gauges", {}).items()},
            "optim/lr": self.lr,
            "optim/grad_norm": session.engine.guard.norm.item(),
            "optim/bad_steps": len(session.bad),
            **session.meter.report(samples, seconds, self._forwards.wait_s - self._waited_s, spent_s, memory),
            **self._data_seconds(seconds),
        }
        return finite(values)

    def _data_seconds(self, seconds: float) -> dict[str, float]:
        """Where preparing data spent its time since the last report, by set and stage: seconds of work per second.

        The threads work ahead, so this is what would be waited for if they did not; above 1 they cannot keep up with
        one core. ``transfer`` is the copy to the device, which nobody does ahead.
        """
        return {
            f"data/{Path(name).name}/{stage}": (value - self._staged[name, stage]) / seconds
            for (name, stage), value in _staged(self._session).items()
        }

    def _say(self, values: dict[str, float]) -> None:
        session, done = self._session, self._session.step / self._session.steps
        warmth = f" | temperature {values['train/temperature']:.3f}" if "train/temperature" in values else ""
        log.info(
            "step %d/%d | loss %.4f%s | gnorm %.2f | lr %.1e | %.0f samples/s | data %.0f%% | eta %s",
            session.step, session.steps, values.get("train/loss", math.nan), warmth,
            values.get("optim/grad_norm", math.inf), self.lr, values["perf/samples_per_s"],
            100 * values["perf/data_wait"], _clock(values["time_s"] * (1 / done - 1)),
        )  # fmt: skip


def finite(values: dict[str, float]) -> dict[str, float]:
    """What JSON can hold."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _staged(session: Session) -> dict[tuple[str, str], float]:
    return {**session.stream.seconds, ("all", "transfer"): session.engine.transfer_s}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
