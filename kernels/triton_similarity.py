"""Row-wise log-sum-exp of a similarity matrix in Triton: tiles are made, summed and forgotten, never written.

Imported only where cadiff.kernels.dispatch has chosen Triton. The running maximum and sum are those of online softmax
(Milakov and Gimelshein, 2018).

Legend: B anchors, N targets, F features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_B, _BLOCK_N, _BLOCK_F = 64, 64, 32


def log_sum_exp(anchor_BF: Tensor, target_NF: Tensor, temperature: float) -> Tensor:
    """logsumexp_j <a_i, t_j> / temperature for each row; contiguous inputs, sums in float32; returns float32 (B,)."""
    (batch, features), targets = anchor_BF.shape, target_NF.shape[0]
    lse_B = torch.empty(batch, dtype=torch.float32, device=anchor_BF.device)
    _log_sum_exp[(triton.cdiv(batch, _BLOCK_B),)](
        anchor_BF, target_NF, lse_B, batch, targets, features, 1.0 / temperature, _BLOCK_B, _BLOCK_N, _BLOCK_F
    )
    return lse_B


@triton.jit
def _log_sum_exp(
    anchor, target, lse, batch, targets, features, sharpness,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    # One program reads all targets for BLOCK_B anchors.
    i = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    anchor_row = anchor + i[:, None] * features
    top = tl.full((BLOCK_B,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for first in range(0, targets, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N).to(tl.int64)
        target_row = target + j[:, None] * features
        s = tl.zeros((BLOCK_B, BLOCK_N), dtype=tl.float32)
        for at in range(0, features, BLOCK_F):
            f = at + tl.arange(0, BLOCK_F)
            inside = (f < features)[None, :]
            a = tl.load(anchor_row + f[None, :], mask=(i < batch)[:, None] & inside, other=0.0).to(tl.float32)
            t = tl.load(target_row + f[None, :], mask=(j < targets)[:, None] & inside, other=0.0).to(tl.float32)
            s += tl.dot(a, tl.trans(t), input_precision="ieee")
        s = tl.where((j < targets)[None, :], s * sharpness, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(s - new_top[:, None]), axis=1)
        top = new_top
    tl.store(lse + i, top + tl.log(total), mask=i < batch)
