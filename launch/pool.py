"""Independent, single-threaded work shared by two processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from cadiff.launch.worker import end_with


@contextmanager
def two_processes(work: Callable, calls: Sequence[tuple]) -> Iterator[dict[Future, tuple[Any, ...]]]:
    """Start ``work(*arguments)`` for each of ``calls``; gives the futures with their arguments.

    Whoever leaves with an error, Ctrl-C among them, does not wait for what the workers are doing.
    """
    pool = ProcessPoolExecutor(2, get_context("spawn"), initializer=end_with, initargs=(str(os.getpid()),))
    try:
        with _held_back(signal.SIGINT):
            started = {pool.submit(work, *arguments): arguments for arguments in calls}
        yield started
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.kill()
        raise
    pool.shutdown()


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Let a signal wait until the end of this block; processes started in it never see it, whatever their terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
