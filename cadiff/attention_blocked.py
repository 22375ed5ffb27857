"""Attention for short sequences on a CPU: the definition, a few heads at a time, whose scores stay in the cache.

PyTorch's fused attention for CPUs spends most of its time in products too small for it: in bfloat16, forward and
backward together take two to seven times as long (benchmarks/bench_attention_cpu.py). Scores and softmax are float32;
products with the weights run in the dtype of the queries, in which the weights are kept for the backward pass.

Legend: G heads of all samples together, C of them at a time, M queries, N keys, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # M and N up to which the kept weights, 2 or 4 bytes a score, are worth their memory
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
            scale = 1 / math.sqrt(q_GMD.shape[2])
            out_GMD = torch.empty_like(q_GMD)
            weights_GMN = q_GMD.new_empty(*q_GMD.shape[:2], k_GND.shape[1])
            scores_CMN = torch.empty(_heads_at_once(weights_GMN), *weights_GMN.shape[1:])
            for part in _parts(weights_GMN):
                some_CMN = scores_CMN[: part.stop - part.start]
                torch.bmm(q_GMD[part].float() * scale, k_GND[part].float().transpose(1, 2), out=some_CMN)
                weights_GMN[part] = some_CMN.softmax(dim=2)
                torch.bmm(weights_GMN[part], v_GND[part], out=out_GMD[part])
            ctx.save_for_backward(q_GMD, k_GND, v_GND, weights_GMN)
        return out_GMD.view(*q_BHMD.shape[:3], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_GMD, k_GND, v_GND, weights_GMN = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            scale = 1 / math.sqrt(q_GMD.shape[2])
            grad_GMD = grad_BHMD.reshape(q_GMD.shape)
            grads = [torch.empty_like(heads) for heads in (q_GMD, k_GND, v_GND)]
            scores_CMN = weights_GMN.new_empty(_heads_at_once(weights_GMN), *weights_GMN.shape[1:])
            for part in _parts(weights_GMN):
                some_CMN, some_weights_CMN = scores_CMN[: part.stop - part.start], weights_GMN[part]
                torch.bmm(some_weights_CMN.transpose(1, 2), grad_GMD[part], out=grads[2][part])
                torch.bmm(grad_GMD[part], v_GND[part].transpose(1, 2), out=some_CMN)
                through_CMN = torch._softmax_backward_data(some_CMN, some_weights_CMN, 2, some_CMN.dtype)
                torch.bmm(through_CMN, k_GND[part], out=grads[0][part])
                torch.bmm(through_CMN.transpose(1, 2), q_GMD[part], out=grads[1][part])
        shape = grad_BHMD.shape
        query, key, value = (grad.view(*shape[:2], *grad.shape[1:]) for grad in grads)
        return query.mul_(scale), key.mul_(scale), value


def _heads_at_once(weights_GMN: Tensor) -> int:
    return max(1, min(len(weights_GMN), _CACHE // (4 * weights_GMN.shape[1] * weights_GMN.shape[2])))


def _parts(weights_GMN: Tensor) -> list[slice]:
    step = _heads_at_once(weights_GMN)
    return [slice(begin, min(begin + step, len(weights_GMN))) for begin in range(0, len(weights_GMN), step)]
