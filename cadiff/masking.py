"""Masks that belong to a picture and not to a moment: K fixed ones each, so that what they leave can be kept.

Legend: B records, L patches.
"""

from __future__ import annotations

from torch import Tensor

from cadiff.kernels.mask import Masking, random_mask


def picture_mask(seed: int, picture_B: Tensor, number_B: Tensor, length: int, ratio: float) -> Masking:
    """Mask number ``number_B`` of each picture, as a function of (seed, picture, number).

    Args:
        picture_B: int64 (B,), not negative: the content key of a stored picture, the same in whatever set it is.
        number_B: int64 (B,), not negative.
        ratio: share of the ``length`` patches that is hidden.

    Raises:
        ConfigError: nothing would be kept.
    """
    return random_mask(seed, "phase2/image/fixed", number_B, picture_B, length, ratio)
