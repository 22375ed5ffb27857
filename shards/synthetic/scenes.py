"""Procedural pictures: one object of a known class on a background, anti-aliased, a pure function of its key."""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.shapes import SHAPES, Part

Colour = tuple[int, int, int]
CLASSES: tuple[str, ...] = tuple(sorted(SHAPES))  # the order a folder of class folders would give


class Look(NamedTuple):
    """What is typical of a class; every exemplar departs from it. Hues run 0 to 1, lengths are shares of the side."""

    kind: str  # coarse category, used by the encoding model's class structure
    hue: float  # main colour
    saturation: float
    ground: float  # hue of the background
    backdrop: str  # gradient, horizon or texture
    x: float  # centre of the object
    y: float
    size: float  # half side of the object
    turn: float  # largest rotation, degrees
    pattern: float = 1.0  # strength of stripes, checks and clouds on the object


LOOKS: dict[str, Look] = {
    "ball": Look("object", 0.00, 0.85, 0.30, "gradient", 0.50, 0.58, 0.26, 180),
    "box": Look("object", 0.07, 0.70, 0.60, "gradient", 0.50, 0.55, 0.28, 25),
    "house": Look("place", 0.13, 0.60, 0.30, "horizon", 0.55, 0.52, 0.34, 4),
    "tree": Look("plant", 0.33, 0.75, 0.20, "horizon", 0.42, 0.48, 0.36, 6),
    "fish": Look("animal", 0.09, 0.95, 0.55, "gradient", 0.48, 0.50, 0.31, 25),
    "car": Look("vehicle", 0.62, 0.85, 0.10, "horizon", 0.52, 0.62, 0.35, 6),
    "cup": Look("object", 0.92, 0.50, 0.08, "horizon", 0.46, 0.56, 0.28, 10),
    "flower": Look("plant", 0.82, 0.80, 0.35, "texture", 0.52, 0.46, 0.31, 180),
    "mountain": Look("place", 0.70, 0.25, 0.58, "horizon", 0.50, 0.52, 0.43, 3),
    "face": Look("face", 0.06, 0.45, 0.75, "gradient", 0.50, 0.48, 0.35, 12, 0.15),
    "bird": Look("animal", 0.15, 0.90, 0.56, "texture", 0.50, 0.40, 0.29, 20),
    "boat": Look("vehicle", 0.99, 0.65, 0.57, "horizon", 0.50, 0.50, 0.33, 8),
}
ODD_COLOUR = 0.15  # share of exemplars whose main hue is drawn from the whole circle
ODD_GROUND = 0.25  # the same for the background
ODD_BACKDROP = 0.25  # share of exemplars with an untypical kind of background
MIRRORED = ("fish", "car", "cup", "bird", "boat", "mountain", "house")


def render(class_index: int, exemplar_key: str | int, seed: int, size: int = 256) -> np.ndarray:
    """Draw one exemplar.

    Returns uint8 (size, size, 3) RGB. The picture depends on the three keys only, and looks the same at every size.
    """
    name = CLASSES[class_index]
    look = LOOKS[name]
    rng = generator(seed, "scene", class_index, exemplar_key)
    parts = SHAPES[name](rng)
    hue = rng.random() if rng.random() < ODD_COLOUR else (look.hue + rng.normal(0, 0.025)) % 1.0
    colours = _palette(hue, look.saturation, rng)
    picture = _background(look, rng, size)
    side = look.size * rng.uniform(0.72, 1.12)
    x, y = look.x + rng.normal(0, 0.06), look.y + rng.normal(0, 0.06)
    turn = np.radians(rng.uniform(-look.turn, look.turn))
    mirror = -1.0 if name in MIRRORED and rng.random() < 0.5 else 1.0
    place = side * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * np.array([[mirror], [1.0]])
    dimming = _texture(rng, size, look.pattern)
    picture.paste(0, mask=_shadow(x, y, side, size))
    outlines = [(role, points @ place + (x, y)) for role, points in parts]
    return np.asarray(_draw(picture, outlines, colours, dimming))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1)))


