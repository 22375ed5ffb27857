"""Axes of the page's small plots: where ticks go, what they are called, how values become positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cadiff.report.html import Html, join, tag


@dataclass(frozen=True)
class Axis:
    """A scale from values ``low..high`` to positions ``start..end`` in the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value
        )  # fmt: skip
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def spanning(values: Sequence[float], start: float, end: float, *, may_log: bool = False) -> Axis:
    """An axis that holds all values; logarithmic if allowed and they span more than a factor of 20 above zero."""
    low, high = min(values), max(values)
    if may_log and low > 0 and high / low > 20:
        return Axis(low / 1.1, high * 1.1, start, end, log=True)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low - margin, high + margin, start, end)


def linear_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers inside low..high, some ``about`` of them."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 and their decades inside low..high; only decades if that is more than six."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in decades for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return fine if len(fine) <= 6 else [10.0**power for power in decades if low <= 10.0**power <= high]


def label(value: float) -> str:
    """A tick's text: 2500 becomes 2.5k, small numbers stay short."""
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}"


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> Html:
    """Grid lines, tick labels and titles. ``y.start`` is the bottom, ``y.end`` the top."""
    parts = []
    for value in y.ticks():
        at = f"{y.at(value):.1f}"
        parts.append(tag("line", class_="rule", x1=x.start, x2=x.end, y1=at, y2=at))
        parts.append(tag("text", label(value), x=x.start - 6, y=at, dy="0.32em", text_anchor="end"))
    for value in x.ticks():
        parts.append(tag("text", label(value), x=f"{x.at(value):.1f}", y=y.start + 17, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    parts.append(tag("text", x_title, class_="title", x=x.end, y=y.start + 34, text_anchor="end"))
    parts.append(tag("text", y_title, class_="title", x=0, y=y.end - 9))
    return join(parts)
