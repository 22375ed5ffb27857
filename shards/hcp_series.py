"""One run's numbers: z-score of each grayordinate over time, averages of windows of frames, block by block.

Shapes: T frames, V grayordinates of the ROI, N windows, n grayordinates of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.voxels import Stats, to_half

_FLAT = 1e-6  # of the mean: rounding leaves a constant series a deviation of about 1e-7 of its size


@dataclass(frozen=True)
class Windows:
    """``count`` windows in a row, of ``frames`` frames each, the first at frame ``start``."""

    start: int
    count: int
    frames: int


@dataclass(frozen=True)
class Scored:
    """A run after z-scoring.

    Attributes:
        windows_NV: float32, the mean over each window.
        frames_TV: float16, every frame, or None if it was not asked for; a view with time fastest in memory.
        mean_V, std_V: float32, what each grayordinate was z-scored with, in the file's units; not finite if it was not.
        flat_V: int64, ascending: grayordinates without variance or with values that are not finite; zeros in the above.
        not_finite: how many of those have values that are not finite.
    """

    windows_NV: np.ndarray
    frames_TV: np.ndarray | None
    mean_V: np.ndarray
    std_V: np.ndarray
    flat_V: np.ndarray
    not_finite: int


@dataclass
class Moments:
    """Sums over windows of z-scored runs, whose mean is near 0, so that plain sums lose nothing."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, windows_NV: np.ndarray) -> None:
        self.count += windows_NV.size
        self.total += float(windows_NV.sum(dtype=np.float64))
        self.squares += float(np.square(windows_NV).sum(dtype=np.float64))

    def stats(self, subject: str) -> Stats:
        mean = self.total / max(1, self.count)
        std = np.sqrt(max(0.0, self.squares / max(1, self.count) - mean**2))
        if not std > 0:
            raise DataError(f"subject {subject}: the windows of all runs are constant, so they cannot be z-scored.")
        nothing = np.empty(0, dtype=np.int64)
        return Stats(np.array([mean], dtype=np.float32), np.array([std], dtype=np.float32), nothing)


def whole_windows(frames: int, window: int) -> list[Windows]:
    """As many windows of ``window`` frames as fit; frames left at the end are dropped.

    Raises:
        DataError: not one fits.
    """
    if frames < window:
        raise DataError(f"{frames} frames, fewer than one window of {window}.")
    return [Windows(0, frames // window, window)]


def spread_windows(frames: int, window: int) -> list[Windows]:
    """As the paper's code, which cuts all frames into ``frames // window`` parts by numpy.array_split: where frames
    would be left over, the first windows are one frame longer (or more, in runs of a few windows).

    Raises:
        DataError: not one fits.
    """
    count = whole_windows(frames, window)[0].count
    size, longer = divmod(frames, count)
    parts = [Windows(0, longer, size + 1), Windows(longer * (size + 1), count - longer, size)]
    return [part for part in parts if part.count]


WINDOWS: dict[str, Callable[[int, int], list[Windows]]] = {"whole": whole_windows, "spread": spread_windows}


def score_run(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    shape_TV: tuple[int, int],
    scaling: tuple[float, float],
    windows: list[Windows],
    *,
    keep_frames: bool,
) -> Scored:
    """z-score a run and average its windows, a block of grayordinates at a time; means and deviations are float64.

    Args:
        blocks: what ``cifti.read_blocks`` yields.
        scaling: slope and intercept of the stored values.
        keep_frames: also return every z-scored frame.
    """
    frames, voxels = shape_TV
    count = sum(part.count for part in windows)
    windows_NV = np.empty((count, voxels), dtype=np.float32)
    frames_VT = np.empty((voxels, frames), dtype=np.float16) if keep_frames else None
    mean_V, std_V = np.empty(voxels, dtype=np.float32), np.empty(voxels, dtype=np.float32)
    flat, not_finite = [], 0
    for columns_n, block_nT in blocks:
        # Neighbouring columns are a slice where they can be: fancy indexing of the wide arrays is slow.
        at = slice(columns_n[0], columns_n[-1] + 1) if (np.diff(columns_n) == 1).all() else columns_n
        if scaling != (1.0, 0.0):
            block_nT = block_nT.astype(np.float64) * scaling[0] + scaling[1]
        scaled_nT, mean_n, std_n, broken_n, flat_n = _zscore(block_nT)
        mean_V[at], std_V[at] = mean_n, std_n
        flat.append(columns_n[flat_n])
        not_finite += int(broken_n.sum())
        windows_NV[:, at] = average(scaled_nT, windows)
        if frames_VT is not None:
            frames_VT[at] = to_half(scaled_nT)
    frames_TV = None if frames_VT is None else frames_VT.T
    return Scored(windows_NV, frames_TV, mean_V, std_V, np.sort(np.concatenate(flat)), not_finite)


def _zscore(block_nT: np.ndarray) -> tuple[np.ndarray, ...]:
    """z-score each series with the population's deviation; those that cannot be become zeros.

    Returns float32 (n, T); mean and deviation, float32 (n,); which series are not finite, and which became zeros, bool
    (n,).
    """
    with np.errstate(all="ignore"):
        mean_n = block_nT.mean(axis=1, dtype=np.float64)
        series_nT = block_nT - mean_n[:, None]
        std_n = np.sqrt(np.square(series_nT).mean(axis=1))
        broken_n = ~(np.isfinite(mean_n) & np.isfinite(std_n))
        flat_n = broken_n | (std_n <= _FLAT * np.abs(mean_n)) | (std_n == 0)
        series_nT /= np.where(flat_n, 1, std_n)[:, None]
        series_nT[flat_n] = 0
        return series_nT.astype(np.float32), mean_n.astype(np.float32), std_n.astype(np.float32), broken_n, flat_n


def average(series_nT: np.ndarray, windows: list[Windows]) -> np.ndarray:
    """Means of windows, summed in the order of time so that every CPU rounds alike: (N, n)."""
    means = []
    for part in windows:
        stop = part.start + part.count * part.frames
        frames_nNF = series_nT[:, part.start : stop].reshape(len(series_nT), part.count, part.frames)
        total_nN = frames_nNF[:, :, 0].copy()
        for frame in range(1, part.frames):
            total_nN += frames_nNF[:, :, frame]
        means.append((total_nN / part.frames).T)
    return means[0] if len(means) == 1 else np.concatenate(means)
