"""``cadiff sample``: pictures for stimuli that no phase was trained on."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("sample")(sample)


def sample(
    run: Path = typer.Argument(help="Run folder (or export) of a phase 3."),
    shards: Path = typer.Argument(help="Packed folder whose held-out samples are decoded."),
    out: Path = typer.Option(None, "--out", "-o", help="Where the pictures go. Default: RUN/samples."),
    count: int = typer.Option(5, min=1, help="Pictures per stimulus."),
    steps: int = typer.Option(250, min=1, help="Denoising steps. The paper takes 250 of plms; 20 of dpm come close."),
    scheduler: str = typer.Option("plms", help="plms, ddim or dpm."),
    guidance: float = typer.Option(1.0, min=0.0, help="Classifier-free guidance scale; 1 is none, as in the paper."),
    seed: int = typer.Option(2022, help="Keys the starting noise, together with sample and picture number."),
    batch: int = typer.Option(50, min=1, help="Pictures denoised at a time; changes nothing but speed."),
    limit: int = typer.Option(0, min=0, help="Decode so many stimuli, evenly spread. 0: all."),
    subjects: str = typer.Option(None, help="Comma-separated; default: those of phase 3."),
    shuffled: bool = typer.Option(False, "--shuffled", help="Give each stimulus another's fMRI: the chance control."),
) -> None:
    """Reconstruct held-out pictures from fMRI: samples.npz, samples.json and one PNG each."""
    from cadiff.launch.view import View
    from cadiff.sample import SampleOptions, write_samples
    from cadiff.shards.dataset import Dataset

    folder = out or run / ("shuffled" if shuffled else "samples")
    with View().task("sample") as task:
        write_samples(
            folder,
            run,
            Dataset(shards),
            SampleOptions(count, steps, scheduler, guidance, seed, batch),
            subjects=subjects.split(",") if subjects else None,
            limit=limit,
            shuffle_seed=seed if shuffled else None,
            progress=lambda done, total: task.advance("pictures", done, total),
        )
    typer.echo(folder)