def _palette(hue: float, saturation: float, rng: np.random.Generator) -> dict[str, Colour]:
    """Colours of the four roles."""
    saturation, value = saturation * rng.uniform(0.8, 1.15), rng.uniform(0.76, 1.0)
    second = hue + (-0.08, 0.08, 0.45)[rng.integers(3)]
    return {
        "main": _rgb(hue, saturation, value),
        "second": _rgb(second, saturation * 0.9, value * rng.uniform(0.55, 0.8)),
        "dark": _rgb(hue, 0.4, rng.uniform(0.08, 0.2)),
        "light": _rgb(hue + 0.05, 0.12, rng.uniform(0.9, 1.0)),
    }


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as fractions of the side, float32: x (1, size), y (size, 1)."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


def _mask(share: np.ndarray) -> Image.Image:
    """Turn shares in [0, 1] into an 8-bit mask."""
    return Image.fromarray((np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8))


def _cloud(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise in [0, 1], float32 (size, size): a coarse random lattice, enlarged."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) * np.float32(1 / 255)


def _background(look: Look, rng: np.random.Generator, size: int) -> Image.Image:
    """Two colours mixed by a gradient, a horizon line or clouds."""
    x, y = _grid(size)
    kind = ("gradient", "horizon", "texture")[rng.integers(3)] if rng.random() < ODD_BACKDROP else look.backdrop
    hue = rng.random() if rng.random() < ODD_GROUND else look.ground + rng.normal(0, 0.03)
    low = _rgb(hue, rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.75))
    sky = 0.57 + rng.normal(0, 0.03) if kind == "horizon" else hue + rng.normal(0, 0.06)
    high = _rgb(sky, rng.uniform(0.1, 0.4), rng.uniform(0.8, 1.0))
    angle, line, cells = rng.uniform(0, np.pi), rng.uniform(0.5, 0.72), int(rng.integers(4, 20))
    if kind == "gradient":
        mix = (x - 0.5) * math.cos(angle) + ((y - 0.5) * math.sin(angle) + 0.5)
    elif kind == "horizon":
        mix = np.repeat(np.clip((y - line) * size, 0, 1) * (0.75 + 0.25 * y), size, axis=1)
    else:
        mix = _cloud(rng, cells, size)
    picture = Image.new("RGB", (size, size), high)
    picture.paste(low, mask=_mask(mix))
    return picture


def _texture(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """How much to dim the object's main colour, float32 (size, size): plain, stripes, checks or clouds, and shading."""
    x, y = _grid(size)
    kind, cells = rng.random(), int(rng.integers(8, 28))
    waves, angle, depth = rng.uniform(7, 18), rng.uniform(0, np.pi), strength * rng.uniform(0.15, 0.4)
    cos, sin = 2 * math.pi * waves * math.cos(angle), 2 * math.pi * waves * math.sin(angle)
    if kind < 0.3:
        wave = np.clip(2 * np.sin(x * cos + y * sin) + 0.5, 0, 1)
    elif kind < 0.5:
        wave = np.clip(3 * np.sin(x * cos + y * sin) * np.sin(y * cos - x * sin) + 0.5, 0, 1)
    elif kind < 0.7:
        wave = _cloud(rng, cells, size)
    else:
        wave = np.zeros((size, size), dtype=np.float32)
    return depth * wave + (x * 0.08 + y * 0.16)  # lit from above left


def _shadow(x: float, y: float, side: float, size: int) -> Image.Image:
    """A soft shadow on the ground below the object."""
    across, down = _grid(size)
    across = np.exp(-np.square((across - x) * (1 / side)))
    return _mask(across * (0.35 * np.exp(-np.square((down - (y + 0.9 * side)) * (4 / side)))))


def _draw(picture: Image.Image, outlines: list[Part], colours: dict[str, Colour], dimming: np.ndarray) -> Image.Image:
    """Paint the parts over ``picture``: drawn at twice the size, then averaged, so edges are smooth."""
    size = picture.width
    paint = Image.new("RGB", (2 * size, 2 * size), colours["main"])
    cover, plain = (Image.new("L", (2 * size, 2 * size), 0) for _ in range(2))
    brushes = [ImageDraw.Draw(layer) for layer in (paint, cover, plain)]
    for role, points in outlines:
        corners = (points * (2 * size)).ravel().tolist()
        for brush, fill in zip(brushes, (colours[role], 255, 255 if role == "main" else 0)):
            brush.polygon(corners, fill=fill)
    paint, cover, plain = (layer.reduce(2) for layer in (paint, cover, plain))
    paint.paste(0, mask=ImageChops.multiply(plain, _mask(dimming)))
    picture.paste(paint, mask=cover)
    return picture
