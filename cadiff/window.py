"""Sums of the terms since the last report; they stay on the device, so that no step waits for the host."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Window:
    """Adds up the finite values of each term: a bad batch changes no weights, and no mean either.

    Attributes:
        count: micro-batches so far.
        started: time.monotonic() of the beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.count, self.started = 0, time.monotonic()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take in 0-d terms of one micro-batch."""
        for name, value in terms.items():
            value = value.detach().float()
            finite = value.isfinite()
            pair = torch.stack([value.where(finite, 0), finite.float()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        self.count += 1

    def names(self) -> list[str]:
        return list(self._sums)

    def totals(self) -> Tensor:
        """Sum and number of finite values of each term: float64 (terms, 2)."""
        return torch.stack([*self._sums.values(), torch.zeros(2, device=self._device)]).double()[:-1]


def means(names: list[str], totals: list[list[float]]) -> dict[str, float]:
    """The mean of each term that was ever finite."""
    return {name: total / count for name, (total, count) in zip(names, totals) if count}
