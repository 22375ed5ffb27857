"""How sure a mean over stimuli is: keyed bootstrap intervals, paired differences and chance levels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cadiff.errors import ConfigError
from cadiff.metrics import keyed

RESAMPLES = 10_000
COVERAGE = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its percentile-bootstrap interval."""

    value: float
    low: float
    high: float


def resampled_means(scores_NM: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of M score columns over resampled stimuli.

    All columns see the same draws, so differences of columns of the result are paired.

    Args:
        scores_NM: float (N, M): N stimuli, M scores each.

    Returns:
        float64 (resamples, M).

    Raises:
        ConfigError: fewer than two stimuli, or a score that is not finite.
    """
    scores_NM = np.asarray(scores_NM, dtype=np.float64)
    count = len(scores_NM)
    if count < 2:
        raise ConfigError(f"An interval needs at least 2 stimuli, found {count}. Decode more test stimuli.")
    if not np.isfinite(scores_NM).all():
        raise ConfigError("A score is NaN or infinite; an interval needs finite ones. Check the pictures it came from.")
    draw, parts = keyed(seed, "bootstrap"), []
    for start in range(0, resamples, 1000):  # blocks bound the memory at 1000 x N
        size = min(1000, resamples - start)
        picks = draw.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        times_RN = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
        parts.append(times_RN @ scores_NM / count)
    return np.concatenate(parts)


def interval_of(value: float, means_R: np.ndarray) -> Interval:
    """Put the percentiles of resampled means around a point estimate."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(means_R, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))


def best_column(scores_NK: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Largest column mean over K samples: what is published as "(max)", and optimistic by construction."""
    means_RK = resampled_means(scores_NK, seed=seed, resamples=resamples)
    return interval_of(float(np.asarray(scores_NK, dtype=np.float64).mean(0).max()), means_RK.max(1))


def chance_class(label_N: np.ndarray, classes: int) -> float:
    """What the best constant answer scores: the commonest label's share, at least 1/classes."""
    label_N = np.asarray(label_N)
    return max(1 / classes, float(np.unique(label_N, return_counts=True)[1].max() / len(label_N)))


def against_chance(scored: Interval, chance: float) -> str:
    """``above``, ``below`` or ``consistent with`` chance, by the 95 % interval."""
    if scored.low > chance:
        return "above"
    return "below" if scored.high < chance else "consistent with"
