"""Masked patch embedding in Triton: gather, project, add bias and position in one pass; gradients without atomics.

Imported only where cadiff.kernels.dispatch has chosen Triton. Every sum is made in float32 and in an order that depends
on the shapes alone, so gradients are bit for bit the same every time.

Legend: B samples, V voxels, P voxels per patch, L patches, K kept patches, D width, M = B * K rows, S splits of M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_M, _BLOCK_D = 32, 64
_SPLITS = 64  # most partial sums of the weight gradient; fixed, so that the order of summing never hangs on the GPU


class MaskedPatchEmbed(torch.autograd.Function):
    """See cadiff.kernels.patch_embed.masked_patch_embed; the signal gets no gradient."""

    @staticmethod
    def forward(
        ctx, signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor
    ) -> Tensor:
        signal_BV, keep_BK, weight_DP = signal_BV.contiguous(), keep_BK.contiguous(), weight_DP.contiguous()
        bias_D, position_LD = bias_D.contiguous(), position_LD.contiguous()
        (batch, kept), (width, patch) = keep_BK.shape, weight_DP.shape
        tokens_BKD = weight_DP.new_empty((batch, kept, width))
        rows = batch * kept
        grid = (triton.cdiv(rows, _BLOCK_M), triton.cdiv(width, _BLOCK_D))
        _embed[grid](
            signal_BV, keep_BK, weight_DP, bias_D, position_LD, tokens_BKD,
            rows, kept, signal_BV.shape[1], patch, width, _patch_block(patch), _BLOCK_M, _BLOCK_D,
        )  # fmt: skip
        ctx.save_for_backward(signal_BV, keep_BK)
        ctx.weight_like, ctx.position_like = (patch, weight_DP.dtype), (position_LD.shape[0], position_LD.dtype)
        ctx.bias_dtype = bias_D.dtype
        return tokens_BKD

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BKD: Tensor) -> tuple[None, None, Tensor | None, Tensor | None, Tensor | None]:
        signal_BV, keep_BK = ctx.saved_tensors
        grad_BKD = grad_BKD.contiguous()
        grad_weight_DP = grad_bias_D = grad_position_LD = None
        if any(ctx.needs_input_grad[2:4]):
            patch, dtype = ctx.weight_like
            grad_weight_DP, grad_bias_D = _weight_gradient(signal_BV, keep_BK, grad_BKD, patch)
            grad_weight_DP, grad_bias_D = grad_weight_DP.to(dtype), grad_bias_D.to(ctx.bias_dtype)
        if ctx.needs_input_grad[4]:
            length, dtype = ctx.position_like
            grad_position_LD = _position_gradient(keep_BK, grad_BKD, length, dtype)
        return None, None, grad_weight_DP, grad_bias_D, grad_position_LD


def _weight_gradient(signal_BV: Tensor, keep_BK: Tensor, grad_BKD: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Sum over rows in S splits, each into its own buffer; adding the buffers up is the last, ordered step."""
    batch, kept, width = grad_BKD.shape
    rows = batch * kept
    blocks = triton.cdiv(rows, _BLOCK_M)
    per_split = triton.cdiv(blocks, _SPLITS)
    splits = triton.cdiv(blocks, per_split)
    weight_SDP = torch.empty((splits, width, patch), dtype=torch.float32, device=grad_BKD.device)
    bias_SD = torch.empty((splits, width), dtype=torch.float32, device=grad_BKD.device)
    _weight_grad[(splits, triton.cdiv(width, _BLOCK_D))](
        signal_BV, keep_BK, grad_BKD, weight_SDP, bias_SD,
        rows, kept, signal_BV.shape[1], patch, width, per_split, _patch_block(patch), _BLOCK_M, _BLOCK_D,
    )  # fmt: skip
    return weight_SDP.sum(0), bias_SD.sum(0)


