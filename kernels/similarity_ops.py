"""Contrastive similarity as operators that PyTorch knows: their shapes, their gradients, and which backend runs them.

Legend: B anchors, N targets, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cadiff.kernels import similarity_reference, similarity_torch
from cadiff.kernels.dispatch import backend, on_device


def similarity(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, columns: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What a contrastive loss needs of s_ij = scale <a_i, t_j> / (|a_i| |t_j|), over the pairs that are allowed.

    Args:
        scale: 0-d, one over the temperature, in the dtype that is computed in: float64 for float64, else float32.
        first: the column that is the own target of anchor 0; NO_OWN if none is.
        ids_2B, ids_2N, repeats, subjects: see cadiff.kernels.pairs; None where no policy applies.
        columns: whether log-sum-exps of columns are wanted too.

    Returns:
        log-sum-exp of each row (B,) and of each column (N,), or (0,) if not wanted; minus infinity where nothing is
        allowed; the mean similarity of each anchor's positives (B,). All three can be differentiated.
    """
    args = (anchor_BF, target_NF, scale, first, ids_2B, ids_2N, repeats, subjects, columns)
    if backend(anchor_BF.device.type) == "reference":
        return similarity_reference.log_sum_exp(*args)
    return plain_similarity(*args)[:3]


@torch.library.custom_op("cadiff::similarity", mutates_args=())
def plain_similarity(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, columns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See ``similarity``; the fourth tensor is what is kept for backward."""
    with on_device(anchor_BF):
        return _backend(anchor_BF).log_sum_exp(
            anchor_BF, target_NF, scale, first, ids_2B, ids_2N, repeats, subjects, columns
        )


@plain_similarity.register_fake
def _(anchor_BF, target_NF, scale, first, ids_2B, ids_2N, repeats, subjects, columns):
    like = anchor_BF.new_empty(0, dtype=torch.promote_types(anchor_BF.dtype, torch.float32))
    batch, targets = anchor_BF.shape[0], target_NF.shape[0]
    kept = _backend(anchor_BF).kept_shape(anchor_BF, target_NF)
    return like.new_empty(batch), like.new_empty(targets if columns else 0), like.new_empty(batch), like.new_empty(kept)


@torch.library.custom_op("cadiff::similarity_gradient", mutates_args=())
def similarity_gradient(
    anchor_BF: Tensor, target_NF: Tensor, scale: Tensor, row_B: Tensor, column_N: Tensor, kept_BN: Tensor,
    grad_row_B: Tensor, grad_column_N: Tensor, grad_positive_B: Tensor, first: int,
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, subjects: int, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of anchors, targets and scale, each made as if G_ij = sum of the three gradients times

        exp(s_ij - row_i),  exp(s_ij - column_j)  and  1 / (number of positives) where j is a positive of i.

    Args:
        row_B, column_N: of the whole loss; more than ``similarity`` returned where others were merged into them.
        wants: whether anchors and targets ask for a gradient; the other's is an empty tensor.
    """
    with on_device(anchor_BF):
        return _backend(anchor_BF).gradient(
            anchor_BF, target_NF, scale, row_B, column_N, kept_BN, grad_row_B, grad_column_N, grad_positive_B, first,
            ids_2B, ids_2N, repeats, subjects, wants,
        )  # fmt: skip


@similarity_gradient.register_fake
def _(anchor_BF, target_NF, scale, row_B, column_N, kept_BN, grad_row_B, grad_column_N, grad_positive_B, first,
      ids_2B, ids_2N, repeats, subjects, wants):  # fmt: skip
    sides = zip((anchor_BF, target_NF), wants)
    return *(side.new_empty(side.shape if wanted else (0,)) for side, wanted in sides), torch.empty_like(scale)


def _save(ctx, inputs, output) -> None:
    anchor_BF, target_NF, scale, first, ids_2B, ids_2N, repeats, subjects, _ = inputs
    row_B, column_N, _, kept_BN = output
    ctx.save_for_backward(anchor_BF, target_NF, scale, row_B, column_N, kept_BN, ids_2B, ids_2N)
    ctx.rest = (first, repeats, subjects)
    ctx.set_materialize_grads(False)  # zeros for what is kept would be as large as that


def _backward(ctx, grad_row_B, grad_column_N, grad_positive_B, _kept):
    anchor_BF, target_NF, scale, row_B, column_N, kept_BN, ids_2B, ids_2N = ctx.saved_tensors
    first, repeats, subjects = ctx.rest
    wants = list(ctx.needs_input_grad[:2])
    grad_row_B, grad_column_N, grad_positive_B = (
        torch.zeros_like(value) if grad is None else grad.contiguous()
        for grad, value in ((grad_row_B, row_B), (grad_column_N, column_N), (grad_positive_B, row_B))
    )
    grad_BF, grad_NF, grad_scale = similarity_gradient(
        anchor_BF, target_NF, scale, row_B, column_N, kept_BN,
        grad_row_B, grad_column_N, grad_positive_B, first, ids_2B, ids_2N, repeats, subjects, wants,
    )  # fmt: skip
    grads = (grad_BF if wants[0] else None, grad_NF if wants[1] else None, grad_scale)
    return *grads, None, None, None, None, None, None


plain_similarity.register_autograd(_backward, setup_context=_save)


def _backend(anchor_BF: Tensor):
    """The module that runs on this device; both have the same functions."""
    if backend(anchor_BF.device.type) == "triton":
        from cadiff.kernels import triton_similarity

        return triton_similarity
    return similarity_torch
