"""Contrastive similarity in Triton: tiles are made, summed and forgotten; gradients from strips of the matrix.

Imported only where cadiff.kernels.dispatch has chosen Triton. Forward writes a few numbers per row and column. Backward
makes the matrix again in strips of rows, as gradients of the similarities, and two matrix products per strip make
gradients of the rows of them: one kernel for both would have to hold a whole row of features, up to 91,282 of them, for
every row of a tile. Every sum is made in an order that depends on the shapes alone.

Legend: B anchors, N targets, F features, M and N rows and columns of a tile, R rows of a strip.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.kernels import similarity_torch
from cadiff.kernels.ahead import Ahead
from cadiff.kernels.pairs import count_positives
from cadiff.kernels.triton_similarity_tiles import force_tile, lse_tile, unit_row
from cadiff.kernels.tuning import Tiles, precision, tiles

# By bytes of a number: what fits an A100's and an H100's registers and shared memory without spills.
DEFAULT = {
    2: {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_F": 64, "num_warps": 8, "num_stages": 3},
    4: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_F": 32, "num_warps": 8, "num_stages": 3},
}
CANDIDATES = [
    {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_F": f, "num_warps": warps, "num_stages": stages}
    for m, n, f, warps in ((128, 128, 64, 8), (128, 128, 32, 8), (128, 256, 64, 8), (64, 128, 64, 4), (64, 64, 64, 4))
    for stages in (3, 4)
]
_PROGRAMS = 512  # about what fills a GPU; fixed, so that the order of summing never hangs on the GPU
_GROUP = 256  # row blocks whose parts of the columns are held at once: 256 numbers a column, whatever the batch
STRIP = 1 << 27  # entries of a strip: 256 MiB in bfloat16
_PAD = 64  # rows begin at multiples of this, the largest BLOCK_F: whole and aligned loads for any number of features


def padded(features: int) -> int:
    """Numbers from one row to the next."""
    return triton.cdiv(features, _PAD) * _PAD


def kept_shape(anchor_BF: Tensor, target_NF: Tensor) -> tuple[int, int]:
    """Nothing is kept, except in float64, which runs in PyTorch."""
    return similarity_torch.kept_shape(anchor_BF, target_NF) if anchor_BF.dtype == torch.float64 else (0, 0)


def log_sum_exp(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.similarity_ops.similarity."""
    rules = (ids_2B, ids_2N, repeats, subjects)
    if scale.dtype == torch.float64:
        return similarity_torch.log_sum_exp(anchor_BF, target_NF, scale, first, *rules, columns)
    unit_BF, unit_NF, _, _ = _unit_rows(anchor_BF, target_NF)
    (rows, step_F), targets = unit_BF.shape, len(unit_NF)
    config = _tiles(unit_BF, targets)
    height, width = triton.cdiv(rows, config["BLOCK_M"]), triton.cdiv(targets, config["BLOCK_N"])
    per_split = triton.cdiv(width, max(1, min(width, _PROGRAMS // height)))
    splits = triton.cdiv(width, per_split)
    row_SB, positive_SB = scale.new_empty(splits, rows), scale.new_empty(splits, rows)
    column_N = scale.new_full((targets if columns else 0,), float("-inf"))
    step = _GROUP if columns else height
    for top in range(0, height, step):
        group = min(step, height - top)
        part_GN = scale.new_empty(group, targets) if columns else column_N
        lse_tile[(group, splits)](
            unit_BF, unit_NF, scale, *_ids(ids_2B, ids_2N, unit_BF), row_SB, positive_SB, part_GN,
            rows, targets, step_F, first, top, per_split,
            **_flags(unit_BF, ids_2B, repeats, subjects, columns), **config,
        )  # fmt: skip
        if columns:
            column_N = torch.logsumexp(torch.cat((column_N[None], part_GN)), 0)
    positive_B = positive_SB.sum(0)
    positive_B /= count_positives(ids_2B, ids_2N, repeats, True, positive_B).clamp_min_(1)
    return torch.logsumexp(row_SB, 0), column_N, positive_B, scale.new_empty(0, 0)


def gradient(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, row_B: Tensor, column_N: Tensor, kept_BN: Tensor,
    grad_row_B: Tensor, grad_column_N: Tensor, grad_positive_B: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.similarity_ops.similarity_gradient."""
    if scale.dtype == torch.float64:
        return similarity_torch.gradient(
            anchor_BF, target_NF, scale, row_B, column_N, kept_BN, grad_row_B, grad_column_N, grad_positive_B, first,
            ids_2B, ids_2N, repeats, subjects, wants,
        )  # fmt: skip
    unit_BF, unit_NF, norm_B, norm_N = _unit_rows(anchor_BF, target_NF)
    share_B = grad_positive_B / count_positives(ids_2B, ids_2N, repeats, True, row_B).clamp_min_(1)
    # Strips are held in the features' dtype: relative to the largest gradient nothing of weight is lost in float16.
    most = torch.cat((grad_row_B, grad_column_N, grad_positive_B)).abs().amax().clamp_min(1e-30)
    (rows, step_F), targets = unit_BF.shape, len(unit_NF)
    config = _tiles(unit_BF, targets)
    step = max(1, STRIP // targets // config["BLOCK_M"]) * config["BLOCK_M"]
    features = anchor_BF.shape[1]
    grad_BF, grad_NF = (row_B.new_zeros(side.shape if want else 0) for side, want in zip((anchor_BF, target_NF), wants))
    pull_B, pull_N = row_B.new_zeros(rows), row_B.new_zeros(targets)
    for top in range(0, rows, step):
        strip = slice(top, min(top + step, rows))
        height, width = triton.cdiv(strip.stop - top, config["BLOCK_M"]), triton.cdiv(targets, config["BLOCK_N"])
        force_RN = unit_BF.new_empty(strip.stop - top, targets)
        across_WR, down_HN = row_B.new_empty(width, strip.stop - top), row_B.new_empty(height, targets)
        force_tile[(height, width)](
            unit_BF, unit_NF, scale, *_ids(ids_2B, ids_2N, unit_BF), row_B, column_N, grad_row_B / most,
            grad_column_N / most, share_B / most, force_RN, across_WR, down_HN,
            rows, targets, step_F, first, top, strip.stop - top,
            **_flags(unit_BF, ids_2B, repeats, subjects, len(column_N) > 0), **config,
        )  # fmt: skip
        pull_B[strip] = across_WR.sum(0)
        pull_N += down_HN.sum(0)
        if wants[0]:
            grad_BF[strip] = force_RN @ unit_NF[:, :features]
        if wants[1]:
            grad_NF += force_RN.T @ unit_BF[strip, :features]
    return _finish((anchor_BF, target_NF), (grad_BF, grad_NF), (norm_B, norm_N), (pull_B, pull_N), scale, most, wants)


def _finish(sides, grads, norms, pulls, scale: Tensor, most: Tensor, wants: list[bool]) -> tuple[Tensor, ...]:
    for side, grad, norm, pull, want in zip(sides, grads, norms, pulls, wants):
        if want:
            similarity_torch.through_length(grad, side, norm, pull, scale)
            grad.mul_(most)
    return (*(grad.to(side.dtype) for side, grad in zip(sides, grads)), pulls[0].sum() * most / scale)


def _unit_rows(anchor_BF: Tensor, target_NF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of length one in the wider of the two dtypes, with zeros behind, and their lengths in float32."""
    dtype = torch.promote_types(anchor_BF.dtype, target_NF.dtype)
    width = padded(anchor_BF.shape[1])
    out = []
    for rows_BF in (anchor_BF, target_NF):
        unit_BF = torch.empty((len(rows_BF), width), dtype=dtype, device=rows_BF.device)
        norm_B = torch.empty(len(rows_BF), dtype=torch.float32, device=rows_BF.device)
        block = min(4096, triton.next_power_of_2(width))
        unit_row[(len(rows_BF),)](
            rows_BF,
            unit_BF,
            norm_B,
            *rows_BF.stride(),
            rows_BF.shape[1],
            width,
            similarity_torch.SHORTEST,
            BLOCK=block,
        )
        out += [unit_BF, norm_B]
    return out[0], out[2], out[1], out[3]


def _tiles(unit_BF: Tensor, targets: int) -> Tiles:
    size = unit_BF.element_size()
    chosen = tiles("similarity", unit_BF.device, DEFAULT[size], **sizes(*unit_BF.shape, targets, size))
    if _PAD % chosen["BLOCK_F"]:
        raise ConfigError(f"Tiles of similarity: BLOCK_F is {chosen['BLOCK_F']}; expected a divisor of {_PAD}.")
    return chosen


def sizes(rows: int, features: int, targets: int, itemsize: int) -> dict[str, int]:
    """What a shape class depends on."""
    return {"B": rows, "N": targets, "F": features, "S": itemsize}


def _ids(ids_2B: Tensor | None, ids_2N: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    if ids_2B is None or ids_2N is None:
        return like, like  # never read
    return ids_2B.contiguous(), ids_2N.contiguous()


def _flags(unit_BF: Tensor, ids_2B: Tensor | None, repeats: int, subjects: int, columns: bool) -> dict[str, object]:
    ruled = ids_2B is not None
    return {
        "REPEATS": repeats if ruled else 0, "SUBJECTS": subjects if ruled else 0, "COLUMNS": columns,
        **precision(unit_BF),
    }  # fmt: skip


def ahead(dtype: str) -> list[Ahead]:
    """These kernels as they are launched on ``dtype`` ("fp16", "bf16", "fp32") without a policy, and with one."""
    config = DEFAULT[4 if dtype == "fp32" else 2]
    numbers = ("row_out", "positive_out", "column_out", "row_lse", "column_lse", "grad_row", "grad_column", "share")
    types = {name: "*fp32" for name in (*numbers, "across_out", "down_out", "scale", "norms")}
    types |= {name: f"*{dtype}" for name in ("anchor", "target", "force_out", "rows", "out")}
    types |= {"row_ids": "*i64", "column_ids": "*i64", "shortest": "fp32"}
    blocks = {name: value for name, value in config.items() if name.startswith("BLOCK")}
    options = {name: value for name, value in config.items() if name.startswith("num")}
    cases = [Ahead(unit_row, types, {"BLOCK": 4096}, {"num_warps": 4, "num_stages": 3}, ("features", "padded"))]
    for repeats, subjects in ((0, 0), (2, 1)):
        flags = {"REPEATS": repeats, "SUBJECTS": subjects, "COLUMNS": True, "WIDEN": False, "PRECISION": "ieee"}
        for kernel in (lse_tile, force_tile):
            cases.append(Ahead(kernel, types, flags | blocks, options, ("batch", "targets", "padded")))
    return cases
