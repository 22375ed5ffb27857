"""Attention for short sequences on a CPU: the definition, a few heads at a time, whose scores stay in the cache.

PyTorch's fused attention for CPUs spends most of its time in products too small for it: in bfloat16, forward and
backward together take two to seven times as long (benchmarks/bench_attention_cpu.py). Scores and softmax are float32;
products with the weights run in the dtype of the queries. Weights are made again in backward: with long sequences and
narrow heads they would be the largest thing that a block keeps.

Legend: B samples, H heads, C heads of some samples done together, M queries, N keys, D head size.
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
    """softmax(q k^T / sqrt(D)) v for (B, H, M, D), (B, H, N, D) and (B, H, N, D) of one dtype and any strides.

    The result lies in memory as (B, M, H, D), as the projection behind it reads it.
    """

    @staticmethod
    def forward(ctx: Any, q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        # Kept as they came: views of one projection's output, which no copies join.
        ctx.save_for_backward(q_BHMD, k_BHND, v_BHND)
        out_BHMD = _laid_by_rows(q_BHMD)
        with torch.autocast("cpu", enabled=False):
            scores_CMN = _room(q_BHMD, k_BHND)
            for part in _parts(q_BHMD, k_BHND):
                q_CMD, k_CND, v_CND = (heads[part].flatten(0, 1) for heads in (q_BHMD, k_BHND, v_BHND))
                out_CMD = _weights(q_CMD, k_CND, scores_CMN) @ v_CND
                out_BHMD[part] = out_CMD.view_as(out_BHMD[part])
        return out_BHMD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHMD, k_BHND, v_BHND = ctx.saved_tensors
        scale = 1 / math.sqrt(q_BHMD.shape[3])
        grads = [_laid_by_rows(heads) for heads in (q_BHMD, k_BHND, v_BHND)]
        with torch.autocast("cpu", enabled=False):
            scores_CMN = _room(q_BHMD, k_BHND)
            for part in _parts(q_BHMD, k_BHND):
                q_CMD, k_CND, v_CND, grad_CMD = (
                    heads[part].flatten(0, 1) for heads in (q_BHMD, k_BHND, v_BHND, grad_BHMD)
                )
                weights_CMN = _weights(q_CMD, k_CND, scores_CMN)
                through_CMN = grad_CMD @ v_CND.transpose(1, 2)
                through_CMN = torch._softmax_backward_data(through_CMN, weights_CMN, 2, through_CMN.dtype)
                some = (through_CMN @ k_CND).mul_(scale), (through_CMN.transpose(1, 2) @ q_CMD).mul_(scale)
                for grad, of_part in zip(grads, (*some, weights_CMN.transpose(1, 2) @ grad_CMD)):
                    grad[part] = of_part.view_as(grad[part])
        query, key, value = grads
        return query, key, value


def _laid_by_rows(heads_BHMD: Tensor) -> Tensor:
    """Memory for a tensor of this shape and dtype, in the order (B, M, H, D)."""
    return torch.empty_like(heads_BHMD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _weights(q_CMD: Tensor, k_CND: Tensor, scores_CMN: Tensor) -> Tensor:
    """The softmax of a few heads' scores (C, M, N), in the dtype of the queries; float32 ``scores_CMN`` is scratch."""
    some_CMN = scores_CMN[: len(q_CMD)]
    torch.bmm(q_CMD.float() * (1 / math.sqrt(q_CMD.shape[2])), k_CND.float().transpose(1, 2), out=some_CMN)
    return some_CMN.softmax(dim=2).to(q_CMD.dtype)


def _room(q_BHMD: Tensor, k_BHND: Tensor) -> Tensor:
    """Float32 scratch for the scores of as many heads as are done at a time."""
    return torch.empty(_heads_at_once(q_BHMD, k_BHND), q_BHMD.shape[2], k_BHND.shape[2])


def _heads_at_once(q_BHMD: Tensor, k_BHND: Tensor) -> int:
    samples, heads = q_BHMD.shape[:2]
    return max(1, min(samples * heads, _CACHE // (4 * q_BHMD.shape[2] * k_BHND.shape[2])))


def _parts(q_BHMD: Tensor, k_BHND: Tensor) -> list[tuple[slice, slice]]:
    """Samples and heads that are done together: whole samples, or some heads of one."""
    (samples, heads), step = q_BHMD.shape[:2], _heads_at_once(q_BHMD, k_BHND)
    some, few = max(1, step // heads), min(step, heads)
    return [
        (slice(sample, sample + some), slice(head, head + few))
        for sample in range(0, samples, some)
        for head in range(0, heads, few)
    ]
