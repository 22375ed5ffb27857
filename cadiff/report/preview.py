"""What the fMRI autoencoder rebuilds, as a picture to look at while a job trains: signal, visible part, reconstruction.

Drawn with Pillow in the page's light colours (cadiff.report.style), at a multiple of its size and reduced, which makes
lines smooth.

Legend: n records, V voxels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cadiff.report.plots import stretches
from cadiff.report.style import STYLE

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

DRAWN_VOXELS = 320  # more than this are too fine to see
WIDTH, LEFT, RIGHT, TOP = 1200, 140, 120, 56  # pixels; the last three beside and above the lines
ROW, GAP = 58, 22  # pixels: height of a line's band, and space between records
FINER = 3  # how many times finer than the picture is drawn
_COLOURS = dict(re.findall(r"--(\w+):(#\w+)", STYLE.split("@media")[0]))
PAPER, INK, MUTED, SHADE, COLOUR = (_COLOURS[name] for name in ("paper", "ink", "muted", "shade", "c0"))


def draw_preview(preview: Mapping[str, np.ndarray]) -> bytes:
    """Draw every record's three lines on one scale, hidden stretches shaded; beside each, how well it was rebuilt.

    Args:
        preview: ``signal``, ``visible`` (NaN where hidden) and ``prediction``, float (n, V) each, as
            cadiff.phases.pretrain.fmri_preview gives them.

    Returns:
        A PNG. r is Pearson's correlation of signal and prediction over all hidden voxels of a record, also of those
        that are not drawn.

    Raises:
        ValueError: an array is missing, or they are not of one shape (n, V).
    """
    from PIL import Image, ImageDraw

    signal_nV, visible_nV, prediction_nV = _checked(preview)
    height = TOP + len(signal_nV) * (3 * ROW + GAP)
    image = Image.new("RGB", (WIDTH * FINER, height * FINER), PAPER)
    draw = ImageDraw.Draw(image)
    agreements = [rebuilt_correlation(*record) for record in zip(signal_nV, visible_nV, prediction_nV)]
    defined = [r for r in agreements if r is not None]
    mean = f"mean r {np.mean(defined):.2f} over hidden voxels, " if defined else ""
    shown = min(DRAWN_VOXELS, signal_nV.shape[1])
    _write(draw, LEFT, 16, f"{mean}voxels 1 to {shown} of {signal_nV.shape[1]:,} drawn", INK, 20)
    for at, (record, agreement) in enumerate(zip(zip(signal_nV, visible_nV, prediction_nV), agreements)):
        top = TOP + at * (3 * ROW + GAP)
        _record(draw, top, *(line_V[:shown] for line_V in record))
        said = "r undefined" if agreement is None else f"r = {agreement:.2f}"
        _write(draw, WIDTH - RIGHT + 14, top + 2.5 * ROW - 10, said, COLOUR, 20)
    held = io.BytesIO()
    image.resize((WIDTH, height), Image.Resampling.BOX).save(held, "PNG")
    return held.getvalue()


def rebuilt_correlation(signal_V: np.ndarray, visible_V: np.ndarray, prediction_V: np.ndarray) -> float | None:
    """Pearson's r of signal and prediction where ``visible_V`` is NaN; None with nothing hidden or no contrast."""
    hidden_V = ~np.isfinite(visible_V)
    true, rebuilt = signal_V[hidden_V].astype(np.float64), prediction_V[hidden_V].astype(np.float64)
    if len(true) < 2 or not min(true.std(), rebuilt.std()) > 1e-9:  # NaN too
        return None
    return float(np.corrcoef(true, rebuilt)[0, 1])


def _checked(preview: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    names = ("signal", "visible", "prediction")
    arrays = [np.asarray(preview[name]) for name in names if name in preview]
    shapes = [array.shape for array in arrays]
    if len(arrays) < 3 or len(set(shapes)) > 1 or arrays[0].ndim != 2 or 0 in shapes[0]:
        raise ValueError(f"draw_preview: {', '.join(preview)} of shapes {shapes}; expected {names}, (n, V) each.")
    return arrays


def _record(draw: ImageDraw, top: float, signal_V: np.ndarray, visible_V: np.ndarray, prediction_V: np.ndarray) -> None:
    """Three bands, one under the other, on the scale that holds all their values."""
    hidden_V = ~np.isfinite(visible_V)
    rebuilt_V = np.where(hidden_V, prediction_V, np.nan)
    bands = [("signal", signal_V, MUTED), ("visible", visible_V, MUTED), ("reconstruction", visible_V, MUTED)]
    values = np.concatenate([signal_V, rebuilt_V])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    for row, (name, line_V, colour) in enumerate(bands):
        band = top + row * ROW
        for start, stop in stretches(hidden_V) if row else ():
            box = (_x(start - 0.5, hidden_V), band + 3, _x(stop - 0.5, hidden_V), band + ROW - 3)
            draw.rectangle([FINER * edge for edge in box], fill=SHADE)
        _write(draw, 14, band + ROW / 2 - 9, name, MUTED, 17)
        _line(draw, band, line_V, low, high, colour, 1.4)
    _line(draw, top + 2 * ROW, rebuilt_V, low, high, COLOUR, 1.8)


def _line(
    draw: ImageDraw, band: float, values_V: np.ndarray, low: float, high: float, colour: str, width: float
) -> None:
    """Lines through each unbroken run of values."""
    scale = (ROW - 12) / ((high - low) or 1.0)
    for start, stop in stretches(np.isfinite(values_V)):
        points = [
            (FINER * _x(v, values_V), FINER * (band + 6 + (high - float(values_V[v])) * scale))
            for v in range(start, stop)
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=round(FINER * width), joint="curve")
        else:
            draw.circle(points[0], FINER * width, fill=colour)


def _x(voxel: float, values_V: np.ndarray) -> float:
    """Where a voxel is, in pixels; never beside the band."""
    last = max(len(values_V) - 1, 1)
    return LEFT + min(max(voxel, 0), last) / last * (WIDTH - LEFT - RIGHT)


def _write(draw: ImageDraw, x: float, y: float, text: str, colour: str, size: float) -> None:
    draw.text((FINER * x, FINER * y), text, fill=colour, font=_font(FINER * size))


def _font(size: float) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
