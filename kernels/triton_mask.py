"""Random masks in Triton: draw, rank and write all of a mask in one launch, without a sort and without atomics.

Imported only where cadiff.kernels.dispatch has chosen Triton. A patch's place in the shuffle is the number of patches
with a smaller draw, or an equal one and a smaller position. Programs make the draws of a row again and again instead
of reading them: Philox is cheaper than a second launch, and nothing but the mask is ever written. Only integers are
computed, so the answer is that of cadiff.kernels.keyed bit for bit.

Legend: B samples, L patches, K kept patches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cadiff.kernels import keyed
from cadiff.kernels.ahead import Ahead
from cadiff.kernels.tuning import tiles

FORWARD = {"BLOCK_I": 128, "BLOCK_J": 32, "num_warps": 4, "num_stages": 1}  # 96 to 160 registers, no spills
CANDIDATES = [
    {"BLOCK_I": i, "BLOCK_J": j, "num_warps": warps, "num_stages": 1}
    for i, j in ((32, 64), (32, 128), (64, 32), (64, 64), (128, 32), (256, 32))
    for warps in (4, 8)
]
_FRACTION = tl.constexpr(keyed.FRACTION)


def ranked_draws(
    key: tuple[int, int], epoch_B: Tensor, sample_id_B: Tensor, length: int, kept: int, inverse_L: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make keep_BK, restore_BL and hidden_BL of cadiff.kernels.mask.Masking.

    Args:
        key: of cadiff.kernels.keyed.stream_key.
        epoch_B, sample_id_B: integers (B,); the answer is on sample_id_B's device.
        inverse_L: int64, of cadiff.kernels.mask_ops.inverse_weights; None orders by the draws themselves.
    """
    device, batch = sample_id_B.device, sample_id_B.shape[0]
    epoch_B, sample_id_B = (ids.to(device, torch.int64).contiguous() for ids in (epoch_B, sample_id_B))
    keep_BK = torch.empty((batch, kept), dtype=torch.int64, device=device)
    restore_BL = torch.empty((batch, length), dtype=torch.int64, device=device)
    hidden_BL = torch.empty((batch, length), dtype=torch.float32, device=device)
    if batch:
        config = tiles("mask", device, FORWARD, B=batch, L=length)
        signed = (word - (word >> 31 << 32) for word in key)  # one type for every key: no compilation per stream
        _rank[(batch * triton.cdiv(length, config["BLOCK_I"]),)](
            *signed, epoch_B, sample_id_B, inverse_L, keep_BK, restore_BL, hidden_BL, length, kept, **config
        )
    return keep_BK, restore_BL, hidden_BL


@triton.jit(do_not_specialize=["key0", "key1"])
def _rank(
    key0, key1, epoch, sample_id, inverse, keep, restore, hidden, length, kept,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    # One program ranks BLOCK_I patches of one sample among all of its patches.
    parts = tl.cdiv(length, BLOCK_I)
    sample = tl.program_id(0) // parts
    start = (tl.program_id(0) - sample * parts) * BLOCK_I
    sample = sample.to(tl.int64)
    when = tl.load(epoch + sample)
    who = tl.load(sample_id + sample)
    i = start + tl.arange(0, BLOCK_I)
    order_i = _order(key0, key1, when, who, inverse, start, length, BLOCK_I)
    rank = tl.zeros((BLOCK_I,), dtype=tl.int32)
    for first in range(0, length, BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        order_j = _order(key0, key1, when, who, inverse, first, length, BLOCK_J)
        before = order_j[None, :] < order_i[:, None]
        before |= (order_j[None, :] == order_i[:, None]) & (j[None, :] < i[:, None])
        rank += tl.sum((before & (j < length)[None, :]).to(tl.int32), axis=1)
    tl.store(keep + sample * kept + rank, i.to(tl.int64), mask=(i < length) & (rank < kept))
    tl.store(restore + sample * length + i, rank.to(tl.int64), mask=i < length)
    tl.store(hidden + sample * length + i, (rank >= kept).to(tl.float32), mask=i < length)


@triton.jit
def _order(key0, key1, when, who, inverse, start, length, BLOCK: tl.constexpr):
    # What patches start..start + BLOCK - 1 are sorted by: their draw, or minus their exponential over their weight.
    draw = _draws(key0, key1, when, who, start, BLOCK)
    if inverse is None:
        order = draw
    else:
        patch = start + tl.arange(0, BLOCK)
        order = -_fixed_point_log(draw) * tl.load(inverse + patch, mask=patch < length, other=1)
    return order


@triton.jit
def _draws(key0, key1, when, who, start, BLOCK: tl.constexpr):
    # The layout of cadiff.kernels.keyed: a block of four draws has the counter (epoch, id low, id high, block).
    block = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    nought = tl.zeros((BLOCK // 4,), dtype=tl.uint32)
    a, b, c, d = tl.philox_impl(
        nought + (when & 0xFFFFFFFF).to(tl.uint32),
        nought + (who & 0xFFFFFFFF).to(tl.uint32),
        nought + (who >> 32 & 0xFFFFFFFF).to(tl.uint32),
        block,
        nought + key0.to(tl.uint32),
        nought + key1.to(tl.uint32),
    )
    return (tl.interleave(tl.interleave(a, c), tl.interleave(b, d)) >> 8).to(tl.int32)


@triton.jit
def _fixed_point_log(draw):
    # cadiff.kernels.keyed.fixed_point_log, with the leading zeros found by halving.
    x = (16777216 - draw).to(tl.int64) << (_FRACTION - 24)
    answer = tl.zeros_like(x)
    for power in tl.static_range(5):
        zeros = tl.where(x >> (_FRACTION + 1 - (16 >> power)) == 0, 16 >> power, 0)
        x = x << zeros
        answer += zeros
    for _ in range(_FRACTION):
        x = x * x >> _FRACTION
        reached = x >> (_FRACTION + 1)
        x = x >> reached
        answer = answer * 2 - reached
    return answer


def ahead(config: dict[str, int] = FORWARD) -> list[Ahead]:
    """The kernel as it is launched for a plain mask, a weighted one, and one of a single patch."""
    types = {name: "*i64" for name in ("epoch", "sample_id", "inverse", "keep", "restore")} | {"hidden": "*fp32"}
    blocks = {name: config[name] for name in ("BLOCK_I", "BLOCK_J")}
    options = {name: config[name] for name in ("num_warps", "num_stages")}
    return [
        Ahead(_rank, types, blocks | special, options) for special in ({"inverse": None}, {}, {"length": 1, "kept": 1})
    ]
