"""``cadiff bench``: how fast this machine reads shards, beside the fastest it could, in one run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import typer

bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Measure this machine; ratios, not claims.")


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.command("loader")
def loader(
    shards: Path = typer.Argument(help="A packed folder with fMRI."),
    batch: int = typer.Option(250, min=1, help="Samples per batch."),
    seconds: float = typer.Option(2.0, min=0.1, help="How long each contender runs."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Samples per second of the training stream, and of a bare gather of random rows from memory."""
    report = measure_loader(shards, batch, seconds)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    typer.echo(f"stream  {report['stream_per_s']:>12,.0f} samples/s of {report['voxels']:,} voxels")
    typer.echo(f"gather  {report['gather_per_s']:>12,.0f} samples/s from memory: the limit of one core")
    typer.echo(f"ratio   {report['ratio']:>12.2f}")


def measure_loader(shards: Path, batch: int, seconds: float) -> dict[str, float | int | str]:
    import numpy as np
    import torch

    from cadiff.shards.dataset import Dataset
    from cadiff.shards.stream import Stream

    ds = Dataset(shards)
    batch = min(batch, len(ds.ids("train")))
    stream = Stream([ds], split="train", batch=batch, micro_batch=batch, width=ds.voxels)
    table = np.zeros((max(batch, min(len(ds), 20_000)), ds.voxels), dtype=np.float32)
    rows = np.random.default_rng(0).integers(0, len(table), (64, batch))
    target = np.empty((batch, ds.voxels), dtype=np.float32)
    read = _rate(lambda i: stream.micro(i, 0), batch, seconds)
    gather = _rate(lambda i: np.take(table, rows[i % 64], axis=0, out=target, mode="clip"), batch, seconds)
    return {
        "bench": "loader", "voxels": ds.voxels, "batch": batch, "stream_per_s": read, "gather_per_s": gather,
        "ratio": read / gather, "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _rate(work: Callable[[int], object], batch: int, seconds: float) -> float:
    """Median samples per second over five rounds, after one that is not counted."""
    rates, step = [], 0
    for _ in range(6):
        start, before = time.perf_counter(), step
        while time.perf_counter() - start < seconds / 5:
            work(step)
            step += 1
        rates.append((step - before) * batch / (time.perf_counter() - start))
    return statistics.median(rates[1:])
