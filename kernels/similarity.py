"""InfoNCE, the contrastive loss: pull each anchor to its own target and away from the targets of the other samples.

    loss = mean_i  -log( exp(cos(a_i, t_i) / temperature) / sum_j exp(cos(a_i, t_j) / temperature) )

One direction, anchors in rows. Three ways to the same number: the definition (info_nce_reference), row chunks in
PyTorch that never hold more than a chunk of the B x N matrix, and a Triton forward that writes none of it. Backward
recomputes the matrix chunk by chunk in a fixed order, without atomics, so it is the same every time.

Legend: B anchors of this rank, N targets (B times the world with global negatives), F features, R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from cadiff.kernels.dispatch import use_triton

_CHUNK = 1 << 22  # entries of the similarity matrix held at once: 16 MiB in float32


def info_nce(
    anchor_BF: Tensor, target_BF: Tensor, temperature: float, *, negatives: Literal["micro", "global"] = "micro"
) -> Tensor:
    """Contrastive loss of anchors against targets; the i-th target is the i-th anchor's positive.

    With ``negatives="global"`` every rank's targets are negatives of every anchor. All ranks must call it together with
    the same B, and each gets the mean over its own rows; the mean of the ranks' gradients, which data-parallel training
    takes, is then exactly the gradient of one process that holds the whole batch.

    Args:
        anchor_BF, target_BF: any float dtype; computed in float32, also under autocast. Rows are scaled to length one
            (rows shorter than 1e-12 are left near zero).
        temperature: divides the cosines, > 0.
        negatives: "micro": the B targets given; "global": the targets of all ranks.

    Returns:
        float32 scalar. A sample without any negative has a loss of zero that keeps the graph.

    Source: van den Oord et al., "Representation learning with contrastive predictive coding", 2018, eq. 4.
    """
    with torch.autocast(anchor_BF.device.type, enabled=False):
        anchor_BF, target_NF = _unit(anchor_BF), _unit(target_BF)
        first = 0
        if negatives == "global" and distributed.is_initialized() and distributed.get_world_size() > 1:
            first = distributed.get_rank() * target_NF.shape[0]
            target_NF = _GatherRows.apply(target_NF)
        if target_NF.shape[0] == 1:
            return (anchor_BF.sum() + target_NF.sum()) * 0.0
        return _InfoNCE.apply(anchor_BF, target_NF, temperature, first)


def info_nce_reference(anchor_BF: Tensor, target_NF: Tensor, temperature: float, first: int = 0) -> Tensor:
    """The definition, with the whole matrix; positives are targets first..first+B-1. It tests the other paths."""
    logits_BN = F.normalize(anchor_BF, dim=1) @ F.normalize(target_NF, dim=1).T / temperature
    positive_B = first + torch.arange(anchor_BF.shape[0], device=anchor_BF.device)
    return F.cross_entropy(logits_BN, positive_B)


def _unit(rows_BF: Tensor) -> Tensor:
    return F.normalize(rows_BF.float(), dim=1, eps=1e-12)


class _InfoNCE(torch.autograd.Function):
    """mean_i ( logsumexp_j <a_i, t_j> / temperature  -  <a_i, t_first+i> / temperature ), rows of length one."""

    @staticmethod
    def forward(ctx, anchor_BF: Tensor, target_NF: Tensor, temperature: float, first: int) -> Tensor:
        anchor_BF, target_NF = anchor_BF.contiguous(), target_NF.contiguous()
        if use_triton(anchor_BF):
            from cadiff.kernels.triton_similarity import log_sum_exp

            lse_B = log_sum_exp(anchor_BF, target_NF, temperature)
        else:
            lse_B = log_sum_exp_chunked(anchor_BF, target_NF, temperature)
        positive_B = (anchor_BF * target_NF[first : first + anchor_BF.shape[0]]).sum(1) / temperature
        ctx.save_for_backward(anchor_BF, target_NF, lse_B)
        ctx.temperature, ctx.first = temperature, first
        return (lse_B - positive_B).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        anchor_BF, target_NF, lse_B = ctx.saved_tensors
        wants_anchor, wants_target = ctx.needs_input_grad[:2]
        grad_anchor_BF = torch.empty_like(anchor_BF) if wants_anchor else None
        grad_target_NF = torch.zeros_like(target_NF) if wants_target else None
        scale = grad / (anchor_BF.shape[0] * ctx.temperature)
        with torch.autocast(anchor_BF.device.type, enabled=False):
            for rows in _chunks(anchor_BF.shape[0], target_NF.shape[0]):
                pull_RN = torch.mm(anchor_BF[rows], target_NF.T).div_(ctx.temperature).sub_(lse_B[rows, None]).exp_()
                pull_RN.diagonal(ctx.first + rows.start).sub_(1.0)
                pull_RN.mul_(scale)
                if wants_anchor:
                    torch.mm(pull_RN, target_NF, out=grad_anchor_BF[rows])
                if wants_target:
                    grad_target_NF.addmm_(pull_RN.T, anchor_BF[rows])
        return grad_anchor_BF, grad_target_NF, None, None


def log_sum_exp_chunked(anchor_BF: Tensor, target_NF: Tensor, temperature: float) -> Tensor:
    """logsumexp_j <a_i, t_j> / temperature for each row, float32 (B,), a chunk of rows at a time."""
    lse_B = anchor_BF.new_empty(anchor_BF.shape[0])
    for rows in _chunks(anchor_BF.shape[0], target_NF.shape[0]):
        lse_B[rows] = torch.logsumexp(torch.mm(anchor_BF[rows], target_NF.T).div_(temperature), dim=1)
    return lse_B


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _GatherRows(torch.autograd.Function):
    """Stack the rows of all ranks in rank order; backward sums every rank's gradient for the rows of this one."""

    @staticmethod
    def forward(ctx, rows_BF: Tensor) -> Tensor:
        ctx.batch = rows_BF.shape[0]
        all_NF = rows_BF.new_empty((ctx.batch * distributed.get_world_size(), *rows_BF.shape[1:]))
        distributed.all_gather_into_tensor(all_NF, rows_BF.contiguous())
        return all_NF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NF: Tensor) -> Tensor:
        if distributed.get_backend() == "nccl":
            grad_BF = grad_NF.new_empty((ctx.batch, *grad_NF.shape[1:]))
            distributed.reduce_scatter_tensor(grad_BF, grad_NF.contiguous())
            return grad_BF
        # gloo does not have a reduce-scatter in every version we support: sum everything, then take our rows.
        total_NF = grad_NF.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total_NF)
        return total_NF.narrow(0, distributed.get_rank() * ctx.batch, ctx.batch)


def check_pair(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Loss and gradients of a small odd-shaped input, from the live path and from the definition."""
    leaves = [torch.linspace(-3, 3, 5 * 37, device=device).mul(speed).sin().view(5, 37) for speed in (3.0, 5.0)]
    answers = []
    for loss_of in (info_nce, info_nce_reference):
        pair = [leaf.clone().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            loss = loss_of(*pair, 0.1)
            answers.append((loss.detach(), *torch.autograd.grad(loss, pair)))
    return answers[0], answers[1]
