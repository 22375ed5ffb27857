"""``cadiff probe``: what a frozen encoder tells, beside voxels, components and an untrained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cadiff.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command("probe")(probe)


def probe(
    run: Path = typer.Argument(help="A finished run of phase 1 or 2, or its export folder."),
    shards: Path = typer.Option(..., help="A packed folder with labels, whose runs or subjects are held out in turn."),
    hold_out: str = typer.Option("run", help="What one fold holds out: `run` or `subject`."),
    seed: int = typer.Option(1, help="Keys the bootstrap and the untrained network."),
    report: Path = typer.Option(None, help="Also write an HTML page with the plot here."),
    out: Path = typer.Option(None, "--out", "-o", help="Also write the JSON record here."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Decode labels from frozen features by logistic regression, one held-out run or subject at a time.

    Beside the same probe on voxels, on principal components and on the network before training, and the nearest class
    mean; with 95 % intervals over folds. It says which folds the encoder had seen in its own training: train it on the
    other runs only.
    """
    from cadiff.files import write_json
    from cadiff.launch.view import View
    from cadiff.probe import probe as measure
    from cadiff.shards.dataset import Dataset

    if hold_out not in ("run", "subject"):
        raise ConfigError(f"--hold-out {hold_out}: a fold holds out one run or one subject.")
    with View().task("probe") as task:
        told = measure(run, Dataset(shards), hold_out=hold_out, seed=seed, progress=task.advance)
    if out is not None:
        write_json(out, told)
    if report is not None:
        write_page(report, told)
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(lines(told)))


def lines(told: dict[str, Any]) -> list[str]:
    """A record in text: where it comes from, the best method first, and what is to be doubted."""
    of, folds = told["trained_on"], told["folds"]
    steps = f", {of['steps']:,} steps" if of["steps"] else ""
    out = [
        f"encoder trained on {', '.join(of['shards']) or 'data that its export does not name'}{steps}",
        f"{told['samples']:,} samples of {len(told['classes'])} classes, {len(folds)} folds, each holds out one "
        f"{told['hold_out']}; chance {told['chance']:.3f}",
        *map(_line, *zip(*_ranked(told["methods"]))),
    ]
    if told["unseen"] and any(fold["seen"] for fold in folds):
        fresh = sum(fold["seen"] == 0 for fold in folds)
        out += [f"of the {fresh} folds that the encoder had not seen:", *map(_line, *zip(*_ranked(told["unseen"])))]
    return out + [f"warning: {warning}." for warning in told["warnings"]]


def write_page(path: Path, told: dict[str, Any]) -> None:
    """Write the plot, the warnings and all figures as one HTML file, whole or not at all."""
    from cadiff.files import write_text
    from cadiff.report.html import Html, figure, join, tag
    from cadiff.report.plots import Bar, intervals
    from cadiff.report.style import STYLE

    def panel(methods: dict[str, Any], caption: str) -> Html:
        ranked = [(name, entry) for name, entry in _ranked(methods)]
        bars = [
            Bar(name, entry["accuracy"], entry["low"], entry["high"], 0 if name.startswith("frozen") else 2)
            for name, entry in ranked
        ]
        plot = intervals(bars, chance=told["chance"], ceiling=None, low=0.0, high=1.0, title="Accuracy")
        return figure(join([tag("h3", "Accuracy by method"), plot]), caption)

    title = "What frozen features tell"
    panels = [panel(told["methods"], f"All {len(told['folds'])} held-out {told['hold_out']}s")]
    if told["unseen"] and any(fold["seen"] for fold in told["folds"]):
        panels.append(panel(told["unseen"], "Only those that the encoder had not seen in its own training"))
    notes = [tag("p", f"Warning: {warning}.", class_="note") for warning in told["warnings"]]
    figures = tag("pre", json.dumps(told, indent=1))
    main = tag("main", *notes, tag("div", *panels, class_="panels wide"), tag("h2", "All figures"), figures)
    about = "Lines are 95 % bootstrap intervals over folds; the dashed line is chance."
    body = tag("body", tag("header", tag("h1", title), tag("p", about, class_="quiet")), main)
    head = join([tag("meta", charset="utf-8"), tag("title", title), tag("style", Html(STYLE))])
    write_text(path, "<!doctype html>\n" + str(tag("html", tag("head", head), body, lang="en")))


def _ranked(methods: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(methods.items(), key=lambda item: -item[1]["accuracy"])


def _line(name: str, entry: dict[str, Any]) -> str:
    value, low, high = (entry[key] for key in ("accuracy", "low", "high"))
    difference, below, above = entry["minus_voxels"]
    beside = "" if name == "voxels" else f"   minus voxels {difference:+.3f} [{below:+.3f}, {above:+.3f}]"
    return f"  {name:<18} {value:.3f} [{low:.3f}, {high:.3f}]{beside}"
