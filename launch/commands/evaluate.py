"""``cadiff eval``: decoded pictures against chance, ridge, the nearest training stimulus and shuffled fMRI."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    samples: Path = typer.Argument(help="Folder written by `cadiff sample`."),
    shards: Path = typer.Argument(help="The packed folder the samples were decoded from."),
    run: Path = typer.Option(..., "--run", help="Run folder of the phase 3: ridge decodes through its first stage."),
    shuffled: Path = typer.Option(None, help="Folder written by `cadiff sample --shuffled`."),
    images: list[Path] = typer.Option(None, help="Further packed sets whose training pictures teach the classifier."),
    out: Path = typer.Option(None, "--out", "-o", help="Where metrics.json goes. Default: SAMPLES/comparison."),
    seed: int = typer.Option(1, help="Keys the bootstrap and the classifier."),
    as_json: bool = typer.Option(False, "--json", help="Print metrics.json."),
) -> None:
    """Score held-out pictures with 95 % intervals, beside chance, ridge and the nearest training stimulus.

    With --shuffled, also beside decoding from another stimulus' fMRI, which must score chance.

    The classifier behind the class and feature scores is trained here on training stimuli; it is not ImageNet's.
    """
    from cadiff.comparison import compare, read_samples, write_comparison
    from cadiff.conclusions import conclusions
    from cadiff.launch.view import View
    from cadiff.shards.dataset import Dataset

    dataset = Dataset(shards)
    control = read_samples(shuffled) if shuffled else None
    judge_sets = [dataset, *map(Dataset, images or ())]
    with View().task("eval") as task:
        metrics, methods = compare(
            read_samples(samples), control, run, dataset, judge_sets, seed=seed, progress=task.advance
        )
    write_comparison(out or samples / "comparison", metrics, methods)
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    typer.echo("\n".join([*conclusions(metrics), f"All scores: {(out or samples / 'comparison') / 'metrics.json'}"]))
