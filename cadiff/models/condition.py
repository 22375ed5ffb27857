"""What the diffusion is told: fMRI tokens or a class label, each as context tokens and a vector for the time embedding.

Source: the paper's section 3.3 and its code's conditioning stage. Both conditioners also learn what to say when there
is nothing to say, which classifier-free guidance (Ho and Salimans 2022) needs and the paper does not have.

Legend: B records, V voxels, L patches, W encoder width, N context tokens, D context width, E time embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cadiff.config import ConditionModel, FmriModel
from cadiff.models.fmri_mae import FmriEncoder


class Condition(NamedTuple):
    """Tokens for cross-attention, and the vector that is added to the time embedding."""

    context_BND: Tensor
    time_BE: Tensor


class FmriConditioner(nn.Module):
    """fMRI signals as context: encoder tokens, mixed over patches and projected to the UNet's context width.

    Args:
        model, voxels: the encoder's sizes and the length of a signal.
        condition: number of tokens, pooling, and whether the time embedding hears of the context.
        context_width, time_width: D and E of the UNet.
    """

    def __init__(
        self,
        model: FmriModel,
        condition: ConditionModel,
        voxels: int,
        context_width: int,
        time_width: int,
        *,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.fmri = FmriEncoder(model, voxels, checkpoint=checkpoint)
        self.mix = nn.Identity() if condition.pool else _mixer(self.fmri.length, condition.tokens)
        self.project = nn.Linear(model.width, context_width)
        self.tokens = 1 if condition.pool else condition.tokens
        self.pool, self.time_width = condition.pool, time_width
        self.time = _time_condition(self.tokens, context_width, time_width) if condition.time else None
        self.null_context = nn.Parameter(0.02 * torch.randn(1, self.tokens, context_width))

    def forward(self, signal_BV: Tensor, drop_B: Tensor | None = None) -> Condition:
        """Context (B, N, D) and time vector (B, E) of signals float (B, V).

        Args:
            drop_B: bool, which samples to treat as if no signal had been seen; None drops none.
        """
        context_BND = self.encode(signal_BV)
        if drop_B is not None:
            context_BND = torch.where(drop_B[:, None, None], self.null_context.to(context_BND.dtype), context_BND)
        return Condition(context_BND, self._time(context_BND))

    def encode(self, signal_BV: Tensor) -> Tensor:
        """Context tokens (B, N, D). Pooling comes before the encoder's last norm, as in the paper's code."""
        if self.pool:
            tokens_B1W = self.fmri.hidden(signal_BV, cls=False).mean(dim=1, keepdim=True)
            return self.project(self.fmri.norm(tokens_B1W))
        return self.project(self.mix(self.fmri(signal_BV, cls=False)))

    def null(self, batch: int) -> Condition:
        """The condition of ``batch`` samples about which nothing is known."""
        context_BND = self.null_context.expand(batch, -1, -1)
        return Condition(context_BND, self._time(context_BND))

    def _time(self, context_BND: Tensor) -> Tensor:
        if self.time is None:
            return context_BND.new_zeros(len(context_BND), self.time_width)
        return self.time(context_BND).flatten(1)


class ClassConditioner(nn.Module):
    """Class labels as one context token each, as in cin256-v2; the last row stands for no class.

    The time embedding hears of the class too, so that the UNet is used to both ways before phase 3; at first it hears
    nothing.
    """

    def __init__(self, classes: int, context_width: int, time_width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(classes + 1, context_width)
        self.time = nn.Linear(context_width, time_width)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, label_B: Tensor, drop_B: Tensor | None = None) -> Condition:
        """Context (B, 1, D) and time vector (B, E) of labels int64 (B,); -1 means no class."""
        unknown_B = label_B < 0
        if drop_B is not None:
            unknown_B = unknown_B | drop_B
        context_BD = self.embedding(torch.where(unknown_B, self.classes, label_B))
        return Condition(context_BD[:, None], self.time(context_BD))


def _mixer(length: int, tokens: int) -> nn.Module:
    """Mix tokens over the patch axis, L -> L // 2 -> N; no activation, as in the paper's code."""
    half = max(1, length // 2)
    return nn.Sequential(nn.Conv1d(length, half, 1), nn.Conv1d(half, tokens, 1))


def _time_condition(tokens: int, context_width: int, time_width: int) -> nn.Module:
    if tokens == 1:
        return nn.Linear(context_width, time_width)
    return nn.Sequential(
        nn.Conv1d(tokens, tokens // 2, 1), nn.Conv1d(tokens // 2, 1, 1), nn.Linear(context_width, time_width)
    )
