"""What a person sees while something runs: one bar with rate and ETA on a terminal, calm lines elsewhere."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("cadiff.view")
_STEP = re.compile(r"^step (\d+)/(\d+) \| (.*)$")


class View:
    """Progress of one task after another. Silent under ``--quiet`` because it speaks through the logger."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bars = self.console.is_terminal and log.isEnabledFor(logging.INFO)

    def line(self, text: str) -> None:
        """Say one thing now."""
        if self.bars:
            self.console.print(text, highlight=False, markup=False)
        else:
            log.info("%s", text)

    @contextmanager
    def task(self, title: str) -> Iterator[Task]:
        """Show the progress of one task; ``Task.advance`` has the signature that packers and samplers call."""
        task = Task(self, title)
        try:
            yield task
        finally:
            task.close()


class Task:
    def __init__(self, view: View, title: str) -> None:
        self.view, self.title, self.started, self.said_at = view, title, time.monotonic(), 0.0
        self.bar = None
        if view.bars:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=view.console, transient=True,
            )  # fmt: skip
            self.id = self.bar.add_task(title, total=None, note="")
            self.bar.start()

    def advance(self, label: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` items; a line at most every 5 s where there is no bar."""
        now = time.monotonic()
        rate = done / max(1e-9, now - self.started)
        if self.bar is not None:
            self.bar.update(self.id, completed=done, total=total, note=f"{label}  {rate:.1f}/s")
        elif now - self.said_at > 5 and now - self.started > 5:
            self.said_at = now
            left = (total - done) / max(rate, 1e-9)
            self.view.line(f"{self.title}: {label} {done}/{total} | {rate:.1f}/s | eta {left:.0f}s")

    def training_line(self, text: str) -> None:
        """Take a line of a training job: step reports move the bar, others are printed."""
        step = _STEP.match(text)
        if self.bar is not None and step:
            self.bar.update(self.id, completed=int(step[1]), total=int(step[2]), note=step[3])
        else:
            self.view.line(f"  {text}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
