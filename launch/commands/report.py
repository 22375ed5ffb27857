"""``cadiff report``: one or several run folders as a single HTML file that opens offline."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    runs: list[Path] = typer.Argument(help="Run folders; those of one phase share a plot."),
    out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The HTML file to write."),
    metrics: Path = typer.Option(None, help="metrics.json of `cadiff eval`, to show the scores too."),
) -> None:
    """Write a self-contained report: curves, previews, configuration, lineage and, with --metrics, the scores."""
    from cadiff.files import read_json
    from cadiff.report import report_runs

    typer.echo(report_runs(runs, out, read_json(metrics) if metrics else None))
