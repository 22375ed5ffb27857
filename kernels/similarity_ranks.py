"""All ranks as one contrastive batch: targets gathered, or passed round in a ring; columns merged over ranks.

Each rank holds the rows of its own anchors against the targets of all. Log-sum-exps of columns need all rows: only a
number per column crosses the network for them. Gradients are summed over the ranks that made them, so that the mean
over ranks, which data-parallel training takes, is the gradient of the mean over ranks of the loss.

Legend: B anchors of this rank, W ranks, N = W * B targets, F features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from cadiff.errors import ConfigError
from cadiff.kernels.dispatch import backend
from cadiff.kernels.pairs import NO_OWN, Rules, count_positives
from cadiff.kernels.similarity_ops import plain_similarity, similarity, similarity_gradient

# PyTorch 2.13 renamed both, and warns about the old names.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
_reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor


@torch.compiler.disable
def similarity_of_ranks(
    anchor_BF: Tensor, target_BF: Tensor, scale: Tensor, rules: Rules, columns: bool, ring: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What cadiff.kernels.similarity_ops.similarity gives for this rank's rows of the matrix of all ranks.

    The definition (CADIFF_KERNELS=reference) gathers for a ring too. All ranks call it together with the same B, and
    with gradients wanted for the same sides: collectives with other sizes hang or abort, which nothing looks out for.

    Returns:
        log-sum-exp of the rows of this rank's anchors and of the columns of this rank's targets, (B,) each, the latter
        (0,) without ``columns``; mean similarity of the positives (B,).
    """
    rank, world, batch = distributed.get_rank(), distributed.get_world_size(), len(anchor_BF)
    ids_2N = None if rules.ids_2B is None else torch.cat(_gather(rules.ids_2B[None]).unbind(0), dim=1)
    if ring and backend(anchor_BF.device.type) != "reference":
        row_B, column_N, positive_B = _Ring.apply(anchor_BF, target_BF, scale, rules, ids_2N, columns)
    else:
        row_B, column_N, positive_B = similarity(
            anchor_BF, _GatherRows.apply(target_BF), scale, rank * batch, rules.ids_2B, ids_2N, rules.repeats,
            rules.subjects, columns,
        )  # fmt: skip
    if not columns:
        return row_B, column_N, positive_B
    column_B = _MergeColumns.apply(column_N).view(world, batch)[rank]
    return row_B, column_B, positive_B


class _GatherRows(torch.autograd.Function):
    """Stack the rows of all ranks in rank order; backward sums every rank's gradient for the rows of this one."""

    @staticmethod
    def forward(ctx, rows_BF: Tensor) -> Tensor:
        return _gather(rows_BF)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NF: Tensor) -> Tensor:
        batch = len(grad_NF) // distributed.get_world_size()
        if distributed.get_backend() == "nccl":
            grad_BF = grad_NF.new_empty((batch, *grad_NF.shape[1:]))
            _reduce_scatter(grad_BF, grad_NF.contiguous())
            return grad_BF
        # gloo does not have a reduce-scatter in every version we support: sum everything, then take our rows.
        total_NF = grad_NF.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total_NF)
        return total_NF.narrow(0, distributed.get_rank() * batch, batch)


class _MergeColumns(torch.autograd.Function):
    """Log-sum-exp over ranks of each column's part: c = m + log sum_r exp(c_r - m), with m the largest part."""

    @staticmethod
    def forward(ctx, part_N: Tensor) -> Tensor:
        top_N = part_N.clone()
        distributed.all_reduce(top_N, distributed.ReduceOp.MAX)
        total_N = (part_N - top_N).exp()
        distributed.all_reduce(total_N)
        merged_N = top_N + total_N.log()
        ctx.save_for_backward(part_N, merged_N)
        return merged_N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N: Tensor) -> Tensor:
        part_N, merged_N = ctx.saved_tensors
        grad_N = grad_N.clone()
        distributed.all_reduce(grad_N)  # every rank's loss hangs on its own columns, and those on all ranks' rows
        return grad_N * (part_N - merged_N).exp()


