"""Statistics as the paper's code computes them, for comparison with its published figures."""

from __future__ import annotations

import numpy as np

from cadiff.errors import ConfigError
from cadiff.shards.voxels import STATS, Stats, padded_width, scalar_stats, wrap_pad

PATCH = 16  # the patch size that the paper's loaders pad to


def legacy_stats(signals_NV: np.ndarray) -> Stats:
    """One mean and deviation of the samples after wrap padding, so that the first voxels count twice.

    The padding reaches the next multiple of 16, and is a whole patch where the width is one already.
    """
    width = padded_width(signals_NV.shape[1], PATCH, legacy_pad=True)
    return scalar_stats(wrap_pad(signals_NV, width))


def normalisation(normalise: str | None, legacy: bool) -> str:
    """What ``normalise`` means where it is left out: "voxel", and "scalar" with the paper code's statistics.

    Raises:
        ConfigError: an unknown word, or "voxel" together with ``legacy``.
    """
    chosen = normalise or ("scalar" if legacy else "voxel")
    if chosen not in STATS:
        raise ConfigError(f"normalise = '{chosen}': use {' or '.join(STATS)}.")
    if legacy and chosen != "scalar":
        raise ConfigError(
            f"normalise = '{chosen}' with legacy: the paper's code has one mean and deviation. Use scalar."
        )
    return chosen
