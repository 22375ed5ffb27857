"""Steps that must not change the weights: a gradient norm that is not finite, or far above those before it.

Whether a step is bad is decided on the device, from the norm that all ranks share, and AdamW's fused kernel then leaves
weights and moments alone; the host learns of it at the next report, so that no step waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WARM = 20  # good steps before a norm can be a spike
MEMORY = 0.98  # of the running mean of norms: some fifty steps


@dataclass(frozen=True)
class BadStep:
    """A step that was left out: its number, from 0, and its gradient norm before clipping."""

    step: int
    norm: float

    @property
    def why(self) -> str:
        finite = self.norm == self.norm and abs(self.norm) != float("inf")
        return f"a spike, with a gradient norm of {self.norm:.3g}" if finite else f"a gradient norm of {self.norm}"


class Guard:
    """Looks at every step's gradient norm just before the optimizer's kernel runs.

    Attributes:
        norm: the latest step's global gradient norm before clipping, a 0-d float32 tensor.
        applied: 1 where the latest step changed the weights, else 0; a 0-d float32 tensor too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        norm_of: Callable[[], Tensor],
        spike: float,
        device: torch.device,
        held: torch.device | None = None,
    ) -> None:
        """Args:
        optimizer: fused AdamW, which leaves everything as it is where its ``found_inf`` is 1.
        norm_of: gives the global gradient norm once the gradients are complete; the same on every rank.
        spike: a norm above so many times the running mean is bad; 0: none is.
        """
        self._optimizer, self._norm_of, self._spike, self._held = optimizer, norm_of, spike, held or device
        self._seen = torch.zeros((), device=device)  # good steps
        self._mean = torch.zeros((), device=device)
        self._told: list[tuple[int, Tensor, Tensor]] = []
        self._step, self._judged = 0, True
        self.norm, self.applied = torch.zeros((), device=device), torch.ones((), device=device)
        optimizer.register_step_pre_hook(self._before)

    def begin(self, step: int) -> None:
        """Say which step the next update belongs to."""
        self._step, self._judged = step, False

    def end(self) -> bool:
        """After the update; False if nobody asked for it, because DeepSpeed found the norm infinite or NaN itself."""
        if self._judged:
            return True
        self.norm, self.applied = torch.full_like(self._mean, float("inf")), torch.zeros_like(self._mean)
        self._told.append((self._step, torch.ones_like(self._mean), self.norm))
        self._judged = True
        return False

    def forgive(self) -> None:
        """Forget the latest step: its gradients were beyond float16 only because their scale was too high."""
        self._told.pop()

    def take(self) -> list[BadStep]:
        """The bad steps since the last call, read from the device at once."""
        told, self._told = self._told, []
        if not told:
            return []
        bad, norms = torch.stack([torch.stack([bad, norm]) for _, bad, norm in told], dim=1).tolist()
        return [BadStep(step, norm) for (step, _, _), is_bad, norm in zip(told, bad, norms) if is_bad]

    def state(self) -> dict[str, Any]:
        """What a resumed job needs to judge alike."""
        return {"seen": self._seen.item(), "mean": self._mean.item()}

    def load(self, state: dict[str, Any]) -> None:
        self._seen.fill_(state["seen"])
        self._mean.fill_(state["mean"])
        self._told = []

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        """DeepSpeed calls the optimizer once per group; the first call of a step decides for all."""
        if self._judged:
            return
        self._judged = True
        norm = self._norm_of().detach().float().to(self._mean.device)
        bad = ~norm.isfinite()
        if self._spike:
            bad |= (self._seen >= WARM) & (norm > self._spike * self._mean)
        kept = MEMORY * (self._seen > 0)
        self._mean = torch.where(bad, self._mean, kept * self._mean + (1 - kept) * norm)
        self._seen = self._seen + ~bad
        self._optimizer.found_inf = bad.float().to(self._held)
        self.norm, self.applied = norm, 1 - bad.float()
        self._told.append((self._step, bad.float(), norm))
