"""``cadiff shards``: look into packed folders, and check them byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import typer

shards = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look into packed folders; check them.")


def register(app: typer.Typer) -> None:
    app.add_typer(shards, name="shards")


@shards.command("show")
def show(
    folder: Path = typer.Argument(help="A packed folder."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say what a packed folder holds: samples per split, subjects, voxels, stimuli, classes, and its version."""
    from cadiff.shards.dataset import Dataset

    ds = Dataset(folder)
    facts = {
        "kind": ds.kind,
        "hash": ds.hash,
        "samples": {split: len(ds.ids(split)) for split in ("train", "val", "test")},
        "subjects": ds.subjects,
        "voxels": ds.voxels,
        "stimuli": len(ds.stimuli),
        "classes": ds.classes,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for key, value in facts.items():
        text = ", ".join(map(str, value[:8])) + (" ..." if len(value) > 8 else "") if isinstance(value, list) else value
        typer.echo(f"{key:<9} {text}")


@shards.command("verify")
def verify(folder: Path = typer.Argument(help="A packed folder.")) -> None:
    """Read everything and compare with the manifest's hashes and checksums. Exit code 3 if anything differs."""
    from cadiff.errors import DataError
    from cadiff.launch.view import View
    from cadiff.shards.verify import verify as check

    with View().task("verify") as task:
        problems = check(folder, progress=task.advance)
    if problems:
        raise DataError("\n        ".join(problems))
    typer.echo(f"{folder}: every byte is as packed")
