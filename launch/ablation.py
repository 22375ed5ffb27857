"""Run the cells of an ablation in turn: finished ones are passed by, a failed one is told and the rest goes on."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from cadiff.errors import CadiffError, DataError, Preempted
from cadiff.files import read_json
from cadiff.launch.ablation_cells import Cell, Plan, Run
from cadiff.launch.ablation_decode import Decoder
from cadiff.launch.ablation_state import state_of
from cadiff.launch.view import View
from cadiff.launch.worker import hold

log = logging.getLogger(__name__)
DECODING = "decoding"  # the kind of step that samples and scores


class CellsFailed(CadiffError):
    """Some cells did not end well; the others and the table are there, and the same command tries those again."""

    exit_code = 1


class Clock:
    """What is left and how long that will take, from what steps of the same kind took, in earlier starts too."""

    def __init__(self, waiting: dict[Path, str]) -> None:
        self._waiting, self._took = dict(waiting), defaultdict(list)
        self.total = len(waiting)

    def ended(self, step: Path, seconds: float | None = None) -> None:
        """A step is over; without ``seconds`` it says nothing about the others."""
        kind = self._waiting.pop(step, None)
        if kind is not None and seconds is not None:
            self._took[kind].append(seconds)

    def left_s(self) -> float | None:
        """Seconds to the end; None before anything of any kind was seen."""
        every = [seconds for taken in self._took.values() for seconds in taken]
        if not every:
            return None
        means = defaultdict(lambda: sum(every) / len(every))
        means.update({kind: sum(taken) / len(taken) for kind, taken in self._took.items()})
        return sum(count * means[kind] for kind, count in Counter(self._waiting.values()).items())

    def describe(self) -> str:
        left = self.left_s()
        minutes, seconds = divmod(round(left or 0), 60)
        eta = "not known yet" if left is None else f"{minutes // 60}h{minutes % 60:02d}m{seconds:02d}s"
        return f"{len(self._waiting)} of {self.total} runs left | eta {eta}"


class Ablation:
    """One ablation in one folder.

    Args:
        train: does one run; ``start_training``, or what takes the same.
        after_cell: called after every cell in which something was done; writes the table as it stands.

    Attributes:
        failures: cell -> message, of this call.
    """

    def __init__(
        self,
        plan: Plan,
        ranks: int,
        view: View,
        *,
        train: Callable[..., None],
        after_cell: Callable[[dict[str, str]], Any],
    ) -> None:
        self.plan, self.ranks, self.view, self._after_cell = plan, ranks, view, after_cell
        self._train = train
        self._decoder = Decoder(plan, view) if plan.grid.sample is not None else None
        self.failures: dict[str, str] = {}
        self._lost: dict[Path, str] = {}  # folders of runs that failed in this call, with the cell that tried
        steps = {run.folder: run.phase for run in plan.runs}
        steps |= {cell.folder: DECODING for cell in plan.cells if self._decoder is not None}
        self.clock = Clock(steps)

    def run(self) -> None:
        """Do every cell; what failed is in ``failures``.

        Raises:
            Preempted: this process was asked to stop; the same command continues.
        """
        with hold(self.plan.out):
            if self._decoder is not None:
                self._decoder.forget_stale()
            for run in self.plan.runs:
                if state_of(run) == "finished":
                    self.clock.ended(run.folder, read_json(run.folder / "summary.json").get("seconds"))
            self.view.line(f"{self.plan.grid.name}: {len(self.plan.cells)} cells | {self.clock.describe()}")
            for number, cell in enumerate(self.plan.cells, start=1):
                if self._cell(cell, f"[{number}/{len(self.plan.cells)}] {cell.name}"):
                    self._after_cell(self.failures)

    def check(self) -> None:
        """Raise CellsFailed if any cell failed."""
        if self.failures:
            told = "\n        ".join(f"{name}: {text}" for name, text in self.failures.items())
            count = f"{len(self.failures)} of {len(self.plan.cells)} cells failed"
            raise CellsFailed(f"{count}; the same command tries them again.\n        {told}")

    def _cell(self, cell: Cell, title: str) -> bool:
        """Do one cell; False if everything was done before."""
        worked = False
        try:
            for run in cell.runs:
                worked |= self._run(cell, run, f"{title} {run.phase}")
            if self._decoder is not None:
                began = monotonic()
                anything = self._decoder.run(cell)
                self.clock.ended(cell.folder, monotonic() - began if anything else None)
                worked |= anything
        except Preempted:
            raise
        except Exception as problem:  # one cell's failure, whatever it is, must not cost the others
            text = str(problem)
            if not isinstance(problem, CadiffError):  # a bug, whose place somebody will want to know
                text = f"{type(problem).__name__}: {problem}"
                log.error("%s", title, exc_info=True)
            self.failures[cell.name] = text
            for step in (*(run.folder for run in cell.runs), cell.folder):
                self.clock.ended(step)
            self.view.line(f"{title}: failed: {text}")
            return True
        return worked

    def _run(self, cell: Cell, run: Run, title: str) -> bool:
        """Train one run unless it is finished."""
        if run.folder in self._lost:
            raise CellsFailed(f"it needs the {run.phase} that failed in {self._lost[run.folder]}.")
        if state_of(run) == "finished":
            return False
        self.view.line(title)
        began = monotonic()
        try:
            with self.view.task(title) as task:
                words = list(run.overrides)
                say = task.training_line
                self._train(run.config, words, run.folder, phase=run.phase, ranks=self.ranks, say=say)
            if state_of(run) != "finished":
                raise DataError(f"{run.folder}: ended, but not as a run of these settings. Was CADiff changed?")
        except Exception:
            self._lost[run.folder] = cell.name
            raise
        self.clock.ended(run.folder, monotonic() - began)
        self.view.line(f"{title}: done | {self.clock.describe()}")
        return True
