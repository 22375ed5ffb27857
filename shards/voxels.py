"""Voxel space: widths and wrap padding, windows in time, z-scores. Shapes: T frames, N samples, V voxels, W width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cadiff.errors import ConfigError, DataError

PAPER_WINDOW = 10  # frames averaged into one sample: 7.5 s at HCP's 0.75 s (the paper's code)


def padded_width(voxels: int, patch: int, *, legacy_pad: bool = False) -> int:
    """The next multiple of ``patch``: 4,183 voxels and patch 16 give 4,192.

    ``legacy_pad`` adds a whole patch when ``voxels`` is already a multiple, as the paper's code does; widths of
    published checkpoints depend on it.
    """
    if patch < 1 or voxels < 0:
        raise ConfigError(f"padded_width({voxels}, {patch}): a patch has at least 1 voxel.")
    if legacy_pad:
        return voxels + patch - voxels % patch
    return -(-voxels // patch) * patch


def wrap_pad(signals_NV: np.ndarray, width: int) -> np.ndarray:
    """Pad on the right with the signal's own beginning, repeated if need be: (N, V) -> (N, width)."""
    voxels = signals_NV.shape[-1]
    if not 0 < voxels <= width:
        raise ConfigError(f"Signals of {voxels} voxels do not fit a width of {width}. Use at least {voxels}.")
    return signals_NV[..., np.arange(width) % voxels]


def window_average(frames_TV: np.ndarray, window: int) -> np.ndarray:
    """Average each ``window`` successive frames: (T, V) -> (T // window, V). Frames left at the end are dropped."""
    if window < 1:
        raise ConfigError(f"window = {window}: a window has at least 1 frame.")
    windows = len(frames_TV) // window
    if windows == 0:
        raise DataError(f"{len(frames_TV)} frames are fewer than one window of {window}. Use a smaller window.")
    used_TV = frames_TV[: windows * window]
    return used_TV.reshape(windows, window, -1).mean(axis=1, dtype=np.float64).astype(np.float32)


@dataclass(frozen=True)
class Stats:
    """What a z-score subtracts and divides by.

    ``mean`` and ``std`` are float32 (V,), or (1,) when one number serves all voxels; ``flat`` lists the voxels
    without variance (or with values that are not finite), which become zeros.
    """

    mean: np.ndarray
    std: np.ndarray
    flat: np.ndarray

    def apply(self, signals_NV: np.ndarray) -> np.ndarray:
        """z-score with these statistics: float32 (N, V)."""
        scaled_NV = (signals_NV - self.mean) / self.std
        scaled_NV = scaled_NV.astype(np.float32, copy=False)
        scaled_NV[:, self.flat] = 0
        return scaled_NV


def voxel_stats(signals_NV: np.ndarray) -> Stats:
    """Mean and population standard deviation of each voxel over the samples given (give training samples only)."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean_V = signals_NV.mean(axis=0, dtype=np.float64)
        std_V = signals_NV.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant series a deviation of about 1e-7 of its size.
    with np.errstate(invalid="ignore"):
        bad_V = ~np.isfinite(std_V) | ~np.isfinite(mean_V) | (std_V <= 1e-6 * np.abs(mean_V)) | (std_V == 0)
    mean_V, std_V = np.where(bad_V, 0, mean_V), np.where(bad_V, 1, std_V)
    return Stats(mean_V.astype(np.float32), std_V.astype(np.float32), np.flatnonzero(bad_V))


def scalar_stats(signals_NV: np.ndarray) -> Stats:
    """One mean and one standard deviation over all voxels and samples given (the paper's choice)."""
    mean, std = float(signals_NV.mean(dtype=np.float64)), float(signals_NV.std(dtype=np.float64))
    if not np.isfinite(std) or std == 0:
        raise DataError("The signals are constant or not finite, so they cannot be z-scored. Check the source values.")
    flat_V = np.empty(0, dtype=np.int64)
    return Stats(np.array([mean], dtype=np.float32), np.array([std], dtype=np.float32), flat_V)


def to_half(values: np.ndarray) -> np.ndarray:
    """float32 -> float16, rounded to nearest even; beyond its range becomes infinite. NumPy is 30 times slower."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).half().numpy()


def to_single(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """float16 -> float32, exactly, written into ``out``."""
    torch.from_numpy(out).copy_(torch.from_numpy(values))
    return out


STATS = {"voxel": voxel_stats, "scalar": scalar_stats}


def zscore_run(frames_TV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z-score each voxel over one run's time, float32 (T, V); also the indices of voxels set to zero.

    A voxel with any value that is not finite, or without variance, becomes zeros.
    """
    finite_V = np.isfinite(frames_TV).all(axis=0)
    if not finite_V.all():
        frames_TV = np.where(finite_V, frames_TV, 0)
    stats = voxel_stats(frames_TV)
    return stats.apply(frames_TV), stats.flat
