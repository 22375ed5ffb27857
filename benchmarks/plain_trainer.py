"""A training step of phase 1 as the paper's code takes it: AdamW tensor by tensor, and copies to the host every step.

Predictions are correlated with the signals one sample at a time, visible voxels included.

Legend: B samples, V voxels, L patches, P voxels per patch.
"""

from __future__ import annotations

import numpy as np
import torch
from plain_phase1 import PlainMae, View
from torch import Tensor


class Trainer:
    """One training step as the paper's code takes it, autocast to ``half`` if that is given.

    Attributes:
        correlation: of the last step's prediction with the signal, visible voxels included, mean over samples.
    """

    def __init__(
        self, network: PlainMae, weight_decay: float = 0.05, clip: float = 0.8, half: torch.dtype | None = None
    ) -> None:  # fmt: skip
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")], "weight_decay": 0.0},
            {"params": [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=weight_decay)
        self.network, self.clip, self.half, self.correlation = network, clip, half, float("nan")

    def step(self, x_B1V: Tensor, views: list[View], lr: float) -> dict[str, float]:
        """Losses of the step, and the norm of its gradient before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        losses, pred_BLP = self.forward(x_B1V, views)
        self.backward(losses["loss"])
        norm = self.update()
        return self.copied({**losses, "norm": norm}, pred_BLP, x_B1V)

    def forward(self, x_B1V: Tensor, views: list[View]) -> tuple[dict[str, Tensor], Tensor]:
        with torch.autocast(x_B1V.device.type, dtype=self.half, enabled=self.half is not None):
            return self.network(x_B1V, views)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        return norm

    def copied(self, told: dict[str, Tensor], pred_BLP: Tensor, x_B1V: Tensor) -> dict[str, float]:
        numbers = {name: value.item() for name, value in told.items()}
        rows, signals = pred_BLP.detach().to("cpu").float(), x_B1V.detach().to("cpu")
        pairs = zip(rows.flatten(1), signals.flatten(1))
        self.correlation = float(np.mean([np.corrcoef(row.numpy(), signal.numpy())[0, 1] for row, signal in pairs]))
        return numbers
