"""``cadiff demo``: the whole road on simulated brains, from raw files to a report with pictures."""

from __future__ import annotations

import time
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    overrides: list[str] = typer.Argument(
        None, metavar="[job.section.key=value]...", help="Such as phase1.train.steps=500 or brain.snr=0.5."
    ),
    out: Path = typer.Option(Path("runs/demo"), "--out", "-o", help="Where everything goes."),
    seed: int = typer.Option(1, help="Another seed is another brain, other pictures, other weights."),
    stimuli: Path = typer.Option(None, help="A folder of photos to show instead of rendered scenes."),
    init: Path = typer.Option(None, help="Run folder of an image prior to use instead of training a small one."),
    ranks: int = typer.Option(0, "--ranks", "-n", min=0, help="Processes. 0: one per GPU, else two."),
    fresh: bool = typer.Option(False, "--fresh", help="Delete what the demo made there and start over."),
) -> None:
    """Simulate brains, pack them, train all three phases with DeepSpeed, decode held-out pictures, write a report.

    The simulator writes files exactly as HCP, GOD and BOLD5000 ship them, so the packers that run are the real ones.
    6 to 8 minutes on 2 cores. Stopped or killed, the same command continues; finished stages are recognised by the
    content of their inputs and results. Every number in the report is of simulated brains.
    """
    from cadiff.errors import ConfigError
    from cadiff.exports import read_card
    from cadiff.launch.demo import Demo
    from cadiff.launch.demo_plan import load_plan
    from cadiff.launch.demo_report import print_tables, write_demo_report
    from cadiff.launch.start import local_ranks
    from cadiff.launch.view import View

    plan = load_plan(list(overrides or ()), seed, stimuli)
    if init is not None and read_card(init)["phase"] != "prior":
        raise ConfigError(f"--init {init}: is the export of another phase; name the run folder of a prior.")
    started, view = time.monotonic(), View()
    jobs = [plan.job(name, []) for name in plan.jobs]
    job = Demo(plan, out, init, local_ranks(jobs, ranks), view)
    metrics = job.run(fresh=fresh)
    report = write_demo_report(job, metrics)
    print_tables(job, metrics)
    typer.echo(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Open the report: {report}")
