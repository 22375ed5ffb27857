"""Contrastive similarity by its definition: the whole matrix, and PyTorch's own gradients. The others are tested by it.

Legend: B anchors, N targets, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cadiff.kernels.pairs import marks


def log_sum_exp(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See cadiff.kernels.similarity_ops.similarity."""
    sim_BN = _unit(anchor_BF.to(scale)) @ _unit(target_NF.to(scale)).T * scale
    positive_BN, forbidden_BN = marks(ids_2B, ids_2N, repeats, subjects, first, sim_BN.shape)
    if positive_BN is None:
        positive_BN = torch.zeros(sim_BN.shape, dtype=torch.bool, device=sim_BN.device)
        if -len(sim_BN) < first < sim_BN.shape[1]:
            positive_BN.diagonal(first).fill_(True)
    mean_B = torch.where(positive_BN, sim_BN, 0).sum(1) / positive_BN.sum(1).clamp_min(1)
    column_N = _log_sum_exp(sim_BN, forbidden_BN, 0) if columns else sim_BN.new_empty(0)
    return _log_sum_exp(sim_BN, forbidden_BN, 1), column_N, mean_B


def _log_sum_exp(sim_BN: Tensor, forbidden_BN: Tensor | None, axis: int) -> Tensor:
    if forbidden_BN is None:
        return torch.logsumexp(sim_BN, axis)
    # Where nothing is allowed the gradient is zero, not the quotient of two zeros.
    nothing = forbidden_BN.all(axis, keepdim=True)
    lse = torch.logsumexp(sim_BN.masked_fill(forbidden_BN & ~nothing, float("-inf")), axis)
    return lse.masked_fill(nothing.squeeze(axis), float("-inf"))


def _unit(rows_BF: Tensor) -> Tensor:
    """Rows of length one; a row shorter than 1e-12 has no direction: it is zero, and gets no gradient."""
    norm_B1 = torch.linalg.vector_norm(rows_BF, dim=1, keepdim=True)
    return rows_BF / norm_B1.masked_fill(norm_B1 < 1e-12, float("inf"))
