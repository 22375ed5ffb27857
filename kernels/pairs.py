"""Which targets count for which anchors: the anchor's own, repeats of a stimulus, and whose negatives are allowed.

    own        target i of anchor i: always a positive
    same       both show the same stimulus, a number of 0 or more; what that means is ``repeats``
    negative   every other target, unless ``repeats`` or ``subjects`` forbids it

Legend: B anchors, N targets, R and C rows and columns of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cadiff.errors import ConfigError

REPEATS = ("negative", "drop", "positive")
SUBJECTS = ("any", "within", "across")
NO_OWN = -(1 << 40)  # ``first`` of targets none of which is any anchor's own


@dataclass(frozen=True)
class Pairs:
    """A policy, and what it needs to know of a batch.

    Attributes:
        stimulus_B: int64, the picture that was seen; -1 (nothing known) is the same as no other.
        repeats: what a target with the anchor's stimulus is: a "negative" like any other, dropped, or one more
            "positive" (the loss then takes the mean over them).
        subject_B: int64, whose brain it was; -1 is a subject like any other.
        subjects: negatives of "any" subject, only "within" the anchor's own, or only "across": of other subjects.

    Raises:
        ConfigError: a policy without the numbers it compares, or with numbers that are not whole.
    """

    stimulus_B: Tensor | None = None
    repeats: Literal["negative", "drop", "positive"] = "negative"
    subject_B: Tensor | None = None
    subjects: Literal["any", "within", "across"] = "any"

    def __post_init__(self) -> None:
        for name, value, known, rows in (
            ("repeats", self.repeats, REPEATS, self.stimulus_B),
            ("subjects", self.subjects, SUBJECTS, self.subject_B),
        ):
            if value not in known:
                raise ConfigError(f"Contrastive pairs: {name} is {value!r}; expected one of {', '.join(known)}.")
            if value != known[0] and rows is None:
                raise ConfigError(
                    f"Contrastive pairs: {name} = {value!r} compares numbers that this batch does not have. "
                    f"Pass {'stimulus_B' if name == 'repeats' else 'subject_B'}, or use {known[0]!r}."
                )

        for name, ids_B in (("stimulus_B", self.stimulus_B), ("subject_B", self.subject_B)):
            if ids_B is not None and (ids_B.ndim != 1 or ids_B.is_floating_point() or ids_B.is_complex()):
                raise ConfigError(
                    f"Contrastive pairs: {name} {tuple(ids_B.shape)} of {ids_B.dtype}; expected int64 (B,)."
                )

    def rules(self, anchor_BF: Tensor) -> Rules:
        """The same for the kernels; a batch without a policy has no numbers."""
        repeats, subjects = REPEATS.index(self.repeats), SUBJECTS.index(self.subjects)
        if not repeats and not subjects:
            return Rules()
        for ids_B in (self.stimulus_B, self.subject_B):
            if ids_B is not None and len(ids_B) != len(anchor_BF):
                raise ConfigError(f"Contrastive pairs: numbers of {len(ids_B)} samples for {len(anchor_BF)} anchors.")
        nothing_B = torch.full((anchor_BF.shape[0],), -1, dtype=torch.int64, device=anchor_BF.device)
        rows = [nothing_B if ids_B is None else ids_B.to(nothing_B) for ids_B in (self.stimulus_B, self.subject_B)]
        return Rules(repeats, subjects, torch.stack(rows))


@dataclass(frozen=True)
class Rules:
    """A policy as numbers: places in REPEATS and SUBJECTS, and int64 (2, B) stimulus and subject of each sample."""

    repeats: int = 0
    subjects: int = 0
    ids_2B: Tensor | None = field(default=None)


def marks(
    ids_2R: Tensor | None, ids_2C: Tensor | None, repeats: int, subjects: int, own: int, shape: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    """For a tile: which pairs are positive beside the own ones, and which are forbidden; bool (R, C), None for none.

    Args:
        own: the diagonal of the tile that holds anchors' own targets, which may lie outside it.
    """
    if ids_2R is None or ids_2C is None:
        return None, None
    same_RC = (ids_2R[0, :, None] == ids_2C[0]) & (ids_2R[0, :, None] >= 0)
    subject_RC = ids_2R[1, :, None] == ids_2C[1]
    forbidden_RC = torch.zeros(shape, dtype=torch.bool, device=ids_2R.device)
    if subjects:
        forbidden_RC |= ~subject_RC if SUBJECTS[subjects] == "within" else subject_RC
    positive_RC = same_RC if REPEATS[repeats] == "positive" else None
    if positive_RC is not None:
        forbidden_RC &= ~positive_RC
    if REPEATS[repeats] == "drop":
        forbidden_RC |= same_RC
    if -shape[0] < own < shape[1]:
        forbidden_RC.diagonal(own).fill_(False)
        if positive_RC is not None:
            positive_RC.diagonal(own).fill_(True)
    return positive_RC, forbidden_RC


def count_positives(
    ids_2B: Tensor | None, ids_2N: Tensor | None, repeats: int, holds_own: bool, like_B: Tensor
) -> Tensor:
    """How many of some targets are positives of each anchor, its own included if they hold it: (B,), as ``like_B``."""
    own_B = torch.full_like(like_B, 1.0 if holds_own else 0.0)
    if ids_2B is None or ids_2N is None or REPEATS[repeats] != "positive":
        return own_B
    stimulus_B, sorted_N = ids_2B[0].contiguous(), ids_2N[0].sort().values
    found_B = torch.searchsorted(sorted_N, stimulus_B, right=True) - torch.searchsorted(sorted_N, stimulus_B)
    return torch.where(stimulus_B >= 0, found_B.to(like_B), own_B)
