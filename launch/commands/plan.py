"""``cadiff plan``: what a config, or a data set, costs before anything is started, downloaded or packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import typer
from typer.core import TyperGroup

from cadiff.errors import ConfigError
from cadiff.launch.commands import plan_data
from cadiff.launch.commands.plan_data import PackSpeed

_GIB = 2**30
# Bytes per parameter with AdamW and fp32 parameters: weights 4, gradients 4, two moments 8.
_WEIGHTS, _GRADIENTS, _MOMENTS = 4, 4, 8


class _JobByDefault(TyperGroup):
    """``cadiff plan phase1_hcp`` stands for ``cadiff plan job phase1_hcp``: any first word that is no sub-command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["job", *args]
        return super().parse_args(ctx, args)


plan = typer.Typer(
    cls=_JobByDefault,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""What a job or a data set costs, before anything is started.

    `cadiff plan CONFIG [section.key=value]...` counts parameters, bytes per GPU and steps of a job; it is short for
    `cadiff plan job CONFIG`, and `cadiff plan job --help` lists its options.

    `cadiff plan data` estimates raw bytes, pack time, packed bytes and read bandwidth of a data set.
    """,
)


def register(app: typer.Typer) -> None:
    app.add_typer(plan, name="plan")


@plan.command("job")
def job(
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


@plan.command("data")
def data(
    preset: str = typer.Option("hcp-rest", help="hcp-rest, hcp-all (rest and 7 tasks) or hcp-7t."),
    subjects: int | None = typer.Option(None, min=1, help="Default: the preset's; HCP-1200 has 1,113."),
    runs_per_subject: int | None = typer.Option(None, min=1, help="Default: the preset's; HCP rest has 4."),
    frames: int | None = typer.Option(
        None, min=1, help="Frames (TRs) of a run. Default: the preset's; HCP rest has 1,200."
    ),
    tr: float | None = typer.Option(None, min=0.001, help="Seconds per frame. Default: the preset's; HCP 3T has 0.72."),
    grayordinates_raw: int = typer.Option(91_282, min=1, help="float32 grayordinates of a raw file."),
    voxels: int = typer.Option(4183, min=1, help="Grayordinates packed: V1 to V4 are 4,183, the cortex 59,412."),
    window: int = typer.Option(10, min=1, help="Frames averaged into one sample; 1 keeps every frame."),
    dtype: str = typer.Option("float16", help="float16, float32, int16 or int8."),
    cores: int = typer.Option(1, min=1, help="Cores that pack at the same time."),
    read_gbps: float = typer.Option(1.0, min=0.001, help="GB/s (10^9 bytes) of the raw storage: assumed."),
    samples_per_s_per_gpu: float = typer.Option(2000.0, min=0.001, help="What a GPU consumes: assumed, not measured."),
    gpus: int = typer.Option(8, min=1, help="GPUs that read at the same time."),
    shard_mb: int = typer.Option(512, min=1, help="MiB at which a shard is closed."),
    measure: Path | None = typer.Option(
        None, metavar="FILE", help="A .dtseries.nii: time the packing steps with it, here."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Estimate what a data set costs before it is downloaded: bytes, pack time, shards, read bandwidth.

    The formulas are explained in docs/data.md, "How large is it?". Every subject is taken to have every run.
    """
    study = plan_data.choose(preset, subjects, runs_per_subject, frames, tr, grayordinates_raw)
    speed, steps = measure_pack(measure, window) if measure else (plan_data.DEFAULT_SPEED, {})
    inputs: dict[str, Any] = {"voxels": voxels, "window": window, "dtype": dtype, "cores": cores, "gpus": gpus}
    inputs |= {"read_gbps": read_gbps, "samples_per_s_per_gpu": samples_per_s_per_gpu, "shard_mb": shard_mb}
    figures = plan_data.estimate(study, **inputs, speed=speed)
    report = {
        "preset": preset,
        "study": asdict(study),
        "inputs": inputs,
        **figures,
        "speed": asdict(speed),
        "steps": steps,
    }
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(plan_data.table(report)))


def measure_pack(path: Path, window: int, rounds: int = 3) -> tuple[PackSpeed, dict[str, float]]:
    """Time the steps of packing V1 to V4 of one file; also give the seconds of each step, medians of ``rounds``.

    The file is read once before, so that its storage is not part of the figures: ``--read-gbps`` stands for that.
    Writing is not part of them either.

    Raises:
        ConfigError: no such file. DataError: not a dense time series with V1 to V4, or fewer frames than a window.
    """
    from cadiff.files import sha256

    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Give one .dtseries.nii to measure with.")
    sha256(path)
    laps = [_time_steps(path, window) for _ in range(rounds)]
    steps = {step: median(lap[step] for lap in laps) for step in laps[0] if step != "values"}
    work_s = sum(seconds for step, seconds in steps.items() if step not in ("hash", "header"))
    hash_s_per_byte = steps["hash"] / (laps[0]["values"] * 4)
    return PackSpeed(steps["header"], hash_s_per_byte, work_s / laps[0]["values"], f"measured with {path.name}"), steps


def _time_steps(path: Path, window: int) -> dict[str, float]:
    """Seconds of each step of packing one run, and the ``values`` (frames x voxels) packed."""
    from cadiff.shards.cifti import locate, read_columns, read_header
    from cadiff.shards.mmp import roi_columns
    from cadiff.shards.voxels import to_half, window_average, zscore_run

    columns_V, taken = roi_columns("VC"), {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = perf_counter()
        result = work()
        taken[step] = perf_counter() - started
        return result

    header = timed("header", lambda: read_header(path))
    frames_TV = timed("read ROI", lambda: read_columns(header, locate(header, columns_V)))
    timed("hash", lambda: hashlib.sha256(frames_TV).digest())
    scaled_TV, _ = timed("z-score", lambda: zscore_run(frames_TV))
    windows_NV = timed("window average", lambda: window_average(scaled_TV, window))
    timed("float16", lambda: (to_half(scaled_TV), to_half(windows_NV)))
    return {**taken, "values": frames_TV.size}


def estimate(job, voxels: int, classes: int, samples: int) -> dict:
    """Build the phase on the meta device and do the arithmetic."""
    import torch

    from cadiff.phases import Space, build_phase
    from cadiff.schedule import job_steps
    from cadiff.shards.voxels import padded_width

    own = {name: (voxels,) for name in job.data.subjects} if job.phase == "phase2" else {}  # whoever has a voxel map
    space = Space(padded_width(voxels, getattr(job.model, "patch", 1)), classes, own)
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