def _position_gradient(keep_BK: Tensor, grad_BKD: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """A patch is kept at most once per sample, so each position gathers its own rows instead of scattering to it."""
    batch, kept, width = grad_BKD.shape
    where_BL = torch.full((batch, length), -1, dtype=torch.int64, device=keep_BK.device)
    where_BL.scatter_(1, keep_BK, torch.arange(kept, device=keep_BK.device).expand_as(keep_BK))
    grad_position_LD = torch.empty((length, width), dtype=dtype, device=grad_BKD.device)
    grid = (length, triton.cdiv(width, _BLOCK_D))
    _position_grad[grid](where_BL, grad_BKD, grad_position_LD, batch, kept, length, width, _BLOCK_D)
    return grad_position_LD


def _patch_block(patch: int) -> int:
    return max(16, triton.next_power_of_2(patch))  # tl.dot multiplies tiles of at least 16


@triton.jit
def _kept_patches(signal, keep, row, p, rows, kept, voxels, patch):
    # Rows of kept patches in float32: bfloat16 arithmetic is wrong in Triton's interpreter.
    source = tl.load(keep + row, mask=row < rows, other=0)
    voxel = source[:, None] * patch + p[None, :]
    inside = (row < rows)[:, None] & (p < patch)[None, :] & (voxel < voxels)
    signal_of_row = signal + (row // kept)[:, None] * voxels
    return tl.load(signal_of_row + voxel, mask=inside, other=0.0).to(tl.float32), source


@triton.jit
def _embed(
    signal, keep, weight, bias, position, tokens,
    rows, kept, voxels, patch, width,
    BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program makes a (BLOCK_M, BLOCK_D) tile of tokens.
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.arange(0, BLOCK_P)
    x, source = _kept_patches(signal, keep, row, p, rows, kept, voxels, patch)
    real = (d < width)[:, None] & (p < patch)[None, :]
    w = tl.load(weight + d[:, None] * patch + p[None, :], mask=real, other=0.0).to(tl.float32)
    tile = (row < rows)[:, None] & (d < width)[None, :]
    y = tl.dot(x, tl.trans(w), input_precision="ieee")
    y += tl.load(bias + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
    y += tl.load(position + source[:, None] * width + d[None, :], mask=tile, other=0.0).to(tl.float32)
    tl.store(tokens + row[:, None] * width + d[None, :], y.to(tokens.dtype.element_ty), mask=tile)


@triton.jit
def _weight_grad(
    signal, keep, grad, weight_out, bias_out,
    rows, kept, voxels, patch, width, per_split,
    BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program sums ``per_split`` blocks of rows, in order, into its own (BLOCK_D, P) buffer.
    split = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.arange(0, BLOCK_P)
    w = tl.zeros((BLOCK_D, BLOCK_P), dtype=tl.float32)
    b = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for step in range(0, per_split):
        row = (split * per_split + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        x, _ = _kept_patches(signal, keep, row, p, rows, kept, voxels, patch)
        tile = (row < rows)[:, None] & (d < width)[None, :]
        g = tl.load(grad + row[:, None] * width + d[None, :], mask=tile, other=0.0).to(tl.float32)
        w += tl.dot(tl.trans(g), x, input_precision="ieee")
        b += tl.sum(g, axis=0)
    real = (d < width)[:, None] & (p < patch)[None, :]
    tl.store(weight_out + (split * width + d)[:, None] * patch + p[None, :], w, mask=real)
    tl.store(bias_out + split * width + d, b, mask=d < width)


@triton.jit
def _position_grad(where, grad, out, batch, kept, length, width, BLOCK_D: tl.constexpr):
    # One program sums the gradient of one position over the samples that kept it, in order.
    position = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    entry, start = position, position * 0  # in 64 bits: this sample's place in ``where`` and its first row in ``grad``
    for _ in range(0, batch):
        k = tl.load(where + entry)
        total += tl.load(grad + (start + k) * width + d, mask=(d < width) & (k >= 0), other=0.0).to(tl.float32)
        entry += length
        start += kept
    tl.store(out + position * width + d, total.to(out.dtype.element_ty), mask=d < width)
