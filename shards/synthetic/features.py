"""What the simulated visual system sees: Gabor energy, curvature and opponent colour on a 32 x 32 map of the picture.

Shape suffixes: N pictures, C channels, P map positions (32 x 32, row by row), H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FIELD_DEG = 12.0  # side of the picture in degrees of visual angle, as in the GOD experiment
RAW = 64  # pixels per side before filtering
MAP = 32  # positions per side after filtering
SCALES = (4.0, 8.0, 16.0)  # cycles per picture: 0.33, 0.67 and 1.33 cycles per degree
ORIENTATIONS = (0.0, 45.0, 90.0, 135.0)  # degrees of the stripes' normal: 0 means vertical stripes
ENERGY = len(SCALES) * len(ORIENTATIONS)
CURVATURE = len(SCALES)
COLOUR = 3  # brightness, red-green, blue-yellow
CHANNELS = ENERGY + CURVATURE + COLOUR
COLOURS = slice(ENERGY + CURVATURE, CHANNELS)


@dataclass(frozen=True)
class Features:
    """Channel maps float32 (N, C, P), channel order energy (scale by scale), curvature, colour; classes int64 (N,)."""

    maps_NCP: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)


def see(images: np.ndarray, labels: np.ndarray) -> Features:
    """Filter pictures uint8 (N, S, S, 3), S a multiple of 64."""
    maps_NCP = np.empty((len(images), CHANNELS, MAP * MAP), dtype=np.float32)
    for start in range(0, len(images), 64):
        part = slice(start, start + 64)
        rgb_NHW3 = _shrink(images[part], RAW)
        grey_NHW = rgb_NHW3 @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        energy_NCHW = _half(gabor_energy(grey_NHW))
        block = [energy_NCHW, _curvature(energy_NCHW), _half(_opponent(rgb_NHW3, grey_NHW))]
        maps_NCP[part] = np.concatenate(block, axis=1).reshape(len(grey_NHW), CHANNELS, -1)
    return Features(maps_NCP, np.asarray(labels, dtype=np.int64))


def join(first: Features, second: Features) -> Features:
    """Put two sets one after the other."""
    return Features(
        np.concatenate([first.maps_NCP, second.maps_NCP]), np.concatenate([first.labels_N, second.labels_N])
    )


def gabor_energy(grey_NHW: np.ndarray) -> np.ndarray:
    """Amplitude of one-sided Gabor filters, float32 (N, 12, 64, 64): phase-invariant, as complex cells are.

    The border is faded out first, for the Fourier transform would otherwise see an edge where left meets right.
    """
    from scipy import fft

    faded = (grey_NHW - grey_NHW.mean(axis=(1, 2), keepdims=True)) * _fade()
    spectrum = fft.fft2(faded, axes=(1, 2))
    response = fft.ifft2(spectrum[:, None] * _filters()[None], axes=(2, 3))
    return np.abs(response).astype(np.float32)


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Gaussians in the Fourier plane, float32 (12, 64, 64): one octave wide, about 25 degrees of orientation."""
    rate = np.fft.fftfreq(RAW) * RAW
    across, down = rate[None, :], rate[:, None]
    bank = []
    for scale in SCALES:
        for angle in np.radians(ORIENTATIONS):
            along = across * np.cos(angle) + down * np.sin(angle)
            side = down * np.cos(angle) - across * np.sin(angle)
            bank.append(np.exp(-((along - scale) ** 2 + side**2) / (2 * (0.4 * scale) ** 2)))
    return np.stack(bank).astype(np.float32)


@lru_cache(maxsize=1)
def _fade() -> np.ndarray:
    edge = np.minimum(np.arange(RAW) + 0.5, RAW - np.arange(RAW) - 0.5)
    ramp = (0.5 - 0.5 * np.cos(np.pi * np.clip(edge / 5, 0, 1))).astype(np.float32)
    return ramp[:, None] * ramp[None, :]


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Block means in [0, 1], float32 (N, size, size, 3)."""
    step = images.shape[1] // size
    total = np.zeros((len(images), size, size, 3), dtype=np.uint32)
    for row in range(step):
        for column in range(step):
            total += images[:, row::step, column::step]
    return total * np.float32(1 / (255 * step * step))


def _half(maps_NCHW: np.ndarray) -> np.ndarray:
    rows = maps_NCHW[:, :, 0::2] + maps_NCHW[:, :, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)


def _curvature(energy_NCHW: np.ndarray) -> np.ndarray:
    """Geometric mean of crossing orientations per scale (N, 3, H, W): high at corners, curves and texture."""
    count, _, side, _ = energy_NCHW.shape
    turns = energy_NCHW.reshape(count, len(SCALES), len(ORIENTATIONS), side, side)
    return 0.5 * (np.sqrt(turns[:, :, 0] * turns[:, :, 2]) + np.sqrt(turns[:, :, 1] * turns[:, :, 3]))


def _opponent(rgb_NHW3: np.ndarray, grey_NHW: np.ndarray) -> np.ndarray:
    """Brightness, red minus green, blue minus yellow: (N, 3, H, W)."""
    red, green, blue = (rgb_NHW3[..., i] for i in range(3))
    return np.stack([grey_NHW, red - green, blue - (red + green) / 2], axis=1)
