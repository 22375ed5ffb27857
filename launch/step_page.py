"""The cost of a training step for people: lines of text, and one HTML page with plots over every amount of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cadiff.files import write_text
from cadiff.report.html import Html, figure, join, tag
from cadiff.report.plots import Series, curves, legend
from cadiff.report.style import STYLE

_AXES = {"batch": "samples per step", "voxels": "voxels of a sample", "width": "width of the encoder", "ranks": "ranks"}
# What was measured: its name, the unit it is shown in, and how many of those one of the record's is.
_MEASURED = {"step_s": ("Time", "ms", 1e3), "memory_mb": ("Memory", "MB", 1.0)}


def lines(told: dict[str, Any]) -> list[str]:
    """A record in text."""
    base, on = told["base"], told["machine"]
    out = [
        f"{on['gpu'] or on['processor']}, {on['cores']} cores, {told['precision']}; one amount of work varies around "
        f"batch {base['batch']}, {base['voxels']:,} voxels, width {base['width']}, 1 rank"
    ]
    for axis, entries in told["sweeps"].items():
        out += [_line(axis, entry) for entry in entries]
    for name, (what, unit, factor) in _MEASURED.items():
        if fit := told["fits"][name]:
            out.append(
                f"{what} = {factor * fit['start']:,.1f} {unit} + {factor * fit['slope']:,.2f} {unit} a sample: "
                f"R^2 {fit['r2']:.4f}, at most {100 * fit['worst']:.1f} % off"
            )
    loaded = told["with_loader"]
    out.append(
        f"A whole job, loader included: {loaded['samples_per_s']:,.1f} samples/s, "
        f"{100 * loaded['share_of_step_alone']:.0f} % of the step alone; {100 * loaded['data_wait']:.2f} % of the time "
        "waiting for data"
    )
    return out + [f"Not measured: {what}" for what in told["skipped"]]


def _line(axis: str, entry: dict[str, Any]) -> str:
    speed = f"{1e3 * entry['step_s']:>10,.1f} ms a step {entry['samples_per_s']:>9,.1f} samples/s"
    share = f"{100 * entry['share_of_matrix_rate']:>5.0f} % of the matrix rate"
    published = f" {100 * entry['mfu']:>5.1f} % MFU" if "mfu" in entry else ""
    # Where others used the processors, a time says little.
    others = f", others on {entry['cores_of_others']:.1f} cores" if entry["cores_of_others"] >= 0.1 else ""
    return f"{axis:<7}{entry['value']:>7,} {speed} {share}{published} {entry['memory_mb']:>8,.0f} MB{others}"


def write_page(path: Path, told: dict[str, Any]) -> None:
    """Write the page, whole or not at all."""
    title = "What a training step costs"
    panels = [_panel(told, axis, name) for axis in told["sweeps"] for name in _MEASURED]
    about = (
        f"Phase 1, torch {told['machine']['versions']['torch']}. Memory is the peak of the rank with most, beyond what "
        "the libraries take. The matrix rate is that of one large product, measured after each point's steps."
    )
    main = tag(
        "main",
        tag("pre", "\n".join(lines(told))),
        tag("div", *panels, class_="panels"),
        tag("h2", "All figures"),
        tag("pre", json.dumps(told, indent=1)),
    )
    body = tag("body", tag("header", tag("h1", title), tag("p", about, class_="quiet")), main)
    head = join([tag("meta", charset="utf-8"), tag("title", title), tag("style", Html(STYLE))])
    write_text(path, "<!doctype html>\n" + str(tag("html", tag("head", head), body, lang="en")))


def _panel(told: dict[str, Any], axis: str, name: str) -> Html:
    """One measured quantity over one amount of work; over the batch with the straight line through it."""
    what, unit, factor = _MEASURED[name]
    points = [(float(entry["value"]), factor * entry[name]) for entry in told["sweeps"][axis]]
    series = [Series("measured", points)]
    fit = told["fits"][name] if axis == "batch" else {}
    if fit:
        ends = [(x, factor * (fit["start"] + fit["slope"] * x)) for x in (0.0, points[-1][0])]
        series.append(Series(f"straight line, R² {fit['r2']:.4f}", ends, 1, True))
    said = f"{what} over {_AXES[axis]}"
    y_title = "ms a step" if name == "step_s" else unit
    return figure(
        join([tag("h3", said), curves(series, x_title=_AXES[axis], y_title=y_title, description=said)]), legend(series)
    )
