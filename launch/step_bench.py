"""What a phase-1 training step costs against its work: batch, tokens, width and ranks, one varied at a time.

Every point trains in fresh processes, so that its memory is its own, through the engine that jobs train with; beside
each stands the rate of matrix products, measured in the same processes. One more point trains a whole job on packed
data, loader included.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.config import Phase1Job
from cadiff.devices import device_of
from cadiff.distributed import Place
from cadiff.engine import Engine, start_processes, stop_processes
from cadiff.errors import ConfigError
from cadiff.files import read_json, write_json
from cadiff.launch.machine import machine
from cadiff.launch.start import free_port, visible_gpus
from cadiff.phases import Space, build_phase
from cadiff.precision import choose_precision
from cadiff.shards.parallel import cores
from cadiff.telemetry import measured_rate, peak_memory_bytes, published_rate, sample_flops
from cadiff.tracking import read_metrics
from cadiff.train import train

WARM, FEWEST, MOST = 3, 5, 200  # steps before any is timed, and steps that are timed
# A quarter of the paper's depth and an eighth of its width, at its 4,192 voxels; both contrasts.
MID: dict[str, Any] = {
    "phase": "phase1",
    "name": "mid",
    "data": {"shards": ["generated"]},
    "model": {"width": 128, "depth": 4, "heads": 4, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4},
    "train": {"steps": 1, "batch": 16},
    "engine": {"zero": 0},
}


@dataclass(frozen=True)
class Point:
    """One amount of work: samples per step over all ranks, voxels of a sample, width of the encoder, and ranks."""

    batch: int
    voxels: int
    width: int
    ranks: int = 1


def measure(
    job: Phase1Job, base: Point, sweeps: dict[str, list[int]], seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Time every point of ``sweeps``, which name a field of ``base`` and its values; the dictionary of a record.

    Args:
        seconds: how long each point trains, about.

    Raises:
        ConfigError: a batch that the ranks do not divide, voxels that patches do not divide, or widths that heads do
            not divide.
    """
    most = visible_gpus() or cores()
    told: dict[str, Any] = {
        "bench": "step",
        "machine": machine(),
        "model": job.model.model_dump(),
        "base": asdict(base),
    }
    told["skipped"] = [f"{ranks} ranks: {most} processors here" for ranks in sweeps["ranks"] if ranks > most]
    sweeps = {**sweeps, "ranks": [ranks for ranks in sweeps["ranks"] if ranks <= most]}
    points = list(dict.fromkeys([base, *(replace(base, **{axis: n}) for axis in sweeps for n in sweeps[axis])]))
    jobs = {point: job_at(job, point) for point in points}  # all are looked at before the first is timed
    done: dict[Point, dict[str, Any]] = {}
    for point in points:
        say(f"batch {point.batch}, {point.voxels:,} voxels, width {point.width}, {point.ranks} ranks")
        done[point] = apart(point.ranks, time_steps, jobs[point], point, seconds)
    told["precision"] = done[base]["precision"]
    told["sweeps"] = {
        axis: [{"value": n, **done[replace(base, **{axis: n})]} for n in sorted(set(values))]
        for axis, values in sweeps.items()
    }
    told["fits"] = {
        name: straight_line([(entry["value"], entry[name]) for entry in told["sweeps"]["batch"]])
        for name in ("step_s", "memory_mb")
    }
    say("a whole job, loader included")
    alone = done[base]
    steps = min(max(round(2 * seconds / alone["step_s"]), 20), 2 * MOST)
    told["with_loader"] = apart(1, train_from_shards, jobs[base], base, steps)
    told["with_loader"]["share_of_step_alone"] = told["with_loader"]["samples_per_s"] / alone["samples_per_s"]
    return told


