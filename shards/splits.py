"""Which names are held out: a keyed hash decides, so the choice depends on the names only, not on their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cadiff.errors import ConfigError


def held_out(names: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Choose about ``fraction`` of the distinct names, at least one if the fraction is above 0, never all.

    Names are ranked by sha256 of (seed, name); the first ``round(fraction * n)`` are held out.

    Raises:
        ConfigError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"val_fraction = {fraction}: expected a number from 0 to below 1.")
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(f"cadiff-split/1|{seed}|{name}".encode()).digest())
    if fraction == 0 or len(ranked) < 2:
        return set()
    count = min(max(1, round(fraction * len(ranked))), len(ranked) - 1)
    return set(ranked[:count])


def held_tail(count: int, fraction: float) -> int:
    """How many samples at the end of a run are held out: at least one if the fraction is above 0, never all."""
    return min(max(1, round(fraction * count)), count - 1) if fraction else 0
