"""The contrastive loss: pull each anchor to its own target and away from the targets of the other samples.

    s_ij = cos(a_i, t_j) / temperature          p_i: the positives of anchor i, at least its own target
    rows:     mean_i ( logsumexp_j s_ij  -  mean_{j in p_i} s_ij )
    columns:  the same with anchors and targets exchanged; the symmetric loss is the mean of both

The definition is here; the operators make the same numbers without ever holding the B x N matrix
(cadiff.kernels.similarity_ops), and cadiff.kernels.similarity_ranks lets all ranks be one batch.

Legend: B anchors of this rank, N targets (B times the world with global negatives), C cached, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed

from cadiff.kernels import similarity_reference
from cadiff.kernels.pairs import NO_OWN, Pairs
from cadiff.kernels.similarity_ops import similarity

ANY_PAIRS = Pairs()


@dataclass(frozen=True)
class Cached:
    """Anchors and targets of earlier micro-batches: negatives without a gradient.

    With gradient accumulation they stand in for the rest of a large batch. What they hold depends on how a batch is cut
    into micro-batches. A cached target that shows an anchor's stimulus is dropped unless repeats are negatives.
    """

    anchor_CF: Tensor
    target_CF: Tensor
    pairs: Pairs = ANY_PAIRS


def info_nce(
    anchor_BF: Tensor, target_BF: Tensor, temperature: float | Tensor, *, symmetric: bool = False,
    negatives: Literal["micro", "global", "ring"] = "micro", pairs: Pairs = ANY_PAIRS, cached: Cached | None = None,
) -> Tensor:  # fmt: skip
    """Contrastive loss of anchors against targets; the i-th target is the i-th anchor's own.

    With "global" and "ring" negatives every rank's targets are negatives of every anchor. All ranks must call it
    together with the same B, and each gets the mean over its own rows; the mean of the ranks' gradients, which
    data-parallel training takes, is then the gradient of one process that holds the whole batch, the temperature's too.

    Args:
        anchor_BF, target_BF: any float dtype; computed in float32 (float64 for float64), also under autocast. On a GPU
            rows of float16 and bfloat16 are rounded to it again after scaling, for its matrix units: at a temperature
            of 0.01 that moves gradients by a few percent; pass float32 where this matters. Rows are
            scaled to length one; rows shorter than 1e-12 have no direction: they are like nothing, with no gradient.
        temperature: divides the cosines, > 0; a 0-d tensor may be learned. Learn its logarithm and pass the
            exponential: whether a tensor on a GPU is positive is not looked at, which would wait for it.
        symmetric: both directions, as in CLIP; without it anchors choose among targets, as in the paper.
        negatives: "micro": the B targets given; "global": the targets of all ranks, gathered; "ring": the same, passed
            from rank to rank, so that no rank ever holds more than three ranks' targets.
        pairs: which targets are no negatives, and which are further positives.
        cached: more negatives, without a gradient.

    Returns:
        float32 or float64 scalar. A sample without any negative has a loss of zero that keeps the graph.

    Raises:
        ValueError: shapes that do not fit together, a temperature that is not above 0, or unknown negatives.
        ConfigError: a policy of ``pairs`` without the numbers it compares.

    Source: van den Oord et al., "Representation learning with contrastive predictive coding", 2018, eq. 4; several
    positives as in Khosla et al., "Supervised contrastive learning", 2020, eq. 2.
    """
    with torch.autocast(anchor_BF.device.type, enabled=False):
        anchor_BF, target_BF = _alike(anchor_BF, target_BF)
        if negatives not in ("micro", "global", "ring"):
            raise ValueError(f"info_nce: negatives is {negatives!r}; expected micro, global or ring.")
        scale = _scale(temperature, anchor_BF)
        world = distributed.get_world_size() if negatives != "micro" and distributed.is_initialized() else 1
        rules = pairs.rules(anchor_BF)
        if world > 1:
            from cadiff.kernels.similarity_ranks import similarity_of_ranks

            row_B, column_B, positive_B = similarity_of_ranks(
                anchor_BF, target_BF, scale, rules, symmetric, negatives == "ring"
            )
        else:
            row_B, column_B, positive_B = similarity(
                anchor_BF, target_BF, scale, 0, rules.ids_2B, rules.ids_2B, rules.repeats, rules.subjects, symmetric
            )
        if cached is not None:
            row_B = _merge(row_B, anchor_BF, cached.target_CF, scale, pairs, cached.pairs)
            if symmetric:
                column_B = _merge(column_B, target_BF, cached.anchor_CF, scale, pairs, cached.pairs)
        return _loss(row_B, column_B, positive_B, symmetric)


def info_nce_reference(
    anchor_BF: Tensor, target_BF: Tensor, temperature: float | Tensor, *, symmetric: bool = False,
    pairs: Pairs = ANY_PAIRS,
) -> Tensor:  # fmt: skip
    """The definition for one process, with the whole matrix, in the inputs' dtype. The other paths are tested by it."""
    scale = _scale(temperature, anchor_BF)
    rules = pairs.rules(anchor_BF)
    row_B, column_B, positive_B = similarity_reference.log_sum_exp(
        anchor_BF, target_BF, scale, 0, rules.ids_2B, rules.ids_2B, rules.repeats, rules.subjects, symmetric
    )
    return _loss(row_B, column_B, positive_B, symmetric)


