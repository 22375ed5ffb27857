"""The tiles of contrastive similarity: rows of length one, log-sum-exps, and gradients of the similarities.

Launched by cadiff.kernels.triton_similarity. REPEATS and SUBJECTS are places in cadiff.kernels.pairs' lists.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit_row(rows, out, norms, stride_row, stride_feature, features, padded, shortest, BLOCK: tl.constexpr):
    # One program scales one row, with zeros behind. Squares are relative to the largest entry: none overflows.
    row = tl.program_id(0).to(tl.int64)
    source = rows + row * stride_row
    top = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(0, features, BLOCK):
        f = at + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(source + f * stride_feature, mask=f < features, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.abs(x))
    most = tl.max(top, axis=0)
    most = tl.where(most > 1e-30, most, 1.0)  # below it the row has no direction, and one over it may be infinite
    shrink = 1.0 / most
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(0, features, BLOCK):
        f = at + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(source + f * stride_feature, mask=f < features, other=0.0).to(tl.float32) * shrink
        total += x * x
    norm = most * tl.sqrt(tl.sum(total, axis=0))
    norm = tl.where(norm < shortest, float("inf"), norm)
    tl.store(norms + row, norm)
    for at in range(0, padded, BLOCK):
        f = at + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(source + f * stride_feature, mask=f < features, other=0.0).to(tl.float32)
        unit = x / norm
        tl.store(out + row * padded + f, unit.to(out.dtype.element_ty), mask=f < padded)


@triton.jit
def _multiply(
    anchor, target, i, j, batch, targets, padded,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Cosines of rows i and j: both of length one, and padded to a multiple of BLOCK_F.
    f = tl.arange(0, BLOCK_F)
    anchor_at = anchor + i[:, None] * padded + f[None, :]
    target_at = target + j[None, :] * padded + f[:, None]
    cosine = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, padded, BLOCK_F):
        a = tl.load(anchor_at, mask=(i < batch)[:, None], other=0.0)
        t = tl.load(target_at, mask=(j < targets)[None, :], other=0.0)
        if WIDEN:  # bfloat16 arithmetic is wrong in Triton's interpreter
            a = a.to(tl.float32)
            t = t.to(tl.float32)
        cosine = tl.dot(a, t, cosine, input_precision=PRECISION)
        anchor_at += BLOCK_F
        target_at += BLOCK_F
    return cosine


@triton.jit
def _mark(row_ids, column_ids, i, j, batch, targets, first, REPEATS: tl.constexpr, SUBJECTS: tl.constexpr):
    # Positive pairs, and pairs that count at all.
    real = (i < batch)[:, None] & (j < targets)[None, :]
    positive = real & (j[None, :] == first + i[:, None])
    allowed = real
    if REPEATS + SUBJECTS > 0:
        forbidden = real & (j[None, :] < 0)
        same = forbidden
        if REPEATS > 0:
            mine = tl.load(row_ids + i, mask=i < batch, other=-1)
            theirs = tl.load(column_ids + j, mask=j < targets, other=-1)
            same = (mine[:, None] == theirs[None, :]) & (mine >= 0)[:, None]
        if SUBJECTS > 0:
            my_subject = tl.load(row_ids + batch + i, mask=i < batch, other=0)
            their_subject = tl.load(column_ids + targets + j, mask=j < targets, other=0)
            one = my_subject[:, None] == their_subject[None, :]
            forbidden = one == 0 if SUBJECTS == 1 else one
        if REPEATS == 1:
            forbidden = forbidden | same
        if REPEATS == 2:
            positive = positive | (same & real)
        allowed = real & (positive | (forbidden == 0))
    return positive, allowed


@triton.jit
def lse_tile(
    anchor, target, scale, row_ids, column_ids, row_out, positive_out, column_out,
    batch, targets, padded, first, top, per_split,
    REPEATS: tl.constexpr, SUBJECTS: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    # One program reads ``per_split`` blocks of targets for one block of anchors, in order.
    block, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i = (top + block) * BLOCK_M + tl.arange(0, BLOCK_M)
    sharpness = tl.load(scale)
    highest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for step in range(0, per_split):
        j = (split * per_split + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        s = sharpness * _multiply(
            anchor, target, i, j, batch, targets, padded, BLOCK_M, BLOCK_N, BLOCK_F, WIDEN, PRECISION
        )
        positive, allowed = _mark(row_ids, column_ids, i, j, batch, targets, first, REPEATS, SUBJECTS)
        mean += tl.sum(tl.where(positive, s, 0.0), axis=1)
        s = tl.where(allowed, s, float("-inf"))
        new = tl.maximum(highest, tl.max(s, axis=1))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(s - base[:, None]), axis=1)
        highest = new
        if COLUMNS:
            peak = tl.max(s, axis=0)
            floor = tl.where(peak == float("-inf"), 0.0, peak)
            below = tl.sum(tl.exp(s - floor[None, :]), axis=0)
            column = peak + tl.log(tl.where(below == 0.0, 1.0, below))
            tl.store(column_out + block * targets + j, column, mask=j < targets)
    row = highest + tl.log(tl.where(total == 0.0, 1.0, total))
    tl.store(row_out + split * batch + i, row, mask=i < batch)
    tl.store(positive_out + split * batch + i, mean, mask=i < batch)


@triton.jit
def force_tile(
    anchor, target, scale, row_ids, column_ids, row_lse, column_lse, grad_row, grad_column, share,
    force_out, across_out, down_out,
    batch, targets, padded, first, top, strip,
    REPEATS: tl.constexpr, SUBJECTS: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    # One program makes one tile of a strip: d loss / d s, and its products with s summed over rows and columns.
    y, x = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    local = y * BLOCK_M + tl.arange(0, BLOCK_M)
    i = top + local
    j = x * BLOCK_N + tl.arange(0, BLOCK_N)
    mine, theirs = local < strip, j < targets
    s = tl.load(scale) * _multiply(
        anchor, target, i, j, batch, targets, padded, BLOCK_M, BLOCK_N, BLOCK_F, WIDEN, PRECISION
    )
    positive, allowed = _mark(row_ids, column_ids, i, j, batch, targets, first, REPEATS, SUBJECTS)
    lse = tl.load(row_lse + i, mask=mine, other=0.0)
    weight = tl.load(grad_row + i, mask=mine, other=0.0)
    force = tl.where(allowed, weight[:, None] * tl.exp(s - lse[:, None]), 0.0)
    if COLUMNS:
        lse_c = tl.load(column_lse + j, mask=theirs, other=0.0)
        weight_c = tl.load(grad_column + j, mask=theirs, other=0.0)
        force += tl.where(allowed, weight_c[None, :] * tl.exp(s - lse_c[None, :]), 0.0)
    part = tl.load(share + i, mask=mine, other=0.0)
    force += tl.where(positive, part[:, None], 0.0)
    inside = mine[:, None] & theirs[None, :]
    force = tl.where(inside, force, 0.0)
    tl.store(force_out + local[:, None] * targets + j[None, :], force.to(force_out.dtype.element_ty), mask=inside)
    product = force * s
    tl.store(across_out + x * strip + local, tl.sum(product, axis=1), mask=mine)
    tl.store(down_out + y * targets + j, tl.sum(product, axis=0), mask=theirs)
