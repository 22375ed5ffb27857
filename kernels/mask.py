"""Which patches are hidden: random masks keyed by sample, with an optional region that is hidden more often.

Legend: B samples, L patches, K kept patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.kernels.keyed import keyed_uniform


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
        length = noise_BL.shape[1]
        kept = int(length * (1 - ratio))
        if kept < 1:
            raise ConfigError(
                f"A mask ratio of {ratio} keeps none of {length} patches; expected at least one. "
                "Lower the ratio or the patch size."
            )
        shuffle_BL = torch.argsort(noise_BL, dim=1, stable=True)
        keep_BK = shuffle_BL[:, :kept].contiguous()
        order_BL = torch.arange(length, device=noise_BL.device).expand_as(shuffle_BL)
        restore_BL = torch.empty_like(shuffle_BL).scatter_(1, shuffle_BL, order_BL)
        return cls(keep_BK, restore_BL, (restore_BL >= kept).to(torch.float32))


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

    Raises:
        ConfigError: nothing would be kept.
    """
    noise_BL = keyed_uniform(seed, stream, epoch_B, sample_id_B, length)
    if weights_L is not None:
        # float64, so that the order does not hang on the last bit of a device's logarithm.
        noise_BL = torch.log1p(-noise_BL.double()) / weights_L.to(noise_BL.device, torch.float64)
    return Masking.from_noise(noise_BL, ratio)


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
