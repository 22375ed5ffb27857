"""The picture of what an autoencoder rebuilds: three lines a record, hidden stretches shaded, r beside them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor

from cadiff.report.preview import (
    COLOUR,
    DRAWN_VOXELS,
    GAP,
    LEFT,
    MUTED,
    RIGHT,
    ROW,
    SHADE,
    TOP,
    WIDTH,
    draw_preview,
    rebuilt_correlation,
)


@pytest.fixture
def preview():
    """Two records of 400 voxels; the second quarter of each is hidden, and rebuilt well in the first record only."""
    draw = np.random.default_rng(0)
    signal = np.sin(np.linspace(0, 30, 400))[None] * np.array([[1.0], [2.0]])
    hidden = np.zeros(400, dtype=bool)
    hidden[100:200] = True
    prediction = np.stack([signal[0] + 0.1 * draw.standard_normal(400), draw.standard_normal(400)])
    return {"signal": signal, "visible": np.where(hidden, np.nan, signal), "prediction": prediction}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def amount(image, colour, near=40):
    return int((np.abs(image.astype(int) - ImageColor.getrgb(colour)).sum(axis=2) < near).sum())


def test_every_record_has_three_bands_and_only_the_hidden_part_is_shaded_and_rebuilt(preview):
    image = pixels(draw_preview(preview))
    assert image.shape == (TOP + 2 * (3 * ROW + GAP), WIDTH, 3)
    per_voxel = (WIDTH - LEFT - RIGHT) / (DRAWN_VOXELS - 1)
    edges = [round(LEFT + voxel * per_voxel) for voxel in (0, 100, 200, DRAWN_VOXELS - 1)]
    for record in range(2):
        top = TOP + record * (3 * ROW + GAP)
        for row in range(3):
            band = image[top + row * ROW : top + (row + 1) * ROW]
            before, hidden, after = (band[:, a + 4 : b - 4] for a, b in itertools.pairwise(edges))
            assert amount(before, MUTED) and amount(after, MUTED) and not amount(before, SHADE, 6)
            assert bool(amount(hidden, SHADE, 6)) == (row > 0)
            assert bool(amount(hidden, MUTED)) == (row == 0) and bool(amount(hidden, COLOUR)) == (row == 2)


def test_r_is_over_hidden_voxels_and_stands_beside_the_record(preview):
    good, poor = (rebuilt_correlation(*(preview[name][at] for name in preview)) for at in range(2))
    hidden = slice(100, 200)
    assert good == pytest.approx(np.corrcoef(preview["signal"][0, hidden], preview["prediction"][0, hidden])[0, 1])
    assert good > 0.95 > 0.5 > abs(poor)
    beside = pixels(draw_preview(preview))[:, WIDTH - RIGHT + 4 :]
    assert amount(beside[TOP + 2 * ROW : TOP + 3 * ROW], COLOUR) > 20


def test_r_of_nothing_hidden_or_nothing_varying_is_undefined_and_can_be_drawn():
    flat = np.zeros((1, 24))
    shown = {"signal": flat, "visible": flat, "prediction": flat}
    hidden = {**shown, "visible": np.full((1, 24), np.nan)}
    broken = {**hidden, "prediction": np.full((1, 24), np.nan)}
    for preview in (shown, hidden, broken):
        assert rebuilt_correlation(*(preview[name][0] for name in preview)) is None
        assert pixels(draw_preview(preview)).shape[1] == WIDTH


def test_arrays_that_are_no_preview_are_refused(preview):
    with pytest.raises(ValueError, match=r"expected \('signal', 'visible', 'prediction'\)"):
        draw_preview({name: preview[name] for name in ("signal", "visible")})
    with pytest.raises(ValueError, match=r"\(2, 300\)"):
        draw_preview({**preview, "visible": preview["visible"][:, :300]})
