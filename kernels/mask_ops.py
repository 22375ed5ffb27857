"""Random masks as one operator that PyTorch knows, the fast PyTorch path behind it, and weights as integers.

Legend: B samples, L patches, K kept patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.kernels.dispatch import backend
from cadiff.kernels.keyed import keyed_draws, keyed_exponential, stream_key

# Bits of the largest inverse weight: times a logarithm below 24 * 2**30 it still fits a signed 64-bit integer.
INVERSE_BITS = 28


@torch.library.custom_op("cadiff::random_mask", mutates_args=())
def random_mask_op(
    seed: str, stream: str, epoch_B: Tensor, sample_id_B: Tensor, length: int, kept: int, weights_L: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See cadiff.kernels.mask.random_mask; ``seed`` is its decimal text, as operators take no integer of any size.

    Returns:
        keep_BK, restore_BL, hidden_BL of ``Masking``. Nothing has a gradient.
    """
    inverse_L = None if weights_L is None else inverse_weights(weights_L).to(sample_id_B.device)
    if backend(sample_id_B.device.type) == "triton":
        from cadiff.kernels.triton_mask import ranked_draws

        return ranked_draws(stream_key(int(seed), stream), epoch_B, sample_id_B, length, kept, inverse_L)
    key = (int(seed), stream, epoch_B, sample_id_B, length)
    if inverse_L is not None:
        return from_shuffle(torch.argsort(keyed_exponential(*key).mul_(-inverse_L), dim=1, stable=True), kept)
    # Draw and position in one integer: all differ, so the quicker sort that may swap equals does, and sorts no indices.
    position_L = torch.arange(length, device=sample_id_B.device)
    order_BL = torch.sort(keyed_draws(*key).bitwise_left_shift_(32).bitwise_or_(position_L), dim=1).values
    return from_shuffle(order_BL.bitwise_and_(2**32 - 1), kept)


@random_mask_op.register_fake
def _(seed, stream, epoch_B, sample_id_B, length, kept, weights_L):
    restore_BL = sample_id_B.new_empty((sample_id_B.shape[0], length), dtype=torch.int64)
    return restore_BL.new_empty((sample_id_B.shape[0], kept)), restore_BL, restore_BL.to(torch.float32)


def from_shuffle(shuffle_BL: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """keep_BK, restore_BL and hidden_BL of ``Masking`` from all patches of each row in shuffled order."""
    order_BL = torch.arange(shuffle_BL.shape[1], device=shuffle_BL.device).expand_as(shuffle_BL)
    restore_BL = torch.empty_like(shuffle_BL).scatter_(1, shuffle_BL, order_BL)
    return shuffle_BL[:, :kept].clone(), restore_BL, (restore_BL >= kept).to(torch.float32)


def inverse_weights(weights_L: Tensor) -> Tensor:
    """Divide the smallest weight by each, as an integer: round(2**28 * min / weight), at least 1.

    The division is float64, which every device rounds alike. A weight moves by at most 2**-29 of itself times its ratio
    to the smallest: less than float32's own rounding of the weight up to a ratio of 16.

    Returns:
        int64 (L,) in 1..2**28, on weights_L's device; 2**28 for the smallest weight.

    Raises:
        ConfigError: a weight on the CPU is not positive and finite. Elsewhere that is not looked at, for it would wait.
    """
    weights_L = weights_L.detach().to(torch.float64)
    looked_at = weights_L.device.type == "cpu"
    if looked_at and not bool(((weights_L > 0) & (weights_L < torch.inf)).all()):
        raise ConfigError(
            f"Mask weights reach from {weights_L.min().item():g} to {weights_L.max().item():g}; expected positive, "
            "finite numbers. Give patches that should hardly ever be hidden a small weight instead of none."
        )
    return (weights_L.min() / weights_L * 2**INVERSE_BITS).round().to(torch.int64).clamp_min_(1)
