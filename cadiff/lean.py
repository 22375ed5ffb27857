"""Linear layers that keep less for backward under autocast, with the numbers of PyTorch's.

PyTorch keeps, for every linear layer, what it read and its weight, both cast to half precision. Here the weight is cast
again in backward. What it read is made again too where a LayerNorm or GELU made it: from their own input, which the
graph holds anyway, in one pass over memory beside three products. A transformer block of ``mlp_ratio`` 1 keeps 18 bytes
per token and unit of width instead of 24, and no weights.

Without autocast nothing is cast, and a compiled graph decides by itself what to make again: there, all of this is
``torch.nn``'s. Each function reads the parameters of one module only, inside its forward and its backward, where ZeRO-3
has gathered them; a LayerNorm therefore hands on copies of its own (two rows).

Legend: R rows of any shape, T rows one after the other, I and O values of a row before and after a linear layer,
D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normed(NamedTuple):
    """Rows that a LayerNorm made, and what makes them again: its input, copies of its parameters, its epsilon."""

    rows_RD: Tensor
    source_RD: Tensor
    gain_D: Tensor
    shift_D: Tensor
    eps: float

    def recipe(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        return partial(_normed, self.eps), (self.source_RD, self.gain_D, self.shift_D)


class Activated(NamedTuple):
    """Rows that GELU made, and its input."""

    rows_RD: Tensor
    source_RD: Tensor

    def recipe(self) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        return F.gelu, (self.source_RD,)


Rows = Tensor | Normed | Activated

_BEHIND = 1024  # values


def gelu(rows_RD: Tensor) -> Activated:
    """GELU of rows of any float dtype, for a ``LeanLinear`` to read."""
    return Activated(F.gelu(rows_RD), rows_RD.detach())


class LeanNorm(nn.LayerNorm):
    """A LayerNorm over the last dimension, with gain and shift, whose rows the linear layers that read them need not
    keep."""

    def forward(self, rows_RD: Tensor) -> Normed:
        copies = self.weight.detach().clone(), self.bias.detach().clone()
        return Normed(super().forward(rows_RD), rows_RD.detach(), *copies, self.eps)


class LeanLinear(nn.Linear):
    """A linear layer with a bias."""

    def forward(self, rows: Rows) -> Tensor:
        """(…, O) of rows (…, I), plain or with what makes them again; under autocast in its dtype."""
        rows_RI = rows if isinstance(rows, Tensor) else rows.rows_RD
        kind = rows_RI.device.type
        casts = torch.is_autocast_enabled(kind) and self.weight.dtype == torch.float32
        if not casts or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(rows_RI)
        again, made_of = (None, ()) if isinstance(rows, Tensor) else rows.recipe()
        return _Linear.apply(rows_RI, self.weight, self.bias, torch.get_autocast_dtype(kind), again, *made_of)


class _Linear(torch.autograd.Function):
    """Rows times a float32 weight, both cast to ``dtype`` as autocast does, keeping only what ``again`` needs."""

    @staticmethod
    def forward(
        ctx: Any, rows_RI: Tensor, weight_OI: Tensor, bias_O: Tensor, dtype: torch.dtype,
        again: Callable[..., Tensor] | None, *made_of: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.dtype, ctx.again = dtype, again
        half_TI = _cast(rows_RI.reshape(-1, rows_RI.shape[-1]), dtype)
        kept = (made_of if again else (half_TI,)) if ctx.needs_input_grad[1] else ()
        # The parameter itself: under ZeRO-3 its data leaves and is back in backward.
        ctx.save_for_backward(weight_OI, *kept)
        out_TO = _room((len(half_TI), len(weight_OI)), dtype, rows_RI.device)
        # Not F.linear, which ZeRO-3 replaces by one that rounds before it adds the bias.
        with torch.autocast(rows_RI.device.type, enabled=False):
            torch.addmm(bias_O.to(dtype), half_TI, _cast(weight_OI, dtype).t(), out=out_TO)
        return out_TO.view(*rows_RI.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, ...]:
        (weight_OI, *kept), kind = ctx.saved_tensors, grad_RO.device.type
        needs_rows, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_TO = grad_RO.reshape(-1, grad_RO.shape[-1])
        rows, weight, bias = None, None, None
        with torch.autocast(kind, enabled=False):
            if needs_rows:
                rows = (grad_TO @ _cast(weight_OI, ctx.dtype)).view(*grad_RO.shape[:-1], -1)
            if needs_weight:
                half_TI = _made(ctx.again, kept, kind, ctx.dtype).reshape(-1, weight_OI.shape[1])
                weight = (grad_TO.t() @ half_TI).to(weight_OI.dtype)
            if needs_bias:
                bias = grad_TO.sum(0).to(weight_OI.dtype)
        return rows, weight, bias, *[None] * (len(ctx.needs_input_grad) - 3)


def _made(again: Callable[..., Tensor] | None, kept: list[Tensor], kind: str, dtype: torch.dtype) -> Tensor:
    """What the layer read in forward, to the bit."""
    if again is None:
        return kept[0]
    with torch.autocast(kind, dtype=dtype):
        return again(*kept).to(dtype)


def _normed(eps: float, source_RD: Tensor, gain_D: Tensor, shift_D: Tensor) -> Tensor:
    return F.layer_norm(source_RD, gain_D.shape, gain_D, shift_D, eps)


def _cast(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows if rows.dtype == dtype else _room(rows.shape, dtype, rows.device).copy_(rows)


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor, and a little behind it.

    glibc gives aligned memory out of a freed block only if that is some 100 bytes larger. Without the little, most of
    what is freed here could not be used for the next tensor of the same size, and a step held a tenth more.
    """
    values = math.prod(shape)
    return torch.empty(values + _BEHIND, dtype=dtype, device=device)[:values].view(shape)
