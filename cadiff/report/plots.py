"""The page's drawings as inline SVG: loss curves, intervals beside chance, and masked signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cadiff.report.axes import Axis, frame, spanning
from cadiff.report.html import Html, join, tag

WIDTH = 340  # units of every drawing; the page scales them to the column
COLOURS = 6  # classes c0..c5 of the style sheet


@dataclass(frozen=True)
class Series:
    """One line of a plot; ``colour`` is an index into the page's palette."""

    name: str
    points: list[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def svg(height: float, description: str, *children: Html) -> Html:
    """A drawing that scales with its column and says in words what it shows."""
    return tag("svg", *children, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=description)


def curves(series: Sequence[Series], *, x_title: str, y_title: str, description: str) -> Html:
    """Lines over steps, with a logarithmic y axis where the values ask for one.

    Points that are not finite are left out.
    """
    height = 220
    lines = [(one, [p for p in one.points if math.isfinite(p[0]) and math.isfinite(p[1])]) for one in series]
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    if not xs:
        return tag("p", "Nothing recorded yet.", class_="quiet")
    x = Axis(min(0, *xs), max(xs) or 1, 44, WIDTH - 8)
    y = spanning(ys, height - 42, 24, may_log=True)
    drawn = [
        tag("polyline", points=" ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points),
            class_=f"line c{one.colour % COLOURS}{' dashed' if one.dashed else ''}")
        for one, points in lines if len(points) > 1
    ]  # fmt: skip
    drawn += [
        tag("circle", class_=f"dot c{one.colour % COLOURS}", cx=f"{x.at(a):.1f}", cy=f"{y.at(b):.1f}", r="2.6")
        for one, points in lines if len(points) < 12 for a, b in points
    ]  # fmt: skip
    return svg(height, description, frame(x, y, x_title, y_title + (" (log scale)" if y.log else "")), *drawn)


def legend(series: Sequence[Series]) -> Html:
    """Names of the lines with a sample of each."""
    items = [
        tag("span", tag("span", class_=f"swatch c{one.colour % COLOURS}{' dashed' if one.dashed else ''}"), one.name)
        for one in series
    ]
    return tag("span", *items, class_="legend")


@dataclass(frozen=True)
class Bar:
    """One method's mean and interval."""

    name: str
    value: float
    low: float
    high: float
    colour: int


def intervals(
    bars: Sequence[Bar], *, chance: float, ceiling: float | None, low: float, high: float, title: str
) -> Html:
    """Means with intervals, one row per method, beside the chance level (dashed) and the ceiling (dotted)."""
    top, step, left = 12, 28, 112
    height = top + step * len(bars) + 26
    x = Axis(low, high, left, WIDTH - 14)
    floor = top + step * len(bars)
    parts = [tag("line", class_="axis", x1=left, x2=WIDTH - 14, y1=floor, y2=floor)]
    for value in x.ticks():
        parts.append(tag("text", f"{value:g}", x=f"{x.at(value):.1f}", y=floor + 18, text_anchor="middle"))
    for value, name in ((chance, "chance"), (ceiling, "ceiling")):
        if value is not None:
            parts.append(_level(x, value, top - 8, floor, name))
    for row, bar in enumerate(bars):
        at = top + step * (row + 0.5)
        parts.append(tag("text", bar.name, class_="name", x=left - 12, y=at, dy="0.32em", text_anchor="end"))
        ends = {"x1": f"{x.at(bar.low):.1f}", "x2": f"{x.at(bar.high):.1f}", "y1": at, "y2": at}
        parts.append(tag("line", class_=f"whisker c{bar.colour % COLOURS}", **ends))
        parts.append(tag("circle", class_=f"dot c{bar.colour % COLOURS}", cx=f"{x.at(bar.value):.1f}", cy=at, r="5"))
    spoken = "; ".join(f"{bar.name} {bar.value:.2f}, interval {bar.low:.2f} to {bar.high:.2f}" for bar in bars)
    return svg(height, f"{title}: {spoken}; chance {chance:.2f}.", *parts)


def _level(x: Axis, value: float, top: float, bottom: float, name: str) -> Html:
    at = f"{x.at(min(max(value, x.low), x.high)):.1f}"
    return tag("line", class_=f"level {name}", x1=at, x2=at, y1=top, y2=bottom)


def masked_signal(signal_V: np.ndarray, visible_V: np.ndarray, prediction_V: np.ndarray, description: str) -> Html:
    """A signal with its hidden stretches shaded, and the prediction drawn there."""
    height, x = 92, Axis(0, max(len(signal_V) - 1, 1), 22, WIDTH - 6)
    hidden_V = ~np.isfinite(visible_V)
    values = np.concatenate([signal_V, prediction_V[hidden_V]])
    y = spanning([float(v) for v in values[np.isfinite(values)]] or [0.0], height - 16, 4)
    parts = []
    for start, stop in stretches(hidden_V):
        left, right = x.at(max(start - 0.5, 0)), x.at(min(stop - 0.5, len(signal_V) - 1))
        box = {"x": f"{left:.1f}", "width": f"{right - left:.1f}", "y": 4, "height": height - 20}
        parts.append(tag("rect", class_="hidden", **box))
    for value in y.ticks():
        parts.append(tag("text", f"{value:g}", x=17, y=f"{y.at(value):.1f}", dy="0.32em", text_anchor="end"))
    for value in x.ticks():
        parts.append(tag("text", f"{value:g}", x=f"{x.at(value):.1f}", y=height - 3, text_anchor="middle"))
    parts.append(_trace(x, y, signal_V, 0, len(signal_V), "trace"))
    parts += [_trace(x, y, prediction_V, start, stop, "line c0") for start, stop in stretches(hidden_V)]
    return svg(height, description, *parts)


def stretches(flags_V: np.ndarray) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags_V, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _trace(x: Axis, y: Axis, values_V: np.ndarray, start: int, stop: int, class_: str) -> Html:
    points = (f"{x.at(v):.1f},{y.at(float(values_V[v])):.1f}" for v in range(start, stop) if np.isfinite(values_V[v]))
    return tag("polyline", points=" ".join(points), class_=class_)


def side_by_side(drawings: Sequence[Html]) -> Html:
    return tag("div", join(drawings), class_="panels")
