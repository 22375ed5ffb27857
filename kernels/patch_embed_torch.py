"""Masked patch embedding in PyTorch: kept patches are gathered first, then tokens are made in place over positions.

All sums are float32 (float64 for float64), whatever the dtypes, and in an order that depends on the shapes alone.

Legend: B samples, C channels, H and W rows and columns, Y and X those of a patch, P = C * Y * X, L patches, K kept
patches, M = B * K rows, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 24  # numbers of tokens made at once: 64 MiB in float32; smaller pieces only make threads wait more often


def embed(
    signal_BCHW: Tensor, keep_BK: Tensor, weight_DCYX: Tensor, bias_D: Tensor, position_LD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See cadiff.kernels.patch_embed_ops.plain_patch_embed."""
    width, *patch = weight_DCYX.shape
    kept_MP = _kept_patches(signal_BCHW, keep_BK, lengths_B, gain_BCHW, shift_BCHW, patch, weight_DCYX.dtype)
    kind, source_M = kept_MP.dtype, keep_BK.flatten()
    weight_PD, table_LD = weight_DCYX.flatten(1).T.to(kind), position_LD.to(kind) + bias_D.to(kind)
    tokens_MD = torch.empty((len(source_M), width), dtype=dtype, device=signal_BCHW.device)
    step = max(1, CHUNK // width)
    for start in range(0, len(source_M), step):
        rows = slice(start, start + step)
        piece = tokens_MD[rows] if dtype == kind else torch.empty_like(tokens_MD[rows], dtype=kind)
        torch.index_select(table_LD, 0, source_M[rows], out=piece).addmm_(kept_MP[rows], weight_PD)
        if dtype != kind:
            tokens_MD[rows] = piece
    return tokens_MD.view(*keep_BK.shape, width)


def gradient(
    signal_BCHW: Tensor, keep_BK: Tensor, grad_BKD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None,
    patch: list[int], length: int, dtype: torch.dtype, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.patch_embed_ops.patch_embed_gradient."""
    kind, width = torch.promote_types(dtype, torch.float32), grad_BKD.shape[2]
    grad_MD = grad_BKD.to(kind).flatten(0, 1).contiguous()
    weight, bias, position = (grad_MD.new_empty(0) for _ in range(3))
    if wants[2]:
        position = _sums_by_patch(grad_MD, keep_BK, length)
    if wants[0]:
        kept_MP = _kept_patches(signal_BCHW, keep_BK, lengths_B, gain_BCHW, shift_BCHW, patch, dtype)
        weight = (kept_MP.T @ grad_MD).T.contiguous().view(width, *patch)
    if wants[1]:
        bias = (position if wants[2] else grad_MD).sum(0)
    return weight, bias, position


def _kept_patches(
    signal_BCHW: Tensor, keep_BK: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None,
    patch: list[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Kept patches (M, P) in what is computed in, rounded to ``dtype``."""
    kind = torch.promote_types(dtype, torch.float32)
    kept = _pick(signal_BCHW, keep_BK, patch).to(kind)
    if gain_BCHW is not None:
        kept = kept * _pick(gain_BCHW, keep_BK, patch).to(kind)
    if shift_BCHW is not None:
        kept = kept + _pick(shift_BCHW, keep_BK, patch).to(kind)
    if lengths_B is not None:
        column_BKX = keep_BK[:, :, None] * patch[2] + torch.arange(patch[2], device=keep_BK.device)
        kept = kept.masked_fill((column_BKX >= lengths_B[:, None, None])[:, :, None, None], 0)
    return kept.flatten(2).flatten(0, 1).to(dtype).to(kind)


def _pick(part_BCHW: Tensor, keep_BK: Tensor, patch: list[int]) -> Tensor:
    """Kept patches (B, K, C, Y, X) of a signal, gain or shift; what the last patches lack is zero in all three."""
    _, tall, wide = patch
    below, right = -part_BCHW.shape[2] % tall, -part_BCHW.shape[3] % wide
    if below or right:
        part_BCHW = F.pad(part_BCHW, (0, right, 0, below))
    grid = part_BCHW.unflatten(3, (-1, wide)).unflatten(2, (-1, tall)).permute(0, 2, 4, 1, 3, 5)
    sample_B1 = torch.arange(len(keep_BK), device=keep_BK.device)[:, None]
    across = grid.shape[2]
    return grid[sample_B1, keep_BK // across, keep_BK % across]


def _sums_by_patch(grad_MD: Tensor, keep_BK: Tensor, length: int) -> Tensor:
    """Sum of the rows of each patch (L, D): a bag of rows for each, in the order of the samples."""
    patch_M, row_M = keep_BK.flatten().sort(stable=True)
    first_L = torch.searchsorted(patch_M, torch.arange(length, device=keep_BK.device))
    return F.embedding_bag(row_M, grad_MD, first_L, mode="sum")
