"""``cadiff train``: one phase from a config, through the deepspeed launcher; the same command resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cadiff.config import Job

PHASE_NAMES = {
    "phase1": "phase1",
    "phase2": "phase2",
    "first-stage": "first_stage",
    "prior": "prior",
    "phase3": "phase3",
}


def register(app: typer.Typer) -> None:
    app.command("train", context_settings={"ignore_unknown_options": False})(train)


def train(
    phase: str = typer.Argument(help="phase1, phase2, first-stage, prior or phase3."),
    overrides: list[str] = typer.Argument(None, metavar="[section.key=value]...", help="Override keys of the config."),
    config: Path = typer.Option(..., "--config", "-c", help="The job's TOML file, or the name of a shipped one."),
    out: Path = typer.Option(None, "--out", "-o", help="Run folder. Default: runs/NAME."),
    ranks: int = typer.Option(0, "--ranks", "-n", min=0, help="Processes on this machine. 0: one per GPU, else two."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the resolved config and stop."),
) -> None:
    """Train one phase.

    On one machine this starts DeepSpeed's launcher for you. On several, start every rank with
    `deepspeed --hostfile hosts launch/worker.py --config ... --out ...`: it is the same code path.
    A job that finds checkpoints in its run folder continues from the newest valid one.

    Example: `cadiff train phase1 -c configs/phase1_hcp.toml -o runs/p1 optim.lr=1e-4 train.batch=512`
    """
    from cadiff.config import dump_toml, load_job
    from cadiff.errors import ConfigError
    from cadiff.launch.start import local_ranks, start_training
    from cadiff.launch.view import View

    if phase not in PHASE_NAMES:
        raise ConfigError(f"'{phase}' is not a phase. Choose one of {', '.join(PHASE_NAMES)}.")
    path = find_config(config)
    job = load_job(path, overrides or (), phase=PHASE_NAMES[phase])
    if print_config:
        typer.echo(dump_toml(job), nl=False)
        return
    check_inputs(job)
    run = out or Path("runs") / job.name
    view = View()
    with view.task(job.name) as task:
        start_training(
            path, list(overrides or ()), run, phase=job.phase, ranks=local_ranks([job], ranks), say=task.training_line
        )
    view.line(f"{job.name}: done; export in {run / 'export'}")


def check_inputs(job: Job) -> None:
    """Refuse missing shard folders, exports, foreign weights and kept features before any process is started.

    Raises:
        ConfigError, DataError: what is missing, or does not fit the job.
    """
    from cadiff.exports import read_card
    from cadiff.feature_cache import open_features
    from cadiff.shards.dataset import Dataset

    open_features(job)
    for folder in job.data.shards:
        Dataset(folder)
    if hasattr(job, "init"):
        for key, folder in job.init.model_dump().items():
            if folder and key == "image":
                _check_vit(Path(folder))
            elif folder:
                read_card(folder)


def _check_vit(folder: Path) -> None:
    from cadiff.errors import DataError

    for path in (folder / "config.json", folder / "model.safetensors"):
        if not path.is_file():
            raise DataError(
                f"{path}: no such file. init.image takes a folder with config.json and model.safetensors, as Hugging "
                "Face saves facebook/vit-mae-base. Save the model there, correct the path, or train without one: "
                "init.image='' image.train_encoder=true."
            )


def find_config(path: Path) -> Path:
    """A path as given, or the shipped config of that name (with or without .toml)."""
    if path.exists() or path.parent != Path("."):
        return path
    shipped = configs_folder() / path.with_suffix(".toml").name
    return shipped if shipped.exists() else path


def configs_folder() -> Path:
    import cadiff.configs

    return Path(next(iter(cadiff.configs.__path__)))
