"""Run independent pieces of packing in several processes; one failure or Ctrl-C ends them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(work: Callable[[Any], Any], pieces: Sequence[Any], workers: int) -> Iterator[int]:
    """Call ``work(piece)`` for all pieces, yielding how many are done; in this process if ``workers`` is 1.

    Work and pieces must be picklable otherwise. The first exception is raised here after the others have ended.
    """
    if workers <= 1 or len(pieces) <= 1:
        for done, piece in enumerate(pieces, 1):
            work(piece)
            yield done
        return
    # Not fork: threads of numpy and torch may hold locks, and a forked child would wait for them for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cadiff.shards.writer"])
    executor = ProcessPoolExecutor(min(workers, len(pieces)), mp_context=context, initializer=_ignore_interrupt)
    try:
        waiting = {executor.submit(work, piece) for piece in pieces}
        done = 0
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                yield done
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole group; the parent cancels what has not begun, and pieces at work end whole."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
