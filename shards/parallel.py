"""Run independent pieces of packing in several processes; one failure or Ctrl-C ends them all."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from cadiff.distributed import alive
from cadiff.errors import ConfigError
from cadiff.files import memory_bytes

log = logging.getLogger(__name__)

Item = TypeVar("Item")
_MANY_BYTES = 10**9  # below it, starting processes takes longer than it saves


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(size: int, asked: int | None, each: int = 10**9) -> int:
    """Processes for so many bytes of input: as asked, or every core where there is enough to do and memory for it.

    Args: ``each``: bytes of memory that a process may take, roughly.
    """
    return asked or (max(1, min(cores(), memory_bytes() // 2 // each)) if size > _MANY_BYTES else 1)


def slices(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """The items in order, in pieces of ``most``."""
    return [items[start : start + most] for start in range(0, len(items), most)]


def run_all(work: Callable[[Any], Any], pieces: Sequence[Any], workers: int) -> Iterator[int]:
    """Call ``work(piece)`` for all pieces, yielding how many are done; in this process if ``workers`` is 1.

    Work and pieces must be picklable otherwise. The first exception is raised here after the others have ended.

    Raises:
        ConfigError: a process was killed.
    """
    if workers <= 1 or len(pieces) <= 1:
        for done, piece in enumerate(pieces, 1):
            work(piece)
            yield done
        return
    # Not fork: threads of numpy and torch may hold locks, and a forked child would wait for them for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cadiff.shards.writer"])
    others = set(multiprocessing.active_children())
    # What all pieces share may be large, a list of all inputs for one: it goes to each process once.
    how = {"initializer": _begin, "initargs": (work, os.getpid())}
    executor = ProcessPoolExecutor(min(workers, len(pieces)), context, **how)
    mine: set[BaseProcess] = set()
    try:
        coming, done = iter(pieces), 0
        # No more than can be worked on: what is handed over is not taken back when Ctrl-C comes.
        waiting = {executor.submit(_do, piece) for piece in islice(coming, workers)}
        mine = set(multiprocessing.active_children()) - others
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                waiting |= {executor.submit(_do, piece) for piece in islice(coming, 1)}
                done += 1
                yield done
    except BrokenProcessPool:
        raise _ended(mine) from None
    finally:
        _end(executor, set(multiprocessing.active_children()) - others)


def _end(executor: ProcessPoolExecutor, processes: set[BaseProcess]) -> None:
    """Let pieces at work end whole; a second Ctrl-C ends their processes at once."""
    at_work = sys.exc_info()[0] is not None
    if at_work and processes:
        log.warning("the parts at work end first, and are kept; a second Ctrl-C drops them")
    try:
        executor.shutdown(wait=True, cancel_futures=True)
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        executor.shutdown(wait=True)
        raise


def _ended(processes: set[BaseProcess]) -> ConfigError:
    """What to say when a process ended without an answer."""
    for process in processes:
        process.join(1)
    codes = {process.exitcode for process in processes}
    again = "Start the same command again: it goes on from the finished parts."
    if -signal.SIGKILL in codes:
        return ConfigError(
            f"a packing process was killed, most likely because memory ran out. {again} Fewer --workers need less."
        )
    return ConfigError(
        f"a packing process ended without a word (exit codes {sorted(code or 0 for code in codes)}). -7 means a full "
        "or failing disk; 1 that it could not start, as in a script that packs without "
        f"`if __name__ == '__main__':`. {again}"
    )


class Behind:
    """One piece of work at a time in a thread behind the caller, which waits before it hands over the next.

    What a piece raises is raised where the next is handed over, or at the end of the ``with`` block.
    """

    def __enter__(self) -> Behind:
        self._pool, self._last = ThreadPoolExecutor(1, thread_name_prefix="behind"), None
        return self

    def do(self, work: Callable[..., object], *arguments: Any) -> None:
        self._finish()
        self._last = self._pool.submit(work, *arguments)

    def _finish(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown(wait=True)


_shared: dict[str, Callable[[Any], Any]] = {}  # of a worker process


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    """Make a process ready for pieces of one work, with a core of its own to compute on."""
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the parent cancels what has not begun, and pieces at work end whole.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _shared["work"] = work


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone: nobody would collect its work, or tell it to stop."""
    while alive(parent):
        time.sleep(1)
    os._exit(1)


def _do(piece: Any) -> None:
    _shared["work"](piece)
