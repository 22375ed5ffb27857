"""Where numbers go: metrics.jsonl is the truth; wandb and TensorBoard are mirrors that may fail without stopping a job.

Legend: H and W rows and columns of a picture.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cadiff.config import Job
from cadiff.files import write_text

log = logging.getLogger(__name__)


class Mirror(Protocol):
    """What shows a run somewhere else. Its constructor takes (run, job, step to continue from); anything may raise."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, pixels_HW3: np.ndarray) -> None: ...

    def go_back(self, step: int) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Append one JSON line per report; after a resume, lines beyond the resumed step are dropped first."""

    def __init__(self, run: Path, job: Job, resumed_at: int) -> None:
        self.path, self._run = run / "metrics.jsonl", run
        self._open(resumed_at)
        self._mirrors: dict[str, Mirror] = {}
        for name, asked, make, remedy in _MIRRORS:
            if asked(job):
                self._start(name, lambda make=make: make(run, job, resumed_at), remedy)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._each(lambda mirror: mirror.log(step, numbers))

    def log_picture(self, step: int, name: str, picture: Path | np.ndarray) -> None:
        """Show a picture in the mirrors that are live: a file, or uint8 (H, W, 3). Nothing of it is kept here."""
        if not self._mirrors:
            return
        try:
            pixels_HW3 = picture if isinstance(picture, np.ndarray) else _read_picture(picture)
        except OSError as problem:
            log.warning("%s is not shown at step %d: %s", name, step, problem)
            return
        self._each(lambda mirror: mirror.picture(step, name, pixels_HW3))

    def go_back(self, step: int) -> None:
        """Drop what was reported of later steps: they will be trained again."""
        self._file.close()
        self._open(step)
        self._each(lambda mirror: mirror.go_back(step))

    def close(self) -> None:
        self._file.close()
        self._each(lambda mirror: mirror.close())

    def _open(self, last_step: int) -> None:
        kept = [line for line in read_metrics(self._run) if line["step"] <= last_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the job)

    def _start(self, name: str, make: Callable[[], Mirror], remedy: str) -> None:
        try:
            self._mirrors[name] = make()
        except ImportError as problem:
            log.warning("%s is not mirroring this run: %s. %s", name, problem, remedy)
        except Exception as problem:  # noqa: BLE001 (a mirror must never stop training)
            log.warning("%s is not mirroring this run: %s", name, problem)

    def _each(self, call: Callable[[Mirror], object]) -> None:
        """Call every mirror that is live; one that fails is told once, and left out from then on."""
        for name, mirror in list(self._mirrors.items()):
            try:
                call(mirror)
            except Exception as problem:  # noqa: BLE001 (a mirror must never stop training)
                log.warning("%s stopped mirroring: %s", name, problem)
                del self._mirrors[name]


class _Wandb:
    """Weights & Biases, offline by default. Steps are a metric of their own: wandb's counter cannot go back."""

    def __init__(self, run: Path, job: Job, resumed_at: int) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project=job.track.project,
            name=job.name,
            dir=str(run),
            mode=job.track.wandb,
            config=job.model_dump(),
            settings=wandb.Settings(init_timeout=30, x_disable_stats=True, console="off", disable_git=True),
        )
        self._image = wandb.Image
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, pixels_HW3: np.ndarray) -> None:
        self._run.log({name: self._image(pixels_HW3), "step": step})

    def go_back(self, step: int) -> None:
        """What was logged stays; the steps trained again are logged beside it."""

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    """Event files under ``<run>/tensorboard``; those of steps that are trained again are purged by the reader."""

    def __init__(self, run: Path, job: Job, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = lambda step: SummaryWriter(str(run / "tensorboard"), purge_step=step + 1, flush_secs=30)
        self._writer = self._make(resumed_at)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels_HW3: np.ndarray) -> None:
        self._writer.add_image(name, pixels_HW3, step, dataformats="HWC")

    def go_back(self, step: int) -> None:
        self._writer.close()
        self._writer = self._make(step)

    def close(self) -> None:
        self._writer.close()


# Name, whether a job wants it, how it is made, and what to do if its package is missing.
_MIRRORS: list[tuple[str, Callable[[Job], bool], Callable[[Path, Job, int], Mirror], str]] = [
    ("wandb", lambda job: job.track.wandb != "off", _Wandb, "Run pip install wandb, or set track.wandb=off."),
    (
        "TensorBoard",
        lambda job: job.track.tensorboard,
        _TensorBoard,
        "Run pip install 'cadiff[tensorboard]', or set track.tensorboard=false.",
    ),
]


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


def _read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 (H, W, 3)."""
    from PIL import Image

    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))
