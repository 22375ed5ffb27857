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

    Batch n lies in buffer n % slots, which one thread always fills, once the consumer has asked for the batch after the
    one that lay there: nothing is copied, nothing allocated, and no thread can take a place that an earlier batch
    needs. What is yielded is valid until the next one is asked for. The copies that a GPU is still making from a
    buffer are waited for before it is refilled.
    """

    def __init__(
        self, fill: Callable[[int, Buffers], None], make: Callable[[], Buffers], count: int, workers: int
    ) -> None:
        self._fill, self._count, self._workers = fill, count, min(workers, count)
        slots = self._workers * -(-(self._workers + AHEAD) // self._workers) if self._workers else 1
        self._slots = [make() for _ in range(slots)]
        self._copied: list[Any] = [None] * slots
        self._problem: list[BaseException | None] = [None] * slots
        # Plain locks as signals, each released by the other side: several times cheaper than a condition per batch.
        self._free = [threading.Lock() for _ in range(slots)]
        self._filled = [threading.Lock() for _ in range(slots)]
        for lock in self._filled:
            lock.acquire()
        self._stopped = False

    def iterate(self) -> Iterator[tuple[int, Buffers]]:
        """Yield (n, buffers); raises what ``fill`` raised."""
        threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"feed-{worker}", daemon=True)
            for worker in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for n in range(self._count):
                slot = n % len(self._slots)
                if self._workers:
                    self._filled[slot].acquire()
                    if (problem := self._problem[slot]) is not None:
                        raise problem
                else:
                    self._fill(n, self._slots[0])
                yield n, self._slots[slot]
                self._note_copies(slot)
                if self._workers:
                    self._free[slot].release()
        finally:
            self._stop(threads)

    def _stop(self, threads: list[threading.Thread]) -> None:
        self._stopped = True
        for thread in threads:
            while thread.is_alive():
                for lock in self._free:
                    if lock.locked():
                        lock.release()
                thread.join(0.01)

    def _note_copies(self, slot: int) -> None:
        if torch.cuda.is_available() and any(value.is_pinned() for value in self._slots[0].values()):
            self._copied[slot] = torch.cuda.current_stream().record_event()

    def _work(self, worker: int) -> None:
        _one_thread()
        for n in range(worker, self._count, self._workers):
            slot = n % len(self._slots)
            self._free[slot].acquire()
            if self._stopped:
                return
            try:
                if self._copied[slot] is not None:
                    self._copied[slot].synchronize()
                self._fill(n, self._slots[slot])
            except BaseException as problem:  # noqa: BLE001 - handed to the consumer, which raises it
                self._problem[slot] = problem
            self._filled[slot].release()
            if self._problem[slot] is not None:
                return


def _one_thread() -> None:
    """A worker is one core: its copies must not start a team of threads of their own beside the trainer's."""
    from threadpoolctl import threadpool_limits

    torch.empty(1).copy_(torch.zeros(1))  # torch sets its own number at a thread's first operation
    threadpool_limits(1, user_api="openmp")
