"""``cadiff bench``: how fast this machine reads shards, runs kernels and takes training steps, beside its limits."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from cadiff.errors import ConfigError

bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Measure this machine; ratios, not claims.")


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.command("loader")
def loader(
    shards: Path = typer.Argument(None, help="A packed folder; without one, a set of the paper's shape is made."),
    batch: int = typer.Option(250, min=1, help="Samples per batch."),
    seconds: float = typer.Option(3.0, min=0.1, help="How long each contender runs."),
    workers: str = typer.Option("0,1,2", help="Numbers of loader threads to try."),
    report: Path = typer.Option(None, help="Also write an HTML page with the plot here."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Samples and bytes per second, time to the first batch and memory of the training stream, warm and cold.

    Each beside its limit in the same run: random row copies from memory, the disk's sequential rate, the bare JPEG
    decoder; and beside the stock webdataset package on the same tars, and on tars of one frame a sample.
    """
    from cadiff.launch.loader_bench import measure
    from cadiff.launch.loader_page import write_page
    from cadiff.launch.view import View

    made = ""
    with ExitStack() as stack:
        if shards is None:
            from cadiff.shards.synthetic.loader_set import make_loader_set

            shards = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cadiff-bench-"))) / "paper-shape"
            make_loader_set(shards, subjects=60)
            made = "generated: 60 subjects x 1,000 windows of 4,183 voxels, 200 JPEGs"
        numbers = [int(part) for part in workers.split(",") if part.strip().isdigit()] or [1]
        told = measure(shards, batch, seconds, numbers, View().line)
        told["shards"] = made or told["shards"]
    if report is not None:
        write_page(report, told)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"{_subject(told)}, {told['machine']['cores']} cores")
    for entry in told["contenders"]:
        typer.echo(_line(entry))


@bench.command("kernels")
def kernels(
    batch: int = typer.Option(250, min=1, help="Samples that are embedded."),
    sizes: str = typer.Option("1024,4096", help="Batches of the contrastive loss."),
    features: int = typer.Option(4192, min=1, help="Values per sample of the contrastive loss."),
    rounds: int = typer.Option(5, min=1, help="Turns of every contender; 3 at most beyond 4,096."),
    tune: Path = typer.Option(None, help="Instead, time all tiles on this GPU and write a table of the best here."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Masked patch embedding, random masks and the contrastive loss beside what they replace: time and memory.

    Beside the embedding stands a convolution of everything, then a gather, as in the paper's code; beside the loss the
    dense one with its whole matrix; beside the mask a sort. Contenders take turns in one run; 1.5x means that it takes
    one and a half times as long as the live kernel. Memory is the peak beyond inputs and gradients. On a GPU each also
    stands beside the rate of copying, or of matrix products, measured in the same run.
    """
    import torch

    from cadiff.launch.kernel_bench import lines, measure
    from cadiff.launch.kernel_tune import tune as tune_here
    from cadiff.launch.view import View

    if tune is not None:
        tune_here(tune, View().line)
        return
    numbers = [int(part) if part.strip().isdigit() else 0 for part in sizes.split(",")]
    if min(numbers) < 2:
        raise ConfigError(f"--sizes {sizes!r}: expected batches of 2 or more with commas between, such as 1024,4096.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    told = measure(device, batch, numbers, features, rounds, View().line)
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(lines(told)))


@bench.command("step")
def step(
    config: Path = typer.Option(None, help="A phase-1 TOML; without one width 128 x 4, decoder 64 x 2, batch 16."),
    batches: str = typer.Option(
        None, help="Samples per step; without it a quarter, half, once and twice the config's."
    ),
    voxels: str = typer.Option("1056,2096,4192,16768", help="Values per sample; the one nearest 4192 is the base."),
    widths: str = typer.Option(None, help="Encoder widths; without it half, once and twice the config's."),
    ranks: str = typer.Option(
        "1,2", help="Processes that share a batch; more than there are cores or GPUs are skipped."
    ),
    seconds: float = typer.Option(4.0, min=0.01, help="How long each point trains."),
    report: Path = typer.Option(None, help="Also write an HTML page with the plots here."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Time and memory of a phase-1 training step over batch, tokens, width and ranks, one varied at a time.

    Each point trains in processes of its own, beside the rate of one large matrix product measured there; one more
    trains a whole job on a generated packed set, loader included.
    """
    from cadiff.config import Phase1Job, load_job
    from cadiff.launch.step_bench import MID, Point, measure
    from cadiff.launch.step_page import lines, write_page
    from cadiff.launch.view import View

    job = Phase1Job.model_validate(MID) if config is None else load_job(config, phase="phase1")
    batch, width = job.train.batch, job.model.width
    sweeps = {
        "batch": _numbers("--batches", batches or f"{max(1, batch // 4)},{max(1, batch // 2)},{batch},{2 * batch}"),
        "voxels": _numbers("--voxels", voxels),
        "width": _numbers("--widths", widths or f"{width // 2},{width},{2 * width}"),
        "ranks": _numbers("--ranks", ranks),
    }
    base = Point(batch, min(sweeps["voxels"], key=lambda count: abs(count - 4192)), width)
    told = measure(job, base, sweeps, seconds, View().line)
    if report is not None:
        write_page(report, told)
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(lines(told)))


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0 with commas between."""
    found = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise ConfigError(f"{option} {text!r}: expected whole numbers above 0 with commas between.")
    return found


def _subject(told: dict[str, Any]) -> str:
    """What was measured: signals, or pictures where there is nothing else."""
    if told["voxels"]:
        return f"{told['samples']:,} samples of {told['voxels']:,} voxels, {told['dtype']}"
    return (
        f"{told['pictures']:,} {'JPEGs' if told['jpeg'] else 'pictures, not all JPEG: their decoding is not measured'}"
    )


def _line(entry: dict[str, Any]) -> str:
    share = entry.get("share_of_limit", entry.get("share_of_disk"))
    beside = "" if share is None else f"{100 * share:>5.0f} % of {'disk' if 'share_of_disk' in entry else 'limit'}"
    if "steady_share_of_disk" in entry:
        beside += f", {100 * entry['steady_share_of_disk']:.0f} % once it flows"
    speed = f"{entry['bytes_per_s'] / 1e9:6.2f} GB/s" if "bytes_per_s" in entry else " " * 11
    first = f"first batch {entry['first_batch_s']:.3f} s" if "first_batch_s" in entry else ""
    start = f"{entry['name']:<38}{entry['samples_per_s']:>11,.0f}/s {speed}"
    return f"{start} {beside:<16} {first:<21} {entry['rss_mb']:6.0f} MB"
