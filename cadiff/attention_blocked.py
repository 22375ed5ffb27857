"""Attention for short sequences on a CPU: the definition, a few heads at a time, whose scores stay in the cache.

PyTorch's fused attention for CPUs spends most of its time in products too small for it: in bfloat16, forward and
backward together take two to seven times as long (benchmarks/bench_attention_cpu.py). Scores and softmax are float32;
products with the weights run in the dtype of the queries. Weights are made again in backward: all of a block's together
would be the largest thing it keeps, and one product of five costs a few percent of attention.

Legend: G heads of all samples together, C of them at a time, M queries, N keys, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # M and N up to which it was compared
_CACHE = 2 * 1024**2  # bytes of float32 scores at a time


def fits(q_BHMD: Tensor, k_BHND: Tensor) -> bool:
    """Whether sequences of these lengths are short enough."""
    return max(q_BHMD.shape[2], k_BHND.shape[2]) <= LONGEST


class BlockedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v for (B, H, M, D), (B, H, N, D) and (B, H, N, D) of one dtype."""

    @staticmethod
    def forward(ctx: Any, q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            q_GMD, k_GND, v_GND = (heads.reshape(-1, *heads.shape[2:]) for heads in (q_BHMD, k_BHND, v_BHND))
            out_GMD = torch.empty_like(q_GMD)
            scores_CMN = _room(q_GMD, k_GND)
            for part in _parts(q_GMD, k_GND):
                torch.bmm(_weights(q_GMD[part], k_GND[part], scores_CMN), v_GND[part], out=out_GMD[part])
            ctx.save_for_backward(q_GMD, k_GND, v_GND)
        return out_GMD.view(*q_BHMD.shape[:3], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_GMD, k_GND, v_GND = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad_GMD = grad_BHMD.reshape(q_GMD.shape)
            grads = [torch.empty_like(heads) for heads in (q_GMD, k_GND, v_GND)]
            scores_CMN = _room(q_GMD, k_GND)
            through_CMN = torch.empty_like(scores_CMN, dtype=q_GMD.dtype)
            for part in _parts(q_GMD, k_GND):
                weights_CMN = _weights(q_GMD[part], k_GND[part], scores_CMN)
                some_CMN = through_CMN[: len(weights_CMN)]
                torch.bmm(weights_CMN.transpose(1, 2), grad_GMD[part], out=grads[2][part])
                torch.bmm(grad_GMD[part], v_GND[part].transpose(1, 2), out=some_CMN)
                some_CMN = torch._softmax_backward_data(some_CMN, weights_CMN, 2, some_CMN.dtype)
                torch.bmm(some_CMN, k_GND[part], out=grads[0][part])
                torch.bmm(some_CMN.transpose(1, 2), q_GMD[part], out=grads[1][part])
        shape, scale = grad_BHMD.shape, 1 / math.sqrt(q_GMD.shape[2])
        query, key, value = (grad.view(*shape[:2], *grad.shape[1:]) for grad in grads)
        return query.mul_(scale), key.mul_(scale), value


def _weights(q_CMD: Tensor, k_CND: Tensor, scores_CMN: Tensor) -> Tensor:
    """The softmax of a few heads' scores (C, M, N), in the dtype of the queries; float32 ``scores_CMN`` is scratch."""
    some_CMN = scores_CMN[: len(q_CMD)]
    torch.bmm(q_CMD.float() * (1 / math.sqrt(q_CMD.shape[2])), k_CND.float().transpose(1, 2), out=some_CMN)
    return some_CMN.softmax(dim=2).to(q_CMD.dtype)


def _room(q_GMD: Tensor, k_GND: Tensor) -> Tensor:
    """Float32 scratch for the scores of as many heads as are done at a time."""
    return torch.empty(_heads_at_once(q_GMD, k_GND), q_GMD.shape[1], k_GND.shape[1])


def _heads_at_once(q_GMD: Tensor, k_GND: Tensor) -> int:
    return max(1, min(len(q_GMD), _CACHE // (4 * q_GMD.shape[1] * k_GND.shape[1])))


def _parts(q_GMD: Tensor, k_GND: Tensor) -> list[slice]:
    step = _heads_at_once(q_GMD, k_GND)
    return [slice(begin, min(begin + step, len(q_GMD))) for begin in range(0, len(q_GMD), step)]
