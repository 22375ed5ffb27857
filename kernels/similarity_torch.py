"""Contrastive similarity by tiles in PyTorch: log-sum-exps of rows and columns, and gradients by making tiles again.

Never holds more than a tile of a large B x N matrix and the two blocks of rows it is made of. A small matrix is kept
from forward to backward, because making it again would cost time and save little: KEEP does not grow with the batch.

    c_ij = <a_i, t_j> / (|a_i| |t_j|)     s_ij = scale c_ij     G_ij = d loss / d s_ij
    d loss / d a_i = ( scale sum_j G_ij t_j / |t_j|  -  a_i / |a_i| sum_j G_ij s_ij ) / |a_i|

Legend: B anchors, N targets, F features, R and C rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cadiff.kernels.pairs import count_positives, marks

TILE = 1 << 20  # entries of the matrix made at once: 4 MiB in float32
KEEP = 1 << 24  # a matrix of at most so many entries is kept from forward to backward: 64 MiB in float32
BLOCK = 1 << 22  # numbers in a block of rows that are scaled to length one: 16 MiB in float32
SHORTEST = 1e-12  # shorter rows have no direction: they are like nothing, and get no gradient


def log_sum_exp(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.similarity_ops.similarity; the fourth is kept for ``gradient``."""
    grid = _Grid(anchor_BF, target_NF, scale)
    rows_B, columns_N = _Running(len(anchor_BF), grid.like), _Running(len(target_NF) if columns else 0, grid.like)
    positive_B, kept_BN = grid.like.new_zeros(len(anchor_BF)), grid.like.new_empty(kept_shape(anchor_BF, target_NF))
    scratch_RC = grid.like.new_empty(grid.step_R * grid.step_C)
    for at in grid.tiles():
        sim_RC = grid.multiply(at, kept_BN[at.rows, at.columns] if kept_BN.numel() else None)
        own = first + at.rows.start - at.columns.start
        positive_RC, forbidden_RC = marks(
            _part(ids_2B, at.rows), _part(ids_2N, at.columns), repeats, subjects, own, sim_RC.shape
        )
        if positive_RC is None:
            if -sim_RC.shape[0] < own < sim_RC.shape[1]:
                diagonal = sim_RC.diagonal(own)
                positive_B[at.rows].narrow(0, max(0, -own), len(diagonal)).add_(diagonal)
        else:
            positive_B[at.rows] += torch.where(positive_RC, sim_RC, 0).sum(1)
        if forbidden_RC is not None:
            sim_RC.masked_fill_(forbidden_RC, float("-inf"))
        spare_RC = scratch_RC[: sim_RC.numel()].view(sim_RC.shape)
        rows_B.add(at.rows, sim_RC, 1, spare_RC)
        if columns:
            columns_N.add(at.columns, sim_RC, 0, spare_RC)
    positive_B /= count_positives(ids_2B, ids_2N, repeats, True, positive_B).clamp_min_(1)
    return rows_B.value(), columns_N.value(), positive_B, kept_BN


