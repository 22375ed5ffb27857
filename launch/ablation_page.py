"""An ablation as one HTML page: a plot of dots and intervals for every figure, then all numbers and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cadiff import __version__
from cadiff.files import write_json, write_text
from cadiff.launch.ablation_text import NONE, failures, heading, markdown, notes, setting_keys, setting_rows, verdict
from cadiff.report.axes import Axis, label, spanning
from cadiff.report.html import Html, figure, join, table, tag
from cadiff.report.page import POLICY
from cadiff.report.plots import WIDTH, svg
from cadiff.report.style import STYLE

LEFT, TOP, STEP = 128, 12, 24  # of the plots: room for names, above the first row, and between rows
LETTERS = 20  # of a row's name beside a plot


def write_table(out: Path, told: dict[str, Any]) -> None:
    """Write ``ablation.md``, ``ablation.html`` and, last, ``ablation.json``; each whole or not at all."""
    write_text(out / "ablation.md", markdown(told))
    write_text(out / "ablation.html", page(told))
    write_json(out / "ablation.json", told)


def page(told: dict[str, Any]) -> str:
    """The page as text."""
    title = f"Ablation {told['name']}"
    first, *more = notes(told)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    jobs = f"{len(told['rows'])} rows of {' → '.join(told['chain'])}, each with {len(told['seeds'])} seeds."
    header = tag(
        "header", tag("p", "CADiff ablation", class_="kicker"), tag("h1", title), tag("p", jobs, class_="lead")
    )
    sections = [
        join([tag("h2", "Figures"), tag("p", first), _plots(told), *(tag("p", note, class_="note") for note in more)]),
        join([tag("h2", "Numbers"), _numbers(told)]),
    ]
    if keys := setting_keys(told):
        rows = setting_rows(told, keys)
        sections.append(join([tag("h2", "Settings"), table("Keys whose values differ", ["Row", *keys], rows)]))
    if failed := failures(told):
        items = [tag("li", tag("b", name), f": {text}") for name, text in failed]
        sections.append(join([tag("h2", "Failed"), tag("ul", *items)]))
    main = tag("main", *(tag("section", body) for body in sections))
    footer = tag("footer", f"Written by CADiff {__version__}. Self-contained: this file loads nothing.")
    return f"<!doctype html>\n{tag('html', head, tag('body', header, main, footer), lang='en')}\n"


def _plots(told: dict[str, Any]) -> Html:
    panels = []
    for name in told["figures"]:
        rows = [(row["id"], row["label"], row["figures"][name]) for row in told["rows"]]
        rows = [row for row in rows if row[2]["value"] is not None]
        drawing = dots(rows, told["reference"], name) if rows else tag("p", f"{NONE}.", class_="quiet")
        caption = "Large dots are means, lines their 95 % intervals, small dots single seeds"
        caption += f"; the dashed line is {told['reference']}." if told["reference"] else "."
        panels.append(figure(join([tag("h3", heading(told, name)), drawing]), caption))
    return tag("div", *panels, class_="panels wide")


def dots(rows: list[tuple[str, str, dict[str, Any]]], reference: str, title: str) -> Html:
    """One line for each (id, label, entry): its mean, interval and seeds on a common scale."""
    floor = TOP + STEP * len(rows)
    values = [entry[key] for _, _, entry in rows for key in ("value", "low", "high") if entry[key] is not None]
    values += [value for *_, entry in rows for value in entry["seeds"].values()]
    x = spanning(values, LEFT, WIDTH - 12)
    parts = [tag("line", class_="axis", x1=LEFT, x2=WIDTH - 12, y1=floor, y2=floor)]
    for value in x.ticks():
        parts.append(tag("text", label(value), x=f"{x.at(value):.1f}", y=floor + 16, text_anchor="middle"))
    for name, _, entry in rows:
        if name == reference:
            at = f"{x.at(entry['value']):.1f}"
            parts.append(tag("line", class_="level chance", x1=at, x2=at, y1=TOP - 8, y2=floor))
    for position, (name, words, entry) in enumerate(rows):
        parts += _line(x, TOP + STEP * (position + 0.5), name, words, entry, 1 if name == reference else 0)
    spoken = "; ".join(f"{words} {entry['value']:.3g}{_ends(entry)}" for _, words, entry in rows)
    return svg(floor + 24, f"{title}: {spoken}.", *parts)


def _line(x: Axis, at: float, key: str, words: str, entry: dict[str, Any], colour: int) -> list[Html]:
    short = next((text for text in (words, key) if len(text) <= LETTERS), key[: LETTERS - 1] + "…")
    name = tag("text", short, tag("title", words), class_="name", x=LEFT - 10, y=at, dy="0.32em", text_anchor="end")
    parts = [name]
    if entry["low"] is not None:
        ends = {"x1": f"{x.at(entry['low']):.1f}", "x2": f"{x.at(entry['high']):.1f}", "y1": at, "y2": at}
        parts.append(tag("line", class_=f"whisker c{colour}", **ends))
    for value in entry["seeds"].values():
        parts.append(tag("circle", class_="dot c2", cx=f"{x.at(value):.1f}", cy=at, r="2"))
    parts.append(tag("circle", class_=f"dot c{colour}", cx=f"{x.at(entry['value']):.1f}", cy=at, r="4.5"))
    return parts


def _ends(entry: dict[str, Any]) -> str:
    return "" if entry["low"] is None else f", interval {entry['low']:.3g} to {entry['high']:.3g}"


def _numbers(told: dict[str, Any]) -> Html:
    head: list[Any] = ["Row", "Seeds"]
    for name in told["figures"]:
        head += [heading(told, name), *([f"minus {told['reference']}"] if told["reference"] else [])]
    head += ["published"] if told["published"] else []
    rows = []
    for row in told["rows"]:
        cells: list[Any] = [row["label"], f"{len(row['finished'])} of {len(told['seeds'])}"]
        for name in told["figures"]:
            entry = row["figures"][name]
            cells.append(_value(entry, finished=bool(row["finished"])))
            if told["reference"]:
                cells.append(_difference(entry.get("minus_reference"), told["better"]))
        if told["published"]:
            cells.append("" if row["published"] is None else f"{row['published']:g}")
        rows.append(cells)
    return table("Means with 95 % intervals", head, rows, class_="numbers")


def _value(entry: dict[str, Any], *, finished: bool) -> Any:
    if entry["value"] is None:
        return "not reported" if finished else NONE
    low, high = entry["low"], entry["high"]
    interval = None if low is None else tag("span", f"{low:.4g} to {high:.4g}", class_="range")
    return join([f"{entry['value']:.4g}", interval])


def _difference(entry: dict[str, Any] | None, better: str) -> Any:
    if entry is None or entry["value"] is None:
        return ""
    said, low, high = verdict(entry, better), entry["low"], entry["high"]
    mark = tag("span", f" {said}", class_=f"mark {'good' if said == 'better' else 'warn'}") if said else None
    interval = None if low is None else tag("span", f"{low:+.3g} to {high:+.3g}", class_="range")
    return join([f"{entry['value']:+.3g}", mark, interval])
