"""Where numbers go: metrics.jsonl is the truth; wandb is a mirror that may fail without stopping a job."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cadiff.config import Job
from cadiff.files import write_text

log = logging.getLogger(__name__)


class Tracker:
    """Append one JSON line per report; after a resume, lines beyond the resumed step are dropped first."""

    def __init__(self, run: Path, job: Job, resumed_at: int) -> None:
        self.path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= resumed_at]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the job)
        self._mirror = _start_wandb(run, job)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._mirror is not None:
            self._try(lambda: self._mirror.log(values, step=step))

    def close(self) -> None:
        self._file.close()
        if self._mirror is not None:
            self._try(self._mirror.finish)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as problem:  # noqa: BLE001 (a mirror must never stop training)
            log.warning("wandb stopped mirroring: %s", problem)
            self._mirror = None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All reports of a run; a last line cut by a kill is left out."""
    lines = []
    path = run / "metrics.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _start_wandb(run: Path, job: Job) -> Any:
    if job.track.wandb == "off":
        return None
    try:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        return wandb.init(
            project=job.track.project,
            name=job.name,
            dir=str(run),
            mode=job.track.wandb,
            config=job.model_dump(),
            settings=wandb.Settings(init_timeout=30, x_disable_stats=True, console="off", disable_git=True),
        )
    except Exception as problem:  # noqa: BLE001 (a mirror must never stop training)
        log.warning("wandb is not mirroring this run: %s", problem)
        return None
