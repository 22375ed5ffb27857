"""Run independent pieces of packing in several processes; one failure or Ctrl-C ends them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from cadiff.errors import ConfigError

Item = TypeVar("Item")
_MANY_BYTES = 10**9  # below it, starting processes takes longer than it saves


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(size: int, asked: int | None) -> int:
    """Processes for so many bytes of input: as asked, or every core where there is enough to do."""
    return asked or (cores() if size > _MANY_BYTES else 1)


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
    # What all pieces share may be large, a list of all inputs for one: it goes to each process once.
    executor = ProcessPoolExecutor(min(workers, len(pieces)), context, initializer=_begin, initargs=(work,))
    try:
        waiting = {executor.submit(_do, piece) for piece in pieces}
        done = 0
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                yield done
    except BrokenProcessPool:
        raise ConfigError(
            "a packing process was ended from outside, most likely because memory ran out. Start the same command "
            "again with fewer --workers; it goes on from the finished parts."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


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


def _begin(work: Callable[[Any], Any]) -> None:
    """Make a process ready for pieces of one work, with a core of its own to compute on."""
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the parent cancels what has not begun, and pieces at work end whole.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared["work"] = work


def _do(piece: Any) -> None:
    _shared["work"](piece)