class _Ring(torch.autograd.Function):
    """The same numbers as of gathered targets, while targets travel from rank to rank; their gradients travel along."""

    @staticmethod
    def forward(
        ctx, anchor_BF: Tensor, target_BF: Tensor, scale: Tensor, rules: Rules, ids_2N: Tensor | None, columns: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        rank, world, batch = distributed.get_rank(), distributed.get_world_size(), len(anchor_BF)
        row_B = scale.new_full((batch,), float("-inf"))
        positive_B, counts_B = row_B.new_zeros(batch), row_B.new_zeros(batch)
        parts = [row_B[:0]] * world
        for owner, block_BF in _travel(target_BF):
            ids_2C, first = _of(ids_2N, owner, batch), 0 if owner == rank else NO_OWN
            more_B, parts[owner], mean_B, _ = plain_similarity(
                anchor_BF, block_BF, scale, first, rules.ids_2B, ids_2C, rules.repeats, rules.subjects, columns
            )
            row_B = torch.logaddexp(row_B, more_B)
            count_B = count_positives(rules.ids_2B, ids_2C, rules.repeats, first == 0, row_B)
            positive_B, counts_B = positive_B + mean_B * count_B, counts_B + count_B
        column_N = torch.cat(parts)
        ctx.save_for_backward(anchor_BF, target_BF, scale, row_B, column_N, counts_B, ids_2N)
        ctx.rules = rules
        return row_B, column_N, positive_B / counts_B

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_row_B: Tensor, grad_column_N: Tensor, grad_positive_B: Tensor):
        anchor_BF, target_BF, scale, row_B, column_N, counts_B, ids_2N = ctx.saved_tensors
        rules, rank, batch = ctx.rules, distributed.get_rank(), len(anchor_BF)
        grad_BF, grad_scale = torch.zeros_like(anchor_BF, dtype=scale.dtype), torch.zeros_like(scale)
        travelling_BF = torch.zeros_like(target_BF, dtype=scale.dtype)
        wants = list(ctx.needs_input_grad[:2])
        for owner, block_BF in _travel(target_BF):
            own = slice(owner * batch, (owner + 1) * batch) if len(column_N) else slice(0, 0)
            ids_2C, first = _of(ids_2N, owner, batch), 0 if owner == rank else NO_OWN
            # The operator divides by the positives of this block; those of all blocks are meant.
            share_B = (
                grad_positive_B * count_positives(rules.ids_2B, ids_2C, rules.repeats, first == 0, row_B) / counts_B
            )
            one_BF, other_BF, one = similarity_gradient(
                anchor_BF, block_BF, scale, row_B, column_N[own], scale.new_empty(0, 0), grad_row_B.contiguous(),
                grad_column_N[own].contiguous(), share_B, first, rules.ids_2B, ids_2C, rules.repeats, rules.subjects,
                wants,
            )  # fmt: skip
            grad_scale += one
            if wants[0]:
                grad_BF += one_BF
            if wants[1]:
                travelling_BF = _pass_on(travelling_BF + other_BF)
        grads = (grad_BF.to(anchor_BF.dtype), travelling_BF.to(target_BF.dtype))
        return *(grad if want else None for grad, want in zip(grads, wants)), grad_scale, None, None, None


def _gather(rows: Tensor) -> Tensor:
    everything = rows.new_empty((len(rows) * distributed.get_world_size(), *rows.shape[1:]))
    _all_gather(everything, rows.contiguous())
    return everything


def _travel(rows_BF: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every rank's rows, one's own first: (owner, rows). The next ones are on their way while these are used."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    here_BF = rows_BF.contiguous()
    for step in range(world):
        on_the_way, next_BF = _exchange(here_BF) if step + 1 < world else ([], here_BF)
        yield (rank - step) % world, here_BF
        for request in on_the_way:
            request.wait()
        here_BF = next_BF


def _pass_on(rows_BF: Tensor) -> Tensor:
    on_the_way, received_BF = _exchange(rows_BF)
    for request in on_the_way:
        request.wait()
    return received_BF


def _exchange(rows_BF: Tensor) -> tuple[list[distributed.Work], Tensor]:
    """Begin to send rows to the next rank and to receive those of the one before."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    received_BF = torch.empty_like(rows_BF)
    requests = [
        distributed.P2POp(distributed.isend, rows_BF, (rank + 1) % world),
        distributed.P2POp(distributed.irecv, received_BF, (rank - 1) % world),
    ]
    return distributed.batch_isend_irecv(requests), received_BF


def _of(ids_2N: Tensor | None, owner: int, batch: int) -> Tensor | None:
    return None if ids_2N is None else ids_2N[:, owner * batch : (owner + 1) * batch]


def check_ranks(device: torch.device) -> None:
    """Compare the loss and gradients of all ranks with those of one process that holds the whole batch.

    Every rank calls it; takes milliseconds. Inputs are fixed, in float32.

    Raises:
        ConfigError: on all ranks, if they disagree on any of them: training would follow a wrong gradient.
    """
    from cadiff.kernels.similarity import info_nce, info_nce_reference

    rank, world, batch = distributed.get_rank(), distributed.get_world_size(), 3
    size = world * batch
    wave = torch.linspace(-3, 3, size * 17, device=device)
    sides = [wave.mul(speed).sin().view(size, 17) for speed in (3.0, 5.0)]
    whole = [leaf.clone().requires_grad_() for leaf in (*sides, torch.tensor(0.2, device=device))]
    own = slice(rank * batch, (rank + 1) * batch)
    with torch.enable_grad():
        wanted = torch.autograd.grad(info_nce_reference(*whole, symmetric=True), whole)
        worst = torch.zeros((), device=device)
        for negatives in ("global", "ring"):
            mine = [leaf.detach()[own].clone().requires_grad_() for leaf in whole[:2]]
            mine.append(whole[2].detach().clone().requires_grad_())
            grads = torch.autograd.grad(info_nce(*mine, symmetric=True, negatives=negatives), mine)
            distributed.all_reduce(grads[2])
            for got, theirs in zip(grads, (wanted[0][own], wanted[1][own], wanted[2])):
                worst = torch.maximum(worst, (got / world - theirs).abs().max() / theirs.abs().max())
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    if not worst < 1e-3:
        raise ConfigError(
            f"The gradient of the contrastive loss of all ranks is off by {worst.item():.2g} of one process's, "
            "expected at most 1e-3. Look at the network's library and its settings, or train with loss.negatives=micro."
        )
