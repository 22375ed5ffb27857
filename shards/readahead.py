"""Reading pieces of a large set from disk before their samples are due, in the order of first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cadiff.shards.checks import READERS
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import Chosen, pieces_of_blocks

STEPS_AHEAD = 16
_TOGETHER = 64  # steps whose pieces are worked out at once


class Pieces:
    """The pieces of several sets, numbered over all of them."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets, self._of_block, self._blocks = datasets, [], []
        for k, ds in enumerate(datasets):
            of_block = pieces_of_blocks(ds)
            self._of_block.append(of_block + len(self._blocks))
            self._blocks += [
                (k, part) for part in np.split(np.arange(len(of_block)), np.flatnonzero(np.diff(of_block)) + 1)
            ]

    def __len__(self) -> int:
        return len(self._blocks)

    def of(self, samples: Chosen) -> np.ndarray:
        """The piece of each sample: int64 (M,)."""
        pieces = np.empty(len(samples), dtype=np.int64)
        for k, ds in enumerate(self._datasets):
            mine = samples.which == k
            pieces[mine] = self._of_block[k][ds.block_of[samples.ids[mine]]]
        return pieces

    def look(self, piece: int) -> None:
        """Read a piece and check its blocks."""
        k, blocks = self._blocks[piece]
        self._datasets[k].checks.look(blocks)


class ReadAhead:
    """Brings every piece into memory (the page cache) once per epoch, checked, some steps before it is used.

    ``wait(step)`` returns when all that the step needs is there. Reading whole pieces in a few large requests is what
    makes a windowed order fast on a cold disk; a row of a mapped file would be fetched page by page.
    """

    def __init__(self, pieces: Pieces, samples_of: Callable[[int], Chosen], steps_per_epoch: int) -> None:
        """Args: ``samples_of``: the samples of a step, always as many."""
        self._pieces, self._samples_of, self._steps_per_epoch = pieces, samples_of, steps_per_epoch
        self._ready_before, self._asked, self._stopped = 0, 0, False
        self._problem: BaseException | None = None
        self._turn = threading.Condition()

    def start(self, first: int, last: int) -> None:
        """Begin to read what the steps ``first`` to ``last`` - 1 need."""
        self._ready_before = self._asked = first
        self._thread = threading.Thread(target=self._run, args=(first, last), name="read-ahead", daemon=True)
        self._thread.start()

    def wait(self, step: int) -> None:
        """Wait until everything for ``step`` has been read; raises what reading raised."""
        with self._turn:
            self._asked = max(self._asked, step)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._ready_before > step or self._problem or self._stopped)
            if self._problem is not None:
                raise self._problem

    def stop(self) -> None:
        """End reading; waits for the requests that are in flight."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        self._thread.join()

    def _run(self, first: int, last: int) -> None:
        pending: list[tuple[int, list]] = []
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
                for step, pieces in self._new_pieces(first, last):
                    jobs = [pool.submit(self._pieces.look, piece) for piece in pieces]
                    pending.append((step, jobs))
                    # The requests of later steps stand in the queue while those of this one are waited for.
                    while pending and (len(pending) > STEPS_AHEAD or step == last - 1):
                        self._finish(*pending.pop(0))
                    with self._turn:
                        self._turn.wait_for(lambda: self._stopped or step <= self._asked + 2 * STEPS_AHEAD)  # noqa: B023
                        if self._stopped:
                            return
                    while pending and all(job.done() for job in pending[0][1]):
                        self._finish(*pending.pop(0))
        except BaseException as problem:  # noqa: BLE001 - handed to whoever waits, who raises it
            with self._turn:
                self._problem = problem
                self._turn.notify_all()

    def _finish(self, step: int, jobs: list) -> None:
        for job in jobs:
            job.result()
        with self._turn:
            self._ready_before = step + 1
            self._turn.notify_all()

    def _new_pieces(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
        """Each step with the pieces that no earlier step of its epoch has touched."""
        begin = first
        while begin < last:
            epoch = begin // self._steps_per_epoch
            if begin == first or begin % self._steps_per_epoch == 0:
                seen = np.zeros(len(self._pieces), dtype=bool)
            end = min(begin + _TOGETHER, last, (epoch + 1) * self._steps_per_epoch)
            used = np.stack([self._pieces.of(self._samples_of(step)) for step in range(begin, end)])
            found, place = np.unique(used, return_index=True)
            fresh = ~seen[found]
            seen[found] = True
            step_of, pieces = place[fresh] // used.shape[1], found[fresh]
            for step in range(begin, end):
                yield step, pieces[step_of == step - begin].tolist()
            begin = end
