"""What the demo shows at its end: two tables in the terminal, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cadiff.comparison import read_samples
from cadiff.conclusions import conclusions, method_value, spoken
from cadiff.launch.commands.doctor import examine
from cadiff.launch.demo import READS, Demo
from cadiff.report import DataSource, Pictures, ReportContent, collect_run, write_report
from cadiff.shards.dataset import Dataset

SHOWN = ("two-way-features", "two-way-pixcorr", "class-accuracy", "n-way-top1", "pixcorr", "ssim_rgb", "retrieval-top1")


def write_demo_report(demo: Demo, metrics: dict[str, Any]) -> Path:
    """Write ``report.html`` in the demo's folder."""
    samples = read_samples(demo.out / "samples" / "cadiff")
    god = Dataset(demo.out / "shards" / "god")
    with np.load(demo.out / "comparison" / "methods.npz", allow_pickle=False) as stored:
        methods = {name: stored[name] for name in stored.files}
    captions = [
        god.classes[label] if label >= 0 else god.stimuli[s] for label, s in zip(samples.label, samples.stimulus)
    ]
    sets = {kind: Dataset(demo.out / "shards" / kind) for kind in sorted(set(READS.values()))}
    spec = demo.plan.stages.brain
    shown = f"photos from {spec.photos}" if spec.photos else f"rendered scenes of {spec.classes} classes"
    content = ReportContent(
        title="CADiff demo: pictures decoded from simulated brains",
        summary=f"A simulated brain (seed {spec.seed}) saw {shown}. All three phases were trained on what it did, and "
        "the pictures below were decoded from its responses to stimuli that no model had been trained on.",
        metrics=metrics,
        pictures=Pictures(samples.truth, methods, captions),
        runs=[collect_run(demo.out / job) for job in demo.trained],
        data=[DataSource(kind, ds.hash, f"{len(ds):,} samples, {ds.voxels:,} voxels") for kind, ds in sets.items()],
        sampling=samples.facts,
        environment=examine(),
        notes=["Every brain here is simulated: the numbers say that the code works, not how well real brains decode."],
    )
    return write_report(demo.out / "report.html", content)


def print_tables(demo: Demo, metrics: dict[str, Any]) -> None:
    """Print the jobs, the scores beside chance and controls, and what they allow one to say."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    jobs = Table(title="Training", title_justify="left")
    for heading in ("phase", "steps", "time", "samples/s", "loss first → last", "validation"):
        jobs.add_column(heading, justify="left" if heading == "phase" else "right")
    for job in demo.trained:
        run = collect_run(demo.out / job).summary
        validation = "" if run["val_loss"] is None else f"{run['val_loss']:.3f}"
        loss = f"{run['loss_first']:.3f} → {run['loss_last']:.3f}"
        jobs.add_row(job, str(run["steps"]), f"{run['seconds']:.0f} s", f"{run['samples_per_s']:.0f}", loss, validation)
    console.print(jobs)
    names = list(metrics["methods"])
    scores = Table(title=f"{metrics['stimuli']} held-out stimuli, {metrics['interval']}", title_justify="left")
    for heading in ("metric", "chance", *map(spoken, names)):
        scores.add_column(heading, justify="left" if heading == "metric" else "right")
    for key in SHOWN:
        if key in metrics["definitions"]:
            row = [method_value(metrics["methods"][name][key]) for name in names]
            chance = metrics["methods"][metrics["main"]][key]["chance"]
            scores.add_row(metrics["definitions"][key]["title"], f"{chance:.2f}", *row)
    console.print(scores)
    for sentence in conclusions(metrics):
        console.print(f"- {sentence}", highlight=False)
