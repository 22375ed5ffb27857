"""Rendered scenes: reproducible, different from one another, and of classes that can be told apart."""

import numpy as np
import pytest

from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.scenes import CLASSES, LOOKS, render
from cadiff.shards.synthetic.shapes import SHAPES


def test_a_generator_depends_on_its_key_alone():
    first = generator(1, "a", 2).standard_normal(4)
    generator(1, "b").standard_normal(100)
    assert np.array_equal(generator(1, "a", 2).standard_normal(4), first)
    for other in (generator(2, "a", 2), generator(1, "a", 3), generator(1, "a2"), generator(1, "a", "2")):
        assert not np.array_equal(other.standard_normal(4), first)


def test_every_class_has_a_shape_and_a_look():
    assert len(CLASSES) >= 10
    assert set(CLASSES) == set(SHAPES) == set(LOOKS)
    assert list(CLASSES) == sorted(CLASSES)


@pytest.mark.parametrize("index", range(len(CLASSES)), ids=CLASSES)
def test_a_scene_is_a_function_of_its_key(index):
    picture = render(index, "one", 3)
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render(index, "one", 3))
    assert picture.std() > 5
    for other in (render(index, "two", 3), render(index, "one", 4), render((index + 1) % len(CLASSES), "one", 3)):
        assert np.abs(picture.astype(int) - other).mean() > 3


def test_a_scene_looks_the_same_at_every_size():
    large, small = render(1, "x", 0, 256), render(1, "x", 0, 64)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    # Backgrounds and outlines agree; only fine texture may differ.
    assert np.abs(shrunk - small).mean() < 8


def test_edges_are_smooth():
    # A ball outline drawn without supersampling has no pixel between object and background.
    picture = render(CLASSES.index("ball"), "edge", 1).astype(int)
    row = picture[int(256 * 0.58)].sum(axis=1)
    assert len(np.unique(row)) > 10


def test_colour_and_place_vary_within_a_class_less_than_between_classes():
    pictures = np.stack([[render(c, f"v{i}", 9, 32) for i in range(24)] for c in range(len(CLASSES))]).astype(float)
    flat = pictures.reshape(len(CLASSES), 24, -1)
    within = flat.var(axis=1).mean()
    between = flat.mean(axis=1).var(axis=0).mean()
    assert within > 100
    assert between > 100


def test_class_is_decodable_from_pixels_but_not_perfectly():
    train = np.stack([[render(c, f"t{i}", 2, 16) for i in range(40)] for c in range(len(CLASSES))]).astype(float)
    test = np.stack([[render(c, f"e{i}", 2, 16) for i in range(10)] for c in range(len(CLASSES))]).astype(float)
    centres = train.mean(axis=1).reshape(len(CLASSES), -1)
    distance = ((test.reshape(-1, 1, centres.shape[1]) - centres) ** 2).sum(axis=2)
    accuracy = (distance.argmin(axis=1) == np.repeat(np.arange(len(CLASSES)), 10)).mean()
    assert 0.4 < accuracy < 0.99
