"""The outlines of twelve object classes: polygons with colour roles, in object units (x right, y down, -1 to 1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Part = tuple[str, np.ndarray]  # (role, points (n, 2)); role is main, second, dark or light
Maker = Callable[[np.random.Generator], list[Part]]


def _poly(role: str, *points: tuple[float, float]) -> Part:
    return role, np.array(points, dtype=np.float64)


def _rect(role: str, left: float, top: float, right: float, bottom: float) -> Part:
    return _poly(role, (left, top), (right, top), (right, bottom), (left, bottom))


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 36) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, points))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _oval(role: str, x: float, y: float, rx: float, ry: float) -> Part:
    return role, _arc(x, y, rx, ry, 0, 350)


def _band(role: str, x: float, y: float, r: float, width: float, start: float, stop: float) -> Part:
    """A thick arc: outer edge there, inner edge back."""
    return role, np.concatenate([_arc(x, y, r, r, start, stop), _arc(x, y, r - width, r - width, stop, start)])


def _ball(rng: np.random.Generator) -> list[Part]:
    bulge = rng.uniform(0.1, 0.45)
    sash = np.concatenate([_arc(0, 0, 0.92, bulge, 0, 180), _arc(0, 0, 0.92, bulge * 0.3, 180, 0)])
    return [_oval("main", 0, 0, 0.92, 0.92), ("second", sash), _oval("light", -0.36, -0.42, 0.17, 0.13)]


def _box(rng: np.random.Generator) -> list[Part]:
    lift = rng.uniform(0.25, 0.45)
    return [
        _poly("main", (-0.85, -0.5), (0, -0.5 + lift), (0, 0.95), (-0.85, 0.95 - lift)),
        _poly("second", (0, -0.5 + lift), (0.85, -0.5), (0.85, 0.95 - lift), (0, 0.95)),
        _poly("light", (-0.85, -0.5), (0, -0.5 - lift), (0.85, -0.5), (0, -0.5 + lift)),
    ]


def _house(rng: np.random.Generator) -> list[Part]:
    peak = rng.uniform(-1.0, -0.75)
    door = rng.uniform(-0.15, 0.15)
    return [
        _rect("second", 0.3, -0.9, 0.48, -0.3),
        _rect("main", -0.75, -0.2, 0.75, 0.9),
        _poly("second", (-0.98, -0.2), (0, peak), (0.98, -0.2)),
        _rect("dark", door - 0.14, 0.35, door + 0.14, 0.9),
        _rect("light", -0.6, 0.05, -0.28, 0.35),
        _rect("light", 0.28, 0.05, 0.6, 0.35),
    ]


def _tree(rng: np.random.Generator) -> list[Part]:
    trunk = _rect("dark", -0.13, 0.2, 0.13, 0.98)
    if rng.random() < 0.5:
        tiers = [(-1.0, -0.25, 0.45), (-0.65, 0.15, 0.62), (-0.3, 0.6, 0.8)]
        return [trunk, *(_poly("main", (0, top), (half, low), (-half, low)) for top, low, half in reversed(tiers))]
    crown = [(-0.4, -0.1, 0.45), (0.4, -0.1, 0.45), (0, -0.5, 0.5), (0, 0.0, 0.5)]
    return [trunk, *(_oval("main", x, y, r, r) for x, y, r in crown), _oval("second", -0.15, -0.5, 0.22, 0.18)]


def _fish(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.38, 0.55)
    return [
        _poly("second", (0.5, 0), (1.0, -0.45), (0.88, 0), (1.0, 0.45)),
        _poly("second", (-0.2, -height * 0.8), (0.15, -height - 0.3), (0.4, -height * 0.6)),
        _oval("main", -0.15, 0, 0.8, height),
        _poly("second", (0.0, 0.05), (0.3, 0.3), (-0.05, 0.25)),
        _oval("light", -0.62, -0.1, 0.11, 0.11),
        _oval("dark", -0.64, -0.1, 0.06, 0.06),
    ]


def _car(rng: np.random.Generator) -> list[Part]:
    front = rng.uniform(0.35, 0.55)
    cabin = _poly("second", (-0.6, -0.1), (-0.42, -0.5), (0.2, -0.5), (front, -0.1))
    pane = _poly("light", (-0.46, -0.12), (-0.34, -0.42), (0.12, -0.42), (front - 0.14, -0.12))
    nose = _poly("main", (-0.98, 0.35), (-0.95, -0.05), (-0.6, -0.14), (0.5, -0.14), (0.95, 0.05), (0.98, 0.35))
    wheels = [
        part for x in (-0.55, 0.55) for part in (_oval("dark", x, 0.36, 0.23, 0.23), _oval("light", x, 0.36, 0.1, 0.1))
    ]
    return [cabin, pane, nose, *wheels]


def _cup(rng: np.random.Generator) -> list[Part]:
    foot = rng.uniform(0.35, 0.52)
    return [
        _band("second", 0.55, 0.05, 0.42, 0.14, -100, 100),
        _poly("main", (-0.65, -0.6), (0.6, -0.6), (foot, 0.85), (-foot - 0.05, 0.85)),
        _oval("light", -0.02, -0.6, 0.63, 0.17),
        _oval("dark", -0.02, -0.57, 0.52, 0.12),
    ]


def _flower(rng: np.random.Generator) -> list[Part]:
    petals = int(rng.integers(5, 9))
    parts = []
    for turn in np.arange(petals) * 2 * np.pi / petals:
        petal = _arc(0.58, 0, 0.38, 1.6 / petals, 0, 350)
        parts.append(("main", petal @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])))
    return [*parts, _oval("second", 0, 0, 0.32, 0.32), _oval("dark", 0, 0, 0.13, 0.13)]


def _mountain(rng: np.random.Generator) -> list[Part]:
    peak, shoulder = rng.uniform(-0.3, 0.1), rng.uniform(0.45, 0.7)
    cap = [(peak, -0.85), (peak + 0.24, -0.45), (peak + 0.08, -0.52), (peak - 0.06, -0.38), (peak - 0.22, -0.48)]
    return [
        _poly("second", (shoulder - 0.75, 0.75), (shoulder, -0.35), (1.25, 0.75)),
        _poly("main", (-1.2, 0.75), (peak, -0.85), (0.85, 0.75)),
        _poly("light", *cap),
    ]


def _face(rng: np.random.Generator) -> list[Part]:
    smile, gap = rng.uniform(0.1, 0.3), rng.uniform(0.26, 0.36)
    eyes = [
        part for x in (-gap, gap) for part in (_oval("light", x, -0.1, 0.16, 0.11), _oval("dark", x, -0.1, 0.08, 0.09))
    ]
    mouth = np.concatenate([_arc(0, 0.42, 0.34, smile, 0, 180), _arc(0, 0.42, 0.34, smile * 0.25, 180, 0)])
    hair = np.concatenate([_arc(0, -0.15, 0.82, 0.85, 180, 360), _arc(0, -0.3, 0.6, 0.3, 360, 180)])
    nose = _poly("second", (0, 0.0), (0.1, 0.24), (-0.1, 0.24))
    return [_oval("main", 0, 0, 0.74, 0.95), ("second", hair), *eyes, nose, ("dark", mouth)]


def _bird(rng: np.random.Generator) -> list[Part]:
    wing = rng.uniform(-0.75, -0.1)
    return [
        _poly("second", (0.45, 0.0), (1.0, -0.2), (0.98, 0.15), (0.5, 0.3)),
        _rect("dark", -0.12, 0.4, -0.07, 0.85),
        _rect("dark", 0.1, 0.4, 0.15, 0.85),
        _oval("main", 0, 0.12, 0.62, 0.4),
        _oval("main", -0.55, -0.28, 0.3, 0.28),
        _poly("second", (-0.82, -0.36), (-1.08, -0.22), (-0.8, -0.16)),
        _poly("second", (-0.22, 0.0), (0.4, wing), (0.45, 0.25), (0.05, 0.3)),
        _oval("dark", -0.62, -0.34, 0.06, 0.06),
    ]


def _boat(rng: np.random.Generator) -> list[Part]:
    top = rng.uniform(-1.0, -0.85)
    return [
        _rect("dark", -0.04, top, 0.04, 0.4),
        _poly("light", (0.08, top + 0.05), (0.8, 0.25), (0.08, 0.25)),
        _poly("second", (-0.08, top + 0.15), (-0.6, 0.25), (-0.08, 0.25)),
        _poly("main", (-0.98, 0.38), (0.98, 0.38), (0.66, 0.85), (-0.66, 0.85)),
    ]


SHAPES: dict[str, Maker] = {
    "ball": _ball,
    "box": _box,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "car": _car,
    "cup": _cup,
    "flower": _flower,
    "mountain": _mountain,
    "face": _face,
    "bird": _bird,
    "boat": _boat,
}
