"""From neural responses to BOLD: the canonical double-gamma response function and its use on scene onsets."""

from __future__ import annotations

import math

import numpy as np

FINE_S = 0.1  # time grid on which responses are summed
LENGTH_S = 32.0


def double_gamma(time_s: np.ndarray) -> np.ndarray:
    """The canonical response to a brief event (Friston et al., NeuroImage 1998): peak at 5 s, undershoot at 15 s.

    Gamma densities of shape 6 and 16 with unit scale, the second subtracted at one sixth; scaled to a peak of one.
    """
    time_s = np.asarray(time_s, dtype=np.float64)
    safe = np.maximum(time_s, 0)
    shape = _gamma(safe, 6) - _gamma(safe, 16) / 6
    return np.where(time_s > 0, shape, 0.0) / (_gamma(np.float64(5.0), 6) - _gamma(np.float64(5.0), 16) / 6)


def _gamma(time_s: np.ndarray, shape: int) -> np.ndarray:
    return time_s ** (shape - 1) * np.exp(-time_s) / math.factorial(shape - 1)


def scene_courses(scenes: int, scene_s: float, frames: int, tr_s: float) -> np.ndarray:
    """BOLD course of each of ``scenes`` shown one after the other for ``scene_s`` seconds: float32 (frames, scenes).

    Scene i starts at i x ``scene_s``; frame t is sampled in the middle of its repetition time. Scaled so that
    independent scenes of unit variance give a course of about unit variance over the film.
    """
    kernel = double_gamma(np.arange(0, LENGTH_S, FINE_S)) * FINE_S
    course = np.convolve(np.ones(round(scene_s / FINE_S)), kernel)
    grid = np.arange(len(course)) * FINE_S
    time_s = (np.arange(frames) + 0.5) * tr_s
    design = np.interp(time_s[:, None] - np.arange(scenes)[None] * scene_s, grid, course, left=0.0, right=0.0)
    return (design / np.sqrt((design**2).sum(axis=1).mean())).astype(np.float32)
