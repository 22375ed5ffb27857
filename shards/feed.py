"""Batches prepared ahead of the trainer by threads, in buffers that are used again; any number gives the same order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cadiff.shards.batches import Buffers

AHEAD = 2  # batches ready beyond those being prepared


class Feed:
    """Runs ``fill(n, buffers)`` for n = 0, 1, … in several threads; ``iterate`` yields the buffers in order.

    Buffer n % slots takes batch n, once the consumer has asked for the batch after n - slots: nothing is copied,
    nothing allocated, and no thread can take a place that an earlier batch needs. What is yielded is valid until the
    next one is asked for. The copies that a GPU is still making from a buffer are waited for before it is refilled.
    """

    def __init__(
        self, fill: Callable[[int, Buffers], None], make: Callable[[], Buffers], count: int, workers: int
    ) -> None:
        self._fill, self._count, self._workers = fill, count, workers
        self._slots = [make() for _ in range(min(workers + AHEAD, count) if workers else 1)]
        self._copied: list[Any] = [None] * len(self._slots)
        self._filled: dict[int, BaseException | None] = {}
        self._asked = 0  # batches the consumer has asked for: all before the last of them may be overwritten
        self._stopped = False
        self._turn = threading.Condition()

    def iterate(self) -> Iterator[tuple[int, Buffers]]:
        """Yield (n, buffers); raises what ``fill`` raised."""
        threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"feed-{worker}", daemon=True)
            for worker in range(min(self._workers, self._count))
        ]
        for thread in threads:
            thread.start()
        try:
            for n in range(self._count):
                if not self._workers:
                    self._fill(n, self._slots[0])
                else:
                    self._wait_for(n)
                yield n, self._slots[n % len(self._slots)]
                self._note_copies(n)
        finally:
            with self._turn:
                self._stopped = True
                self._turn.notify_all()
            for thread in threads:
                thread.join()

    def _wait_for(self, n: int) -> None:
        with self._turn:
            self._asked = n
            self._turn.notify_all()
            self._turn.wait_for(lambda: n in self._filled)
            problem = self._filled.pop(n)
        if problem is not None:
            raise problem

    def _note_copies(self, n: int) -> None:
        if torch.cuda.is_available() and any(value.is_pinned() for value in self._slots[0].values()):
            self._copied[n % len(self._slots)] = torch.cuda.current_stream().record_event()

    def _work(self, worker: int) -> None:
        _one_thread()
        for n in range(worker, self._count, self._workers):
            with self._turn:
                self._turn.wait_for(lambda: self._stopped or n < self._asked + len(self._slots))  # noqa: B023
            if self._stopped:
                return
            problem = None
            try:
                slot = n % len(self._slots)
                if self._copied[slot] is not None:
                    self._copied[slot].synchronize()
                self._fill(n, self._slots[slot])
            except BaseException as caught:  # noqa: BLE001 - handed to the consumer, which raises it
                problem = caught
            with self._turn:
                self._filled[n] = problem
                self._turn.notify_all()
            if problem is not None:
                return


def _one_thread() -> None:
    """A worker is one core: its copies must not start a team of threads of their own beside the trainer's."""
    from threadpoolctl import threadpool_limits

    torch.empty(1).copy_(torch.zeros(1))  # torch sets its own number at a thread's first operation
    threadpool_limits(1, user_api="openmp")
