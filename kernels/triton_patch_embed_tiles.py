"""Triton programs of masked patch embedding; cadiff.kernels.triton_patch_embed launches them.

Arguments that all readers of a signal share: ``signal``, ``gain``, ``shift`` with four strides each (s, g, h: sample,
channel, row, column), None where there is none; ``keep``; ``lengths`` or None; ``rows`` = B * K; ``height`` and
``columns`` of the signal; ``across``, the patches in a row. PATCH values of TALL x WIDE pixels make a patch; FLAT if
all patches are in one row. Products are made in DTYPE, or in float32 if WIDEN: the interpreter's bfloat16 is wrong.

Legend: d places in the width D, p in a patch of P values, row in the M = B * K rows of kept patches.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _kept_patches(
    signal, gain, shift, keep, lengths, rows, kept, height, columns, across,
    s0, s1, s2, s3, g0, g1, g2, g3, h0, h1, h2, h3, row, p,
    PATCH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, FLAT: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    # Values p of the patches that these rows keep, zero where there is none; and which patches they are.
    real = row < rows
    sample = (row // kept).to(tl.int64)
    patch = tl.load(keep + row, mask=real, other=0)
    channel, down, right = (p // (TALL * WIDE)).to(tl.int64), (p // WIDE % TALL).to(tl.int64), p % WIDE
    if FLAT:
        top, left = patch * 0, patch * WIDE
    else:
        place = patch.to(tl.int32)
        top, left = (place // across * TALL).to(tl.int64), (place % across * WIDE).to(tl.int64)
    column = left[:, None] + right[None, :]
    inside = real[:, None] & (p < PATCH)[None, :] & (column < columns) & (top[:, None] + down[None, :] < height)
    at = (sample * s0 + top * s2 + left * s3)[:, None] + (channel * s1 + down * s2 + right * s3)[None, :]
    value = tl.load(signal + at, mask=inside, other=0).to(tl.float32)
    if gain is not None:
        at = (sample * g0 + top * g2 + left * g3)[:, None] + (channel * g1 + down * g2 + right * g3)[None, :]
        value *= tl.load(gain + at, mask=inside, other=0).to(tl.float32)
    if shift is not None:
        at = (sample * h0 + top * h2 + left * h3)[:, None] + (channel * h1 + down * h2 + right * h3)[None, :]
        value += tl.load(shift + at, mask=inside, other=0).to(tl.float32)
    if lengths is not None:
        length = tl.load(lengths + sample, mask=real, other=0)
        value = tl.where(column < length[:, None], value, 0.0)
    value = value.to(DTYPE)
    if WIDEN:
        value = value.to(tl.float32)
    return value, patch


@triton.jit
def embed_tile(
    signal, gain, shift, keep, lengths, rows, kept, height, columns, across,
    s0, s1, s2, s3, g0, g1, g2, g3, h0, h1, h2, h3,
    weight, bias, position, tokens, width,
    PATCH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, FLAT: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # One program makes a (BLOCK_M, BLOCK_D) tile of tokens; neighbours write the same rows.
    blocks = tl.cdiv(width, BLOCK_D)
    row = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    real = d < width
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for first in range(0, PATCH, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        x, _ = _kept_patches(
            signal, gain, shift, keep, lengths, rows, kept, height, columns, across,
            s0, s1, s2, s3, g0, g1, g2, g3, h0, h1, h2, h3, row, p, PATCH, TALL, WIDE, FLAT, DTYPE, WIDEN,
        )  # fmt: skip
        at = d.to(tl.int64)[:, None] * PATCH + p[None, :]
        w = tl.load(weight + at, mask=real[:, None] & (p < PATCH)[None, :], other=0)
        if WIDEN:
            w = w.to(tl.float32)
        total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
    patch = tl.load(keep + row, mask=row < rows, other=0)
    tile = (row < rows)[:, None] & real[None, :]
    total += tl.load(bias + d, mask=real, other=0).to(tl.float32)[None, :]
    total += tl.load(position + patch[:, None] * width + d[None, :], mask=tile, other=0).to(tl.float32)
    at = row.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(tokens + at, total.to(tokens.dtype.element_ty), mask=tile)


@triton.jit
def weight_tile(
    signal, gain, shift, keep, lengths, rows, kept, height, columns, across,
    s0, s1, s2, s3, g0, g1, g2, g3, h0, h1, h2, h3,
    grad, weight_out, bias_out, width, per_split,
    PATCH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, FLAT: tl.constexpr,
    DTYPE: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # One program sums ``per_split`` blocks of rows, in order, into a (BLOCK_D, BLOCK_P) tile of its split's buffer.
    blocks = tl.cdiv(width, BLOCK_D)
    split = tl.program_id(0) // blocks
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    real = d < width
    w = tl.zeros((BLOCK_D, BLOCK_P), dtype=tl.float32)
    b = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for step in range(0, per_split):
        row = (split * per_split + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        x, _ = _kept_patches(
            signal, gain, shift, keep, lengths, rows, kept, height, columns, across,
            s0, s1, s2, s3, g0, g1, g2, g3, h0, h1, h2, h3, row, p, PATCH, TALL, WIDE, FLAT, DTYPE, WIDEN,
        )  # fmt: skip
        at = row.to(tl.int64)[:, None] * width + d[None, :]
        g = tl.load(grad + at, mask=(row < rows)[:, None] & real[None, :], other=0)
        b += tl.sum(g.to(tl.float32), axis=0)
        g = g.to(DTYPE)
        if WIDEN:
            g = g.to(tl.float32)
        w = tl.dot(tl.trans(g), x, w, input_precision=PRECISION)
    place = split.to(tl.int64) * width + d
    tl.store(weight_out + place[:, None] * PATCH + p[None, :], w, mask=real[:, None] & (p < PATCH)[None, :])
    tl.store(bias_out + place, b, mask=real & (tl.program_id(1) == 0))


@triton.jit
def invert_tile(keep, where, rows, kept, batch, BLOCK: tl.constexpr):
    # At (patch, sample) of ``where``: at which place the sample keeps the patch.
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    patch = tl.load(keep + row, mask=row < rows, other=0)
    tl.store(where + patch * batch + row // kept, row % kept, mask=row < rows)


@triton.jit
def position_tile(where, grad, out, batch, kept, width, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    # One program sums the gradient of one patch over the samples that kept it, BLOCK_M samples at a time, in order.
    blocks = tl.cdiv(width, BLOCK_D)
    patch = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, batch, BLOCK_M):
        sample = first + tl.arange(0, BLOCK_M)
        k = tl.load(where + patch * batch + sample, mask=sample < batch, other=-1)
        at = (sample.to(tl.int64) * kept + k)[:, None] * width + d[None, :]
        g = tl.load(grad + at, mask=(k >= 0)[:, None] & (d < width)[None, :], other=0)
        total += tl.sum(g.to(tl.float32), axis=0)
    tl.store(out + patch * width + d, total, mask=d < width)
