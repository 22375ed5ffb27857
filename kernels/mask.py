"""Which patches are hidden: random masks keyed by sample, with an optional region that is hidden more often.

Legend: B samples, L patches, K kept patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.kernels.dispatch import backend
from cadiff.kernels.keyed import keyed_exponential, keyed_uniform
from cadiff.kernels.mask_ops import from_shuffle, inverse_weights, random_mask_op


@dataclass(frozen=True)
class Masking:
    """A random choice of kept patches and the way back.

    Attributes:
        keep_BK: int64, the kept patches, unique within a row, in shuffled order.
        restore_BL: int64, position of each patch in (kept, then hidden) order: gathering the kept tokens followed by
            L - K mask tokens with it puts every patch back in its place.
        hidden_BL: float32, 1 where a patch is hidden.
    """

    keep_BK: Tensor
    restore_BL: Tensor
    hidden_BL: Tensor

    @classmethod
    def from_noise(cls, noise_BL: Tensor, ratio: float) -> Masking:
        """Keep the int(L * (1 - ratio)) patches with the smallest noise; equal noise is settled by position.

        The rounding is the one of the paper's code (L=262, ratio 0.75: 65 kept; L=291: 72 kept).

        Raises:
            ConfigError: nothing would be kept.
        """
        kept = kept_patches(noise_BL.shape[1], ratio)
        return cls(*from_shuffle(torch.argsort(noise_BL, dim=1, stable=True), kept))


def kept_patches(length: int, ratio: float) -> int:
    """How many of ``length`` patches stay; see ``Masking.from_noise``."""
    kept = int(length * (1 - ratio))
    if kept < 1:
        raise ConfigError(
            f"A mask ratio of {ratio} keeps none of {length} patches; expected at least one. "
            "Lower the ratio or the patch size."
        )
    return kept


def random_mask(
    seed: int,
    stream: str,
    epoch_B: Tensor,
    sample_id_B: Tensor,
    length: int,
    ratio: float,
    weights_L: Tensor | None = None,
) -> Masking:
    """Hide a share ``ratio`` of ``length`` patches of each sample, as a function of (seed, stream, epoch, sample id).

    With ``weights_L`` (positive, (L,)) the hidden patches are drawn one after the other without replacement, each
    with a probability proportional to its weight, like ``torch.multinomial`` in the paper's code. Drawing is done by
    exponential keys: hiding the patches with the smallest ``-log(1 - u) / weight`` has exactly this distribution
    (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006), and needs one uniform per patch.

    Keys are compared as integers, so that a mask is bit for bit the same on every device, in every backend and for
    any number of ranks. Rounding has three effects: u is a multiple of 2**-24; its logarithm is off by less than
    2**-28, so that two patches whose keys are about as near may change places; a weight counts as if it were off by
    2**-29 of itself times its ratio to the smallest weight (see ``inverse_weights``).

    Args:
        stream: what the mask is for, such as "phase1/view1"; other names give other masks.
        epoch_B, sample_id_B: int64 (B,).
        weights_L: float (L,). On a GPU it is not copied there for every mask, nor checked: that would wait for the GPU.

    Raises:
        ConfigError: nothing would be kept, or a weight on the CPU is not positive and finite.
        ValueError: sizes that do not fit together.
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"A mask ratio of {ratio}; expected 0 or more, and less than 1.")
    kept = kept_patches(length, ratio)
    given = {"epoch_B": (epoch_B, len(sample_id_B)), "weights_L": (weights_L, length)}
    for name, (part, size) in given.items():
        if part is not None and tuple(part.shape) != (size,):
            raise ValueError(f"random_mask: {name} {tuple(part.shape)}; expected ({size},).")
    if backend(sample_id_B.device.type) == "reference":
        return random_mask_reference(seed, stream, epoch_B, sample_id_B, length, ratio, weights_L)
    return Masking(*random_mask_op(str(seed), stream, epoch_B, sample_id_B, length, kept, weights_L))


def random_mask_reference(
    seed: int,
    stream: str,
    epoch_B: Tensor,
    sample_id_B: Tensor,
    length: int,
    ratio: float,
    weights_L: Tensor | None = None,
) -> Masking:
    """Say the same in plain PyTorch: draw, sort, keep the first. The other backends are tested against this."""
    key = (seed, stream, epoch_B, sample_id_B, length)
    if weights_L is None:
        return Masking.from_noise(keyed_uniform(*key), ratio)
    return Masking.from_noise(-keyed_exponential(*key) * inverse_weights(weights_L).to(sample_id_B.device), ratio)


def check_pair(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Two small masks, plain and weighted, as float32: from the live path on ``device``, and from the CPU's reference.

    The second half says that a GPU hides what every CPU would.
    """
    epoch_B, sample_id_B = torch.tensor([-1, 3, 2]), torch.tensor([0, 2**40 + 5, 77])
    answers: tuple[list[Tensor], list[Tensor]] = ([], [])
    for weights_L in (None, focus_weights(37, 1, [5, 20], 0.6)):
        rest = (37, 0.75, weights_L)
        live = random_mask(2022, "check", epoch_B.to(device), sample_id_B.to(device), *rest)
        wanted = random_mask_reference(2022, "check", epoch_B, sample_id_B, *rest)
        for answer, masking in zip(answers, (live, wanted)):
            parts = (masking.keep_BK, masking.restore_BL, masking.hidden_BL)
            answer.extend(part.to(device, torch.float32) for part in parts)
    return tuple(answers[0]), tuple(answers[1])


def focus_weights(length: int, patch: int, voxels: Sequence[int], rate: float) -> Tensor | None:
    """Weights for a region that is hidden more often: ``rate`` inside and ``1 - rate`` outside.

    Args:
        length: patches of a signal.
        patch: voxels per patch.
        voxels: [first, last]; the region is patches first // patch up to, not including, last // patch, as in the
            paper's code. Empty: no region.
        rate: between 0 and 1; above 0.5 the region is hidden more often.

    Returns:
        float32 (L,), or None without a region.

    Raises:
        ConfigError: the region holds no whole patch of the signal.
    """
    if not voxels:
        return None
    first, last = (voxel // patch for voxel in voxels)
    if not 0 <= first < last <= length:
        raise ConfigError(
            f"mask.focus_range is {list(voxels)}, patches {first} up to {last}; expected a region of at least one "
            f"patch ({patch} voxels) inside 0..{length * patch}."
        )
    weights_L = torch.full((length,), 1.0 - rate)
    weights_L[first:last] = rate
    return weights_L
