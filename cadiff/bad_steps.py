"""What becomes of a job whose guard left steps out: the record of them, and stopping, going on or going back.

<run>/bad_steps.jsonl: one line per bad step, with the ids of all samples of its batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.config import Job
from cadiff.errors import DataError, NonFiniteError
from cadiff.files import write_text
from cadiff.guard import BadStep
from cadiff.shards.stream import Stream

POLICIES = ("stop", "skip", "rewind")
AROUND = 2  # steps before and after a bad one that are passed by after going back


class Rewind(Exception):
    """The job goes on from its newest checkpoint."""


class BadSteps:
    """The bad steps of a run, those of earlier starts included.

    Attributes:
        passed_by: steps that are not trained on, because the job went back on their account.
    """

    def __init__(self, run: Path, job: Job, writes: bool) -> None:
        self.path, self._job, self._writes = run / "bad_steps.jsonl", job, writes
        self._known: dict[int, dict[str, Any]] = {line["step"]: line for line in _read(self.path)}
        self.passed_by = {step for line in self._known.values() for step in range(*line["passed_by"])}

    def __len__(self) -> int:
        return len(self._known)

    def settle(self, bad: list[BadStep], stream: Stream) -> None:
        """Record bad steps and do as ``train.on_bad_step`` says; every rank calls this with the same ones.

        Raises:
            NonFiniteError: the policy is to stop, or the job has had more bad steps than ``train.bad_budget``.
            Rewind: the policy is to go back.
        """
        policy = self._job.train.on_bad_step
        new = [step for step in bad if not self._settled(step, policy)]
        for step in new:
            around = (max(0, step.step - AROUND), step.step + AROUND + 1) if policy == "rewind" else (0, 0)
            ids = np.sort(stream.sample_ids(step.step)).tolist()
            self._known[step.step] = {
                "step": step.step, "why": step.why, "policy": policy, "passed_by": list(around), "sample_ids": ids,
            }  # fmt: skip
            self.passed_by |= set(range(*around))
        if self._writes and new:
            lines = (self._known[step] for step in sorted(self._known))
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        if not bad:
            return
        if policy == "stop" or len(self) > self._job.train.bad_budget:
            raise NonFiniteError(self._told(bad[0], policy))
        if policy == "rewind" and new:
            raise Rewind

    def _settled(self, step: BadStep, policy: str) -> bool:
        """Whether this is known and dealt with; one that only stopped a job may still send it back."""
        line = self._known.get(step.step)
        return line is not None and (policy != "rewind" or line["policy"] == "rewind")

    def _told(self, first: BadStep, policy: str) -> str:
        many = f" Bad steps so far: {len(self)}; train.bad_budget is {self._job.train.bad_budget}."
        return (
            f"{self._job.name}: optimizer step {first.step} had {first.why}.{many if policy != 'stop' else ''} It "
            f"changed no weights; its samples are listed in {self.path}. Lower optim.lr, check the shards with "
            "`cadiff shards verify`, or continue with train.on_bad_step=skip."
        )


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, raw in enumerate(path.read_bytes().splitlines() if path.is_file() else []):
        try:
            line = json.loads(raw)
            step, (first, last) = int(line["step"]), map(int, line["passed_by"])
            if step < 0 or not 0 <= last - first <= 2 * AROUND + 1 or line["policy"] not in POLICIES:
                raise ValueError
        except (ValueError, KeyError, TypeError, OverflowError):
            raise DataError(
                f"{path}: line {number + 1} is no record of a bad step. Take the line out; the steps it named are then "
                "trained on again."
            ) from None
        lines.append({**line, "step": step, "passed_by": [first, last]})
    return lines