def job_at(job: Phase1Job, point: Point) -> Phase1Job:
    """The job with a point's batch and width; the decoder's width keeps its share."""
    model = job.model
    decoder = model.decoder_width * point.width // model.width
    if point.width % model.heads or decoder % model.decoder_heads or decoder % 2 or point.width % 2:
        raise ConfigError(
            f"--widths {point.width}: its {model.heads} heads, or the {model.decoder_heads} of a decoder of {decoder}, "
            "do not divide it. Choose multiples of the config's width."
        )
    if point.batch % point.ranks:
        raise ConfigError(f"--ranks {point.ranks} does not divide a batch of {point.batch}. Choose a divisor.")
    if point.voxels < model.patch or point.voxels % model.patch:
        raise ConfigError(f"--voxels {point.voxels} is no multiple of the patch of {model.patch}. Choose multiples.")
    tree = job.model_dump()
    tree["model"] |= {"width": point.width, "decoder_width": decoder}
    tree["train"] |= {"batch": point.batch, "micro_batch": point.batch // point.ranks}
    if job.data.clip_frames != 1:
        raise ConfigError(f"data.clip_frames = {job.data.clip_frames}: only single frames are measured. Set it to 1.")
    tree["data"] |= {"pad": "wrap", "subjects": [], "weights": []}  # as the set that is made here has it
    return Phase1Job.model_validate(tree)


def apart(ranks: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What rank 0 of ``ranks`` fresh processes answers; if one of them fails, all end."""
    with tempfile.TemporaryDirectory(prefix="cadiff-bench-") as folder:
        answer = Path(folder) / "answer.json"
        torch.multiprocessing.spawn(_rank, (ranks, free_port(), answer, work, arguments), nprocs=ranks)
        return read_json(answer)


def _rank(rank: int, ranks: int, port: int, answer: Path, work: Callable[..., dict[str, Any]], arguments: Any) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no part of --json
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    told = work(Place(rank, rank, ranks), *arguments)
    if rank == 0:
        write_json(answer, told)
    stop_processes()


def time_steps(place: Place, job: Phase1Job, point: Point, seconds: float) -> dict[str, Any]:
    """Median time of a step on signals made beforehand, the peak of memory, and the rate of matrix products."""
    start_processes(place)
    device = device_of(place)
    precision = choose_precision(job.engine.precision, device, place)
    before = peak_memory_bytes(device)  # of libraries; so far there is nothing else
    torch.manual_seed(job.seed)
    micro = point.batch // point.ranks
    engine = Engine(build_phase(job, Space(point.voxels, 1)), job, place, micro, 1, precision)
    engine.phase.train()
    batch, done = _batch(job, micro, point.voxels, place, device), iter(range(10**9))

    def step() -> float:
        number, began = next(done), time.perf_counter()
        batch["epoch"].fill_(number)  # other masks
        engine.backward_and_step(torch.stack(list(engine(batch).values())).sum(), number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    about_s = [step() for _ in range(WARM)][-1]
    about_s = engine.mean_over_ranks(torch.tensor(about_s, device=device)).item()  # all ranks take as many steps
    began, worked_s = time.perf_counter(), _worked_s()
    times = [step() for _ in range(min(max(round(seconds / about_s), FEWEST), MOST))]
    spent_s, (all_s, own_s) = time.perf_counter() - began, np.subtract(_worked_s(), worked_s).tolist()
    step_s, memory = statistics.median(times), peak_memory_bytes(device) - before
    engine.barrier()
    rate = measured_rate(device, precision).flop_per_s  # of all ranks at once, as they train
    mine = torch.tensor([rate, memory, own_s], device=device, dtype=torch.float64)
    rows = [torch.empty_like(mine) for _ in range(place.world)]
    torch.distributed.all_gather(rows, mine)
    rates, memories, owns = torch.stack(rows, dim=1).tolist()
    flops = sample_flops(job, {point.voxels: 1}, micro)
    used = flops * point.batch / step_s
    told = {
        **asdict(point),
        "tokens": 1 + job.data.clip_frames // job.model.patch_frames * (point.voxels // job.model.patch),
        "precision": precision,
        "steps": len(times),
        "step_s": step_s,
        "samples_per_s": point.batch / step_s,
        "gflop_per_sample": flops / 1e9,
        "gflop_per_s": used / 1e9,
        "matrix_gflop_per_s": sum(rates) / 1e9,
        "share_of_matrix_rate": used / sum(rates),
        "memory_mb": max(memories) / 1e6,
        "cores_of_others": max(0.0, all_s - sum(owns)) / spent_s,
    }
    published = published_rate(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return told if published is None else {**told, "mfu": used / published.flop_per_s / point.ranks}


def _batch(job: Phase1Job, rows: int, voxels: int, place: Place, device: torch.device) -> dict[str, Tensor]:
    draw, frames = torch.Generator().manual_seed(place.rank), job.data.clip_frames
    signal = torch.randn(rows, *[frames] * (frames > 1), voxels, generator=draw)
    number_B = torch.arange(rows) + place.rank * rows
    numbers = {name: number_B.clone() for name in ("sample_id", "stimulus", "subject", "label", "epoch")}
    return {name: value.to(device) for name, value in {"signal": signal, **numbers}.items()}


def _worked_s() -> tuple[float, float]:
    """Seconds that all of the machine's processors have worked so far (Linux), and that this process has."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = int(fields[3]) + int(fields[4])
    return (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def train_from_shards(place: Place, job: Phase1Job, point: Point, steps: int) -> dict[str, Any]:
    """Train a whole job on a packed set that is made for it, and take its own word for speed and waiting."""
    from cadiff.shards.synthetic.loader_set import make_loader_set

    with tempfile.TemporaryDirectory(prefix="cadiff-bench-") as folder:
        shards = make_loader_set(
            Path(folder) / "set", subjects=4, rows=max(500, point.batch), voxels=point.voxels, pictures=0
        )
        tree = job.model_dump()
        tree["data"]["shards"] = [str(shards)]
        tree["train"] |= {"steps": steps, "epochs": 0, "log_every": 5, "save_every": 10**9, "val_every": 10**9}
        tree["track"]["wandb"] = "off"
        train(Phase1Job.model_validate(tree), Path(folder) / "run", place)
        reports = [line for line in read_metrics(Path(folder) / "run") if "train/loss" in line]
    settled = [line for line in reports if line["step"] > WARM + 5]
    return {
        "steps": steps,
        "samples_per_s": statistics.median(line["perf/samples_per_s"] for line in settled),
        "data_wait": statistics.fmean(line["perf/data_wait"] for line in settled),
    }


def straight_line(points: list[tuple[float, float]]) -> dict[str, float]:
    """The line of least squares: start, slope, R^2, and the largest deviation as a share of the mean of y."""
    x, y = np.array(points, dtype=np.float64).T
    if len(set(x.tolist())) < 2:
        return {}
    slope, start = np.polyfit(x, y, 1)
    off = y - (start + slope * x)
    spread = ((y - y.mean()) ** 2).sum()
    r2 = 1 - (off**2).sum() / spread if spread > 0 else 1.0
    return {
        "start": float(start),
        "slope": float(slope),
        "r2": float(r2),
        "worst": float(np.abs(off).max() / (abs(y.mean()) or 1.0)),
    }