def _alike(anchor_BF: Tensor, target_BF: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one dtype, the wider of the two."""
    shapes = tuple(anchor_BF.shape), tuple(target_BF.shape)
    if anchor_BF.ndim != 2 or shapes[0] != shapes[1] or 0 in shapes[0]:
        raise ValueError(f"info_nce: anchors {shapes[0]} and targets {shapes[1]}; expected (B, F) both, not empty.")
    dtype = torch.promote_types(anchor_BF.dtype, target_BF.dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"info_nce: anchors and targets of {dtype}; expected a float dtype.")
    return anchor_BF.to(dtype), target_BF.to(dtype)


def _scale(temperature: float | Tensor, like_BF: Tensor) -> Tensor:
    """One over the temperature, 0-d, in what is computed in."""
    kind = torch.promote_types(like_BF.dtype, torch.float32)
    if isinstance(temperature, Tensor):
        looked_at = temperature.device.type == "cpu" and not torch.compiler.is_compiling()
        if temperature.numel() != 1 or (looked_at and temperature <= 0):
            raise ValueError(f"info_nce: temperature is {temperature}; expected one number above 0.")
        return 1.0 / temperature.to(like_BF.device, kind).reshape(())
    if not temperature > 0:
        raise ValueError(f"info_nce: temperature is {temperature}; expected a number above 0.")
    return torch.full((), 1.0 / temperature, dtype=kind, device=like_BF.device)


def _loss(row_B: Tensor, column_B: Tensor, positive_B: Tensor, symmetric: bool) -> Tensor:
    if symmetric:
        return 0.5 * (row_B.mean() + column_B.mean()) - positive_B.mean()
    return (row_B - positive_B).mean()


def _merge(lse_B: Tensor, rows_BF: Tensor, cached_CF: Tensor, scale: Tensor, mine: Pairs, theirs: Pairs) -> Tensor:
    """Add negatives without a gradient to a log-sum-exp."""
    rules, others = mine.rules(rows_BF), theirs.rules(cached_CF)
    if (rules.repeats, rules.subjects) != (others.repeats, others.subjects):
        raise ValueError("info_nce: cached negatives under another policy than the batch.")
    if cached_CF.shape[1:] != rows_BF.shape[1:]:
        raise ValueError(f"info_nce: cached rows {tuple(cached_CF.shape)} beside rows {tuple(rows_BF.shape)}.")
    if len(cached_CF) == 0:
        return lse_B
    repeats = min(rules.repeats, 1)  # a positive would need a gradient: it is dropped
    more_B, *_ = similarity(
        rows_BF,
        cached_CF.detach().to(rows_BF.dtype),
        scale,
        NO_OWN,
        rules.ids_2B,
        others.ids_2B,
        repeats,
        rules.subjects,
        False,
    )
    top_B = torch.maximum(lse_B, more_B).detach()
    return top_B + ((lse_B - top_B).exp() + (more_B - top_B).exp()).log()


def check_pair(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Losses and gradients of small odd-shaped inputs, from the live path and from the definition."""
    leaves = [torch.linspace(-3, 3, 5 * 37, device=device).mul(speed).sin().view(5, 37) for speed in (3.0, 5.0)]
    leaves.append(torch.tensor(0.1, device=device))
    ids_B = torch.tensor([0, 1, 0, -1, -1], device=device)
    told = Pairs(ids_B, "positive", torch.arange(5, device=device) // 3, "within")
    answers: list[list[Tensor]] = [[], []]
    for answer, loss_of in zip(answers, (info_nce, info_nce_reference)):
        for symmetric, pairs in ((False, ANY_PAIRS), (True, told)):
            copies = [leaf.clone().requires_grad_() for leaf in leaves]
            with torch.enable_grad():
                loss = loss_of(*copies, symmetric=symmetric, pairs=pairs)
                answer += [loss.detach(), *torch.autograd.grad(loss, copies)]
    return tuple(answers[0]), tuple(answers[1])
