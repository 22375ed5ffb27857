"""Forwards over the micro-batches of a step, also where the loss is of the whole batch and not a mean of its parts.

A contrast among all samples of a step does not fall apart into micro-batches. There every micro-batch is run twice:
first without a graph, for its predictions; then with one, beside the others' predictions. The gradients add up to those
of one large batch, in the memory of a small one (the gradient caching of Gao et al., 2021, without its second pass
through the loss: each micro-batch computes the whole loss, of which it owns its rows' gradients).
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor

from cadiff.engine import Engine

Batch = dict[str, Tensor]


class Forwards:
    """Runs the engine on micro-batches in their order.

    Attributes:
        wait_s: seconds spent waiting for data so far.
    """

    def __init__(self, engine: Engine, accumulate: int, passed_by: Container[int] = ()) -> None:
        """Args:
        accumulate: micro-batches of a step.
        passed_by: steps whose batches are not run.
        """
        self._engine, self._accumulate, self._passed_by, self.wait_s = engine, accumulate, passed_by, 0.0
        self._whole = accumulate > 1 and getattr(engine.phase, "contrasts_whole_batch", False)

    def over(self, micro_batches: Iterable[tuple[int, int, Batch]]) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Yield (step, index, terms); each must be back-propagated before the next is asked for.

        A step that is passed by has no terms.
        """
        held: list[Batch] = []
        for step, index, batch in self._awaited(micro_batches):
            if step in self._passed_by:
                yield step, index, {}
                continue
            if not self._whole:
                yield step, index, self._engine(batch)
                continue
            # The stream fills its memory again, so what is kept is copied.
            held.append({key: value.clone() for key, value in self._engine.taken(batch).items()})
            if len(held) == self._accumulate:
                for place, terms in enumerate(self._together(held)):
                    yield step, place, terms
                held = []

    def _together(self, batches: list[Batch]) -> Iterator[dict[str, Tensor]]:
        known = [self._engine.features(batch) for batch in batches]
        for i, batch in enumerate(batches):
            others = {
                f"others/{name}": torch.cat([rows[name] for j, rows in enumerate(known) if j != i]) for name in known[0]
            }
            yield self._engine({**batch, **others})

    def _awaited(self, micro_batches: Iterable[tuple[int, int, Batch]]) -> Iterator[tuple[int, int, Batch]]:
        stream = iter(micro_batches)
        while True:
            began = time.monotonic()
            try:
                item = next(stream)
            except StopIteration:
                return
            self.wait_s += time.monotonic() - began
            yield item
