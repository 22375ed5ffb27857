"""``cadiff convert`` and ``cadiff revert``: the paper's checkpoints into exports, executing nothing, and back."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("convert")(convert)
    app.command("revert")(revert)


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


def revert(
    run: Path = typer.Argument(help="A phase-1 or phase-2 run, or its export folder."),
    out: Path = typer.Argument(help="The .pth to write."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write an fMRI autoencoder as a checkpoint that the paper's code loads: its names and layout, float32."""
    from cadiff.convert import revert_fmri

    sizes = revert_fmri(run, out)
    typer.echo(json.dumps(sizes) if as_json else f"{out}: " + ", ".join(f"{k} {v}" for k, v in sizes.items()))