def gradient(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, row_B: Tensor, column_N: Tensor, kept_BN: Tensor,
    grad_row_B: Tensor, grad_column_N: Tensor, grad_positive_B: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.similarity_ops.similarity_gradient."""
    grid = _Grid(anchor_BF, target_NF, scale)
    sides = ((anchor_BF, wants[0]), (target_NF, wants[1]))
    grad_BF, grad_NF = (grid.like.new_zeros(side.shape if wanted else 0) for side, wanted in sides)
    pull_B, pull_N = grid.like.new_zeros(len(anchor_BF)), grid.like.new_zeros(len(target_NF))
    scratch_RC = grid.like.new_empty(2, grid.step_R * grid.step_C)
    share_B = grad_positive_B / count_positives(ids_2B, ids_2N, repeats, True, row_B).clamp_min_(1)
    for at in grid.tiles():
        sim_RC = kept_BN[at.rows, at.columns] if kept_BN.numel() else grid.multiply(at, None)
        own = first + at.rows.start - at.columns.start
        positive_RC, forbidden_RC = marks(
            _part(ids_2B, at.rows), _part(ids_2N, at.columns), repeats, subjects, own, sim_RC.shape
        )
        force_RC, spare_RC = (buffer[: sim_RC.numel()].view(sim_RC.shape) for buffer in scratch_RC)
        torch.sub(sim_RC, row_B[at.rows, None], out=force_RC).exp_().mul_(grad_row_B[at.rows, None])
        if len(column_N):
            torch.sub(sim_RC, column_N[at.columns], out=spare_RC).exp_()
            force_RC.addcmul_(spare_RC, grad_column_N[at.columns].expand_as(spare_RC))
        if positive_RC is not None:
            force_RC += torch.where(positive_RC, share_B[at.rows, None], 0)
        elif -sim_RC.shape[0] < own < sim_RC.shape[1]:
            diagonal = force_RC.diagonal(own)
            diagonal.add_(share_B[at.rows].narrow(0, max(0, -own), len(diagonal)))
        if forbidden_RC is not None:
            force_RC.masked_fill_(forbidden_RC, 0.0)
            sim_RC = sim_RC.masked_fill(forbidden_RC, 0.0)  # -inf where it was kept
        if wants[0]:
            grad_BF[at.rows].addmm_(force_RC, grid.unit_CF)
        if wants[1]:
            grad_NF[at.columns].addmm_(force_RC.T, grid.unit_RF)
        torch.mul(force_RC, sim_RC, out=spare_RC)
        pull_B[at.rows] += spare_RC.sum(1)
        pull_N[at.columns] += spare_RC.sum(0)
    if wants[0]:
        through_length(grad_BF, anchor_BF, grid.norm_B, pull_B, scale)
    if wants[1]:
        through_length(grad_NF, target_NF, grid.norm_N, pull_N, scale)
    grad_scale = (pull_B.sum() / scale).to(scale.dtype)
    return grad_BF.to(anchor_BF.dtype), grad_NF.to(target_NF.dtype), grad_scale


def kept_shape(anchor_BF: Tensor, target_NF: Tensor) -> tuple[int, int]:
    """Of the matrix as it is kept from forward to backward: (B, N), or (0, 0) where it is made again."""
    size = (anchor_BF.shape[0], target_NF.shape[0])
    return size if size[0] * size[1] <= KEEP else (0, 0)


def lengths(rows_BF: Tensor) -> Tensor:
    """Euclidean length of each row, infinite for rows shorter than SHORTEST: float32, or float64 for float64.

    By way of float64, so that no square overflows or vanishes.
    """
    step = max(1, BLOCK // 4 // rows_BF.shape[1])
    length_B = torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in rows_BF.split(step)])
    length_B.masked_fill_(length_B < SHORTEST, float("inf"))
    return length_B.to(torch.promote_types(rows_BF.dtype, torch.float32))


class _Running:
    """Log-sum-exps that grow tile by tile: the largest so far, and the sum relative to it (Milakov and Gimelshein)."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._top, self._sum = like.new_full((size,), float("-inf")), like.new_zeros(size)

    def add(self, place: slice, sim_RC: Tensor, axis: int, spare_RC: Tensor) -> None:
        top, total = self._top[place], self._sum[place]
        new = torch.maximum(top, sim_RC.amax(axis))
        base = new.masked_fill(new == float("-inf"), 0.0)  # nothing allowed so far
        torch.sub(sim_RC, base.unsqueeze(axis), out=spare_RC).exp_()
        total.mul_((top - base).exp_()).add_(spare_RC.sum(axis))
        top.copy_(new)

    def value(self) -> Tensor:
        return self._top + self._sum.log()


class _Tile:
    __slots__ = ("columns", "rows")

    def __init__(self, rows: slice, columns: slice) -> None:
        self.rows, self.columns = rows, columns


class _Grid:
    """The tiles of a matrix, and the unit rows that the current one is made of.

    Attributes:
        like: a tensor of the dtype that is computed in (float64 for float64, else float32), on the right device.
        unit_RF, unit_CF: rows of anchors and targets of length one, of the tile that was last given.
    """

    def __init__(self, anchor_BF: Tensor, target_NF: Tensor, scale: Tensor) -> None:
        self._anchor, self._target, self._scale = anchor_BF, target_NF, scale
        self.norm_B, self.norm_N = lengths(anchor_BF), lengths(target_NF)
        self.like = self.norm_B
        (rows, features), columns = anchor_BF.shape, target_NF.shape[0]
        most = max(1, min(BLOCK // features, 2048))
        self.step_C = min(columns, most)
        self.step_R = min(rows, most, max(1, TILE // self.step_C))
        self._rows, self._columns = (
            self.like.new_empty(self.step_R * features),
            self.like.new_empty(self.step_C * features),
        )
        self._tile: Tensor | None = None

    def tiles(self) -> Iterator[_Tile]:
        features = self._anchor.shape[1]
        for row in range(0, len(self._anchor), self.step_R):
            rows = slice(row, min(row + self.step_R, len(self._anchor)))
            self.unit_RF = _unit(self._anchor[rows], self.norm_B[rows], self._rows, features)
            for column in range(0, len(self._target), self.step_C):
                columns = slice(column, min(column + self.step_C, len(self._target)))
                self.unit_CF = _unit(self._target[columns], self.norm_N[columns], self._columns, features)
                yield _Tile(rows, columns)

    def multiply(self, at: _Tile, out_RC: Tensor | None) -> Tensor:
        """The tile of s = scale c; written into ``out_RC`` if that is given."""
        if out_RC is None:
            if self._tile is None:
                self._tile = self.like.new_empty(self.step_R * self.step_C)
            size = (len(self.unit_RF), len(self.unit_CF))
            out_RC = self._tile[: size[0] * size[1]].view(size)
        torch.mm(self.unit_RF, self.unit_CF.T, out=out_RC)
        return out_RC.mul_(self._scale)


def _unit(rows_RF: Tensor, norm_R: Tensor, buffer: Tensor, features: int) -> Tensor:
    out_RF = buffer[: len(rows_RF) * features].view(len(rows_RF), features)
    return torch.div(rows_RF, norm_R[:, None], out=out_RF)


def through_length(grad_BF: Tensor, rows_BF: Tensor, norm_B: Tensor, pull_B: Tensor, scale: Tensor) -> None:
    """From sum_j G_ij t_j to the gradient of the row before it was scaled to length one, in place."""
    step = max(1, BLOCK // rows_BF.shape[1])
    for start in range(0, len(rows_BF), step):
        part = slice(start, start + step)
        norm = norm_B[part]
        grad_BF[part].mul_((scale / norm)[:, None])
        grad_BF[part].addcmul_(rows_BF[part], (pull_B[part] / norm / norm).neg_()[:, None].expand_as(rows_BF[part]))


def _part(ids_2B: Tensor | None, place: slice) -> Tensor | None:
    return None if ids_2B is None else ids_2B[:, place]
