"""Putting the page together: sections that have something to say, one HTML file, nothing loaded from elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cadiff import __version__
from cadiff.errors import ConfigError
from cadiff.files import write_text
from cadiff.report.content import ReportContent, RunRecord, collect_run
from cadiff.report.grid import reconstructions
from cadiff.report.html import Html, tag
from cadiff.report.origins import configuration, environment, lineage
from cadiff.report.scores import headline, scores
from cadiff.report.style import SCRIPT, STYLE
from cadiff.report.training import previews, training

# The browser itself refuses every request: all there is, is in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Write one self-contained HTML file; the same content gives the same bytes."""
    path = Path(path)
    write_text(path, render(content))
    return path


def report_runs(runs: Sequence[str | Path], out: str | Path, metrics: dict[str, Any] | None = None) -> Path:
    """Report on any run folders side by side; runs of one phase share one plot.

    Args:
        metrics: the result of ``cadiff.evaluate.evaluate``, if there is one.

    Raises:
        ConfigError: no folder was named.
        DataError: a folder is not a run.
    """
    if not runs:
        raise ConfigError("A report needs at least one run folder. Name the folders that training wrote.")
    records = _told_apart([collect_run(folder) for folder in runs], [Path(folder) for folder in runs])
    title = f"Run {records[0].name}" if len(records) == 1 else f"{len(records)} runs side by side"
    return write_report(out, ReportContent(title=title, metrics=metrics, runs=records))


def _told_apart(records: list[RunRecord], folders: list[Path]) -> list[RunRecord]:
    """Runs that share a name are called by the ends of their paths."""
    counts = Counter(record.name for record in records)
    return [
        replace(record, name="/".join(folder.absolute().parts[-2:])) if counts[record.name] > 1 else record
        for record, folder in zip(records, folders, strict=True)
    ]


def render(content: ReportContent) -> str:
    """The page as text."""
    sections = _sections(content)
    menu = tag("nav", tag("ul", *(tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in sections)),
               aria_label="Sections")  # fmt: skip
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", content.title),
        tag("style", Html(STYLE)),
    )
    header = tag(
        "header",
        tag("p", "CADiff report", class_="kicker"),
        tag("h1", content.title),
        tag("p", content.summary, class_="lead") if content.summary else None,
        menu,
    )
    main = tag("main", *(tag("section", body, id=key) for key, _, body in sections))
    footer = tag("footer", f"Written by CADiff {__version__}. Self-contained: this file loads nothing.")
    body = tag("body", header, main, footer, tag("script", Html(SCRIPT)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _sections(content: ReportContent) -> list[tuple[str, str, Html]]:
    """(anchor, name in the menu, body) of each section that has something to say."""
    found: list[tuple[str, str, Html | None]] = [("result", "Result", headline(content))]
    if content.pictures is not None:
        found.append(("reconstructions", "Reconstructions", reconstructions(content)))
    if content.metrics is not None:
        found.append(("scores", "Scores", scores(content)))
    if content.runs:
        found.append(("training", "Training", training(content)))
        found.append(("predictions", "Predictions", previews(content)))
        found.append(("lineage", "Lineage", lineage(content)))
        found.append(("configuration", "Configuration", configuration(content.runs)))
    found.append(("environment", "Environment", environment(content)))
    return [(key, name, body) for key, name, body in found if body is not None]
