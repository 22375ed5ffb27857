"""Masked patch embedding in Triton: gather, normalise, project, add bias and position in one pass; its gradients.

Imported only where cadiff.kernels.dispatch has chosen Triton. Signals are read where they lie, through their strides,
and only their kept patches. There are no atomics: every sum is made in float32 and in an order that depends on shapes
and tiles alone, so gradients are bit for bit the same every time.

Legend: B samples, C channels, H and W rows and columns, Y and X those of a patch, P = C * Y * X, L patches, K kept
patches, D width, M = B * K rows, S splits of M.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cadiff.kernels.ahead import Ahead
from cadiff.kernels.triton_patch_embed_tiles import embed_tile, invert_tile, position_tile, weight_tile
from cadiff.kernels.tuning import Tiles, precision, tiles

FORWARD = {"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_P": 32, "num_warps": 4, "num_stages": 2}
CANDIDATES = [
    {"BLOCK_M": m, "BLOCK_D": d, "BLOCK_P": 32, "num_warps": warps, "num_stages": stages}
    for m, d, warps in ((32, 64, 4), (32, 128, 4), (64, 64, 4), (64, 128, 8), (64, 256, 8), (128, 64, 4), (128, 128, 8))
    for stages in (2, 3)
]
_PROGRAMS = 1024  # about what fills a GPU; fixed, so that the order of summing never hangs on the GPU
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_LONGEST = 1 << 30  # rows are counted in 32 bits, which GPUs divide quickly


def sizes(patch: int, width: int) -> dict[str, int]:
    """What the shape class of the tables depends on."""
    return {"D": width, "P": patch}


def embed(
    signal_BCHW: Tensor, keep_BK: Tensor, weight_DCYX: Tensor, bias_D: Tensor, position_LD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See cadiff.kernels.patch_embed_ops.plain_patch_embed."""
    width, *patch = weight_DCYX.shape
    tokens_BKD = torch.empty((*keep_BK.shape, width), dtype=dtype, device=signal_BCHW.device)
    rows, config = keep_BK.numel(), _tiles(signal_BCHW, patch, width)
    told, flags = _signal(signal_BCHW, keep_BK, lengths_B, gain_BCHW, shift_BCHW, patch, weight_DCYX.dtype)
    if rows:
        across = triton.cdiv(width, config["BLOCK_D"])
        embed_tile[(across * triton.cdiv(rows, config["BLOCK_M"]),)](
            *told, weight_DCYX.contiguous(), bias_D.contiguous(), position_LD.contiguous(), tokens_BKD, width,
            **flags, **config,
        )  # fmt: skip
    return tokens_BKD


