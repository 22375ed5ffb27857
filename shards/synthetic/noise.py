"""Noise with a known size: autocorrelated in time, shared in space, and the noise ceiling that follows from it."""

from __future__ import annotations

import numpy as np

from cadiff.shards.synthetic.steady import product

SPREAD = 0.25  # standard deviation of the logarithm of ncsnr across voxels
REPLAY = 0.5  # share of a trial's noise that looks like the response to other pictures


def draw_ncsnr(rng: np.random.Generator, count: int, median: float) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio of each voxel, float32 (count,): log-normal around ``median``.

    ncsnr is the standard deviation of the signal divided by that of the noise of one trial (Allen et al., Nature
    Neuroscience 2022).
    """
    return (median * np.exp(rng.normal(0, SPREAD, count))).astype(np.float32)


def noise_ceiling(ncsnr: np.ndarray, trials: int) -> np.ndarray:
    """Per cent of the variance of a mean over ``trials`` that is signal: 100 ncsnr^2 / (ncsnr^2 + 1 / trials)."""
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / trials)


def trial_noise(
    mind: np.random.Generator, voxel: np.random.Generator, trials: int, patterns_NV: np.ndarray
) -> np.ndarray:
    """Unit-variance noise of single trials, float32 (trials, V), independent between trials.

    ``patterns_NV``: responses to N pictures, mean square 1 per voxel. A share REPLAY of the variance is a random
    mixture of them: the brain thinks of other pictures. Such noise points where the signal points, so that more voxels
    do not average it away (Moreno-Bote et al., Nature Neuroscience 2014). The rest is each voxel's own.
    """
    replay = product(mind.standard_normal((trials, len(patterns_NV)), dtype=np.float32), patterns_NV)
    replay *= np.float32(np.sqrt(REPLAY / len(patterns_NV)))
    own = voxel.standard_normal(replay.shape, dtype=np.float32)
    own *= np.float32(np.sqrt(1 - REPLAY))
    return replay + own


def ar1(white: np.ndarray, rho: float) -> np.ndarray:
    """Turn unit white noise (rows, frames) into stationary unit-variance noise with lag-one correlation ``rho``."""
    from scipy.signal import lfilter

    # Filter coefficients of the rows' type keep float32 rows in float32.
    driven = white * white.dtype.type(np.sqrt(1 - rho * rho))
    driven[:, 0] = white[:, 0]
    return lfilter(np.array([1], white.dtype), np.array([1, -rho], white.dtype), driven, axis=1)


def blur_rows(white: np.ndarray) -> np.ndarray:
    """Mix each row with its two neighbours (weights 1, 2, 1): neighbours correlate by 2/3, variance stays one."""
    padded = np.concatenate([white[:1], white, white[-1:]])
    mixed = padded[:-2] + padded[2:]
    mixed += 2 * white
    mixed *= np.float32(1 / np.sqrt(6))
    # The ends count their own value three times: 10 instead of 6 units of variance.
    mixed[[0, -1]] *= np.float32(np.sqrt(6 / 10))
    return mixed
