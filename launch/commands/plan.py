"""``cadiff plan``: what a config costs before anything is started: parameters, bytes per GPU, steps."""

from __future__ import annotations

import json
from pathlib import Path

import typer

_GIB = 2**30
# Bytes per parameter with AdamW and fp32 parameters: weights 4, gradients 4, two moments 8.
_WEIGHTS, _GRADIENTS, _MOMENTS = 4, 4, 8


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(
    config: Path = typer.Argument(help="A job's TOML file, or the name of a shipped one."),
    overrides: list[str] = typer.Argument(None, metavar="[section.key=value]..."),
    voxels: int = typer.Option(4192, help="Padded signal width when the shards are not here. HCP V1-V4: 4192."),
    classes: int = typer.Option(1000, help="Stimulus classes when the shards are not here."),
    samples: int = typer.Option(0, help="Training samples when the shards are not here; gives steps per epoch."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Count parameters, and the bytes of weights, gradients and optimizer state per rank for each ZeRO stage.

    Activations are not part of the figures; they grow with the micro-batch. Nothing is allocated. A phase that starts
    from exports (init.*) needs them to be there, because it takes sizes from them.
    """
    from cadiff.config import load_job
    from cadiff.launch.commands.train import find_config

    report = estimate(load_job(find_config(config), overrides or ()), voxels, classes, samples)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    typer.echo(f"{report['name']}: {report['parameters']:,} parameters, {report['trained']:,} trained")
    if report["steps"]:
        typer.echo(f"{report['steps']:,} steps of {report['batch']} samples")
    typer.echo("GiB per rank     " + "".join(f"{world:>9} ranks" for world in report["worlds"]))
    for stage, sizes in report["gib_per_rank"].items():
        typer.echo(f"  {stage:<15}" + "".join(f"{size:>15.2f}" for size in sizes))


def estimate(job, voxels: int, classes: int, samples: int) -> dict:
    """Build the phase on the meta device and do the arithmetic."""
    import torch

    from cadiff.phases import Space, build_phase
    from cadiff.schedule import job_steps
    from cadiff.shards.voxels import padded_width

    space = Space(padded_width(voxels, getattr(job.model, "patch", 1)), classes)
    with torch.device("meta"):
        phase = build_phase(job, space)
    total = sum(p.numel() for p in phase.parameters())
    trained = sum(p.numel() for p in phase.parameters() if p.requires_grad)
    worlds = (1, 2, 8, 64)
    stages = {f"ZeRO-{stage}": [_bytes(stage, total, trained, world) / _GIB for world in worlds] for stage in range(4)}
    steps = job.train.steps or (job_steps(job.train, max(1, samples // job.train.batch)) if samples else 0)
    return {
        "name": job.name, "parameters": total, "trained": trained, "batch": job.train.batch, "steps": steps,
        "worlds": worlds, "gib_per_rank": stages,
    }  # fmt: skip


def _bytes(stage: int, total: int, trained: int, world: int) -> float:
    weights = total * _WEIGHTS / (world if stage >= 3 else 1)
    gradients = trained * _GRADIENTS / (world if stage >= 2 else 1)
    moments = trained * _MOMENTS / (world if stage >= 1 else 1)
    # ZeRO-1 and -2 hold their own fp32 copy of the slice they update.
    copy = trained * _WEIGHTS / world if stage in (1, 2) else 0
    return weights + gradients + moments + copy