def gradient(
    signal_BCHW: Tensor, keep_BK: Tensor, grad_BKD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None,
    patch: list[int], length: int, dtype: torch.dtype, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.patch_embed_ops.patch_embed_gradient."""
    grad_BKD, width = grad_BKD.contiguous(), grad_BKD.shape[2]
    config = _tiles(signal_BCHW, patch, width)
    weight, bias, position = (grad_BKD.new_empty(0, dtype=torch.float32) for _ in range(3))
    if wants[0] or wants[1]:
        told, flags = _signal(signal_BCHW, keep_BK, lengths_B, gain_BCHW, shift_BCHW, patch, dtype)
        weight_SDP, bias_SD = _partial_sums(told, flags, grad_BKD, config)
        weight = weight_SDP.sum(0).view(width, *patch) if wants[0] else weight
        bias = bias_SD.sum(0) if wants[1] else bias
    if wants[2]:
        position = _sums_by_patch(grad_BKD, keep_BK, length, config)
    return weight, bias, position


def _partial_sums(told: list, flags: dict[str, object], grad_BKD: Tensor, config: Tiles) -> tuple[Tensor, Tensor]:
    """Sums over rows in S splits, each into its own buffer; adding the buffers up is the last, ordered step."""
    batch, kept, width = grad_BKD.shape
    across, deep = triton.cdiv(width, config["BLOCK_D"]), triton.cdiv(flags["PATCH"], config["BLOCK_P"])
    blocks = triton.cdiv(batch * kept, config["BLOCK_M"])
    per_split = max(1, triton.cdiv(blocks, max(1, _PROGRAMS // (across * deep))))
    splits = triton.cdiv(blocks, per_split)
    weight_SDP = grad_BKD.new_empty((splits, width, flags["PATCH"]), dtype=torch.float32)
    bias_SD = grad_BKD.new_empty((splits, width), dtype=torch.float32)
    if splits:
        weight_tile[(splits * across, deep)](
            *told, grad_BKD, weight_SDP, bias_SD, width, per_split, **flags, **config
        )  # fmt: skip
    return weight_SDP, bias_SD


def _sums_by_patch(grad_BKD: Tensor, keep_BK: Tensor, length: int, config: Tiles) -> Tensor:
    """A patch is kept at most once per sample, so each patch gathers its own rows instead of rows scattering to it."""
    batch, kept, width = grad_BKD.shape
    where_LB = torch.full((length, batch), -1, dtype=torch.int32, device=keep_BK.device)
    sums_LD = torch.empty((length, width), dtype=torch.float32, device=keep_BK.device)
    if keep_BK.numel():
        invert_tile[(triton.cdiv(batch * kept, 1024),)](keep_BK.contiguous(), where_LB, batch * kept, kept, batch, 1024)
    options = {name: value for name, value in config.items() if name != "BLOCK_P"}
    position_tile[(length * triton.cdiv(width, config["BLOCK_D"]),)](
        where_LB, grad_BKD, sums_LD, batch, kept, width, **options
    )
    return sums_LD


def _signal(
    signal_BCHW: Tensor, keep_BK: Tensor, lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None,
    patch: list[int], dtype: torch.dtype,
) -> tuple[list, dict[str, object]]:  # fmt: skip
    """The first arguments of both kernels that read signals, and their constants."""
    channels, tall, wide = patch
    height, columns = signal_BCHW.shape[2:]
    assert keep_BK.numel() < _LONGEST - 4096, f"{keep_BK.numel()} kept patches are too many for one call"
    parts = (signal_BCHW, gain_BCHW, shift_BCHW)
    strides = [step for part in parts for step in ((0, 0, 0, 0) if part is None else part.stride())]
    lengths_B = None if lengths_B is None else lengths_B.contiguous()
    told = [
        *parts, keep_BK.contiguous(), lengths_B, keep_BK.numel(), keep_BK.shape[1], height, columns,
        triton.cdiv(columns, wide), *strides,
    ]  # fmt: skip
    flags = {
        "PATCH": channels * tall * wide, "TALL": tall, "WIDE": wide, "FLAT": height <= tall,
        "DTYPE": _TYPES[dtype], **precision(signal_BCHW),
    }  # fmt: skip
    return told, flags


def _tiles(signal_BCHW: Tensor, patch: list[int], width: int) -> Tiles:
    """Tiles for this shape, no deeper than a patch: products are made of tiles of at least 16."""
    count = patch[0] * patch[1] * patch[2]
    config = tiles("patch_embed", signal_BCHW.device, FORWARD, **sizes(count, width))
    return config | {"BLOCK_P": min(config["BLOCK_P"], max(16, triton.next_power_of_2(count)))}


def ahead(dtype: str, config: Tiles = FORWARD) -> list[Ahead]:
    """These kernels as they are launched on ``dtype`` ("fp16", "bf16", "fp32"): signals, ragged ones, and images."""
    types = {name: f"*{dtype}" for name in ("signal", "weight", "bias", "position", "tokens", "grad")}
    types |= {"keep": "*i64", "lengths": "*i64", "gain": "*fp32", "shift": "*fp32", "where": "*i32"}
    types |= {name: "*fp32" for name in ("weight_out", "bias_out", "out")}
    plain = {"lengths": None, "gain": None, "shift": None, **{f"{part}{n}": 0 for part in "gh" for n in range(4)}}
    line = {"PATCH": 16, "TALL": 1, "WIDE": 16, "FLAT": True, "s3": 1, "height": 1}
    image = {"PATCH": 768, "TALL": 16, "WIDE": 16, "FLAT": False, "s3": 1, "lengths": None, "g3": 0, "h3": 0}
    common = {"DTYPE": {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}[dtype], "WIDEN": False}
    common |= {"PRECISION": "ieee", **{name: value for name, value in config.items() if name.startswith("BLOCK")}}
    options = {name: value for name, value in config.items() if name.startswith("num")}
    aligned = ("columns", "width", "s0", "s1", "s2", "g1", "g2")
    cases = []
    for kernel in (embed_tile, weight_tile):
        for special, signal in ((line | plain, dtype), (line, "i8"), (image, "u8")):
            deep = {"BLOCK_P": min(config["BLOCK_P"], special["PATCH"])}
            cases.append(Ahead(kernel, types | {"signal": f"*{signal}"}, common | special | deep, options, aligned))
    cases.append(Ahead(invert_tile, types, {"BLOCK": 1024}, {"num_warps": 4, "num_stages": 3}))
    blocks = {name: config[name] for name in ("BLOCK_M", "BLOCK_D")}
    cases.append(Ahead(position_tile, types, blocks, options, ("width",)))
    return cases
