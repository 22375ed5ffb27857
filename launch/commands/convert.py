"""``cadiff convert``: other people's checkpoints into CADiff exports, executing nothing in them."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("convert")(convert)


def convert(
    checkpoint: Path = typer.Argument(help="A phase-1 or phase-2 .pth of the paper's code or of MinD-Vis."),
    out: Path = typer.Argument(help="Export folder to write."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Convert the paper's fMRI autoencoder checkpoint to safetensors and a card that `init.fmri` reads.

    The file is never unpickled in the ordinary way: nothing in it is executed.
    """
    from cadiff.convert import convert_fmri

    found = convert_fmri(checkpoint, out)
    typer.echo(json.dumps(found) if as_json else f"{out}: " + ", ".join(f"{k} {v}" for k, v in found.items()))
