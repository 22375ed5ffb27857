"""Kernels beside what they replace, in one run: masked patch embedding and contrastive similarity, time and memory.

Contenders take turns, so that a busy machine slows all alike; read ratios. Memory is the peak beyond inputs and
gradients, each contender in processes of its own. On a GPU each kernel also stands beside the chip's limit, measured in
the same run: the rate of copying, and of bfloat16 matrix products.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.kernels import dispatch
from cadiff.kernels.mask import random_mask, random_mask_reference
from cadiff.kernels.patch_embed import masked_patch_embed
from cadiff.kernels.similarity import info_nce
from cadiff.launch.machine import machine

PATCH, WIDTH, VOXELS, MASKED = 16, 1024, 4192, 0.75  # the paper's shape
TEMPERATURE = 0.1
PROCESSES = 3  # a peak is the median of so many: the system's own pages move it by some 50 MiB


def measure(
    device: str, batch: int, sizes: list[int], features: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Time both kernels; the dictionary that goes into a record."""
    told: dict[str, Any] = {"bench": "kernels", "machine": machine(), "threads": torch.get_num_threads()}
    told |= {"live": dispatch.describe(device), "dtype": "bfloat16" if device == "cuda" else "float32"}
    if device == "cuda":
        told["limits"] = _limits()
    say("masked patch embedding")
    told["patch_embed"] = _patch_embed(device, batch, rounds, told.get("limits"))
    say("random masks")
    told["mask"] = _mask(device, batch, rounds)
    told["similarity"] = []
    for size in sizes:
        for symmetric in (False, True):
            say(f"contrastive similarity, {size:,} x {features:,}{', symmetric' if symmetric else ''}")
            told["similarity"].append(_similarity(device, size, features, symmetric, rounds, told.get("limits")))
    return told


def dense(anchor_BF: Tensor, target_BF: Tensor, symmetric: bool) -> Tensor:
    """The loss as it is usually written: the whole matrix, and cross-entropies of its rows (and columns)."""
    sim_BB = F.normalize(anchor_BF, dim=1) @ F.normalize(target_BF, dim=1).T / TEMPERATURE
    own_B = torch.arange(len(sim_BB), device=sim_BB.device)
    if symmetric:
        return (F.cross_entropy(sim_BB, own_B) + F.cross_entropy(sim_BB.T, own_B)) / 2
    return F.cross_entropy(sim_BB, own_B)


def tiled(anchor_BF: Tensor, target_BF: Tensor, symmetric: bool) -> Tensor:
    """The loss that is trained with."""
    return info_nce(anchor_BF, target_BF, TEMPERATURE, symmetric=symmetric)


def convolve(signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor) -> Tensor:
    """The paper's code: a convolution over everything, the positions added, then the kept tokens are gathered."""
    tokens_BLD = F.conv1d(signal_BV[:, None], weight_DP[:, None], bias_D, stride=weight_DP.shape[1]).transpose(1, 2)
    return (tokens_BLD + position_LD).gather(1, keep_BK[:, :, None].expand(-1, -1, weight_DP.shape[0]))


def _patch_embed(device: str, batch: int, rounds: int, limits: dict[str, float] | None) -> dict[str, Any]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device).to(dtype)

    weights = [normal(WIDTH, PATCH).requires_grad_(), normal(WIDTH).requires_grad_()]
    signal_BV, position_LD = normal(batch, VOXELS), normal(VOXELS // PATCH, WIDTH)
    ids_B = torch.arange(batch, device=device)
    keep_BK = random_mask(0, "bench", ids_B, ids_B, VOXELS // PATCH, MASKED).keep_BK
    grad_BKD = normal(*keep_BK.shape, WIDTH)

    def once(embed: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(embed(signal_BV, keep_BK, *weights, position_LD), weights, grad_BKD)

    contenders = {"convolve and gather": convolve, "live": masked_patch_embed}
    if device == "cuda":
        contenders["compiled convolve and gather"] = torch.compile(convolve)
    medians = _take_turns({name: once(embed) for name, embed in contenders.items()}, rounds, device)
    told = {"batch": batch, "voxels": VOXELS, "patch": PATCH, "width": WIDTH, "mask": MASKED, **_beside(medians)}
    if limits:
        moved = grad_BKD.element_size() * (2 * grad_BKD.numel() + 2 * batch * keep_BK.shape[1] * PATCH)
        told["share_of_copy_rate"] = moved / (medians["live"] * 1e-3) / limits["copy_bytes_per_s"]
    return told


def _mask(device: str, batch: int, rounds: int) -> dict[str, Any]:
    ids_B = torch.arange(batch, device=device)
    calls = {
        name: lambda draw=draw: draw(0, "bench", ids_B, ids_B, VOXELS // PATCH, MASKED)
        for name, draw in {"definition": random_mask_reference, "live": random_mask}.items()
    }
    return {"batch": batch, "patches": VOXELS // PATCH, **_beside(_take_turns(calls, 10 * rounds, device))}


def _similarity(
    device: str, size: int, features: int, symmetric: bool, rounds: int, limits: dict[str, float] | None
) -> dict[str, Any]:
    leaves = _leaves(device, size, features)
    contenders = {"dense": dense, "live": tiled}
    if device == "cuda":
        contenders["compiled dense"] = torch.compile(dense)
    calls = {
        name: lambda loss=loss: torch.autograd.grad(loss(*leaves, symmetric), leaves)
        for name, loss in contenders.items()
    }
    # A turn of a large batch takes minutes on a CPU, next to which warming up is nothing.
    medians = _take_turns(
        calls, rounds if size <= 4096 else min(rounds, 3), device, warm=size <= 4096 or device == "cuda"
    )
    told = {"batch": size, "features": features, "symmetric": symmetric, **_beside(medians)}
    told["peak_mib"] = {
        name: statistics.median(_peak_apart(name, device, size, features, symmetric) for _ in range(PROCESSES))
        for name in ("dense", "live")
    }
    if told["peak_mib"]["dense"] > 16:  # below that the system's own pages are what is measured
        told["memory_ratio"] = told["peak_mib"]["live"] / told["peak_mib"]["dense"]
    if limits:  # four products: one forward, one again, and one for each side's gradient
        told["share_of_matmul_rate"] = 8 * size**2 * features / (medians["live"] * 1e-3) / limits["matmul_flop_per_s"]
    return told


def _leaves(device: str, size: int, features: int) -> list[Tensor]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    draw = torch.Generator(device).manual_seed(0)
    sides = (torch.randn(size, features, generator=draw, device=device).to(dtype) for _ in range(2))
    return [side.requires_grad_() for side in sides]


def _take_turns(
    calls: dict[str, Callable[[], object]], rounds: int, device: str, warm: bool = True
) -> dict[str, float]:
    """Median milliseconds of each; a first turn compiles and warms up, unless there is only one round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    warm &= rounds > 1
    for turn in range(rounds + warm):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - begin))
        if turn == 0 and warm:
            times = {name: [] for name in calls}
    return {name: statistics.median(values) for name, values in times.items()}


def _beside(medians: dict[str, float]) -> dict[str, Any]:
    """Milliseconds, and how many times as long as the live kernel each contender takes."""
    ratios = {name: round(value / medians["live"], 3) for name, value in medians.items() if name != "live"}
    return {"median_ms": {name: round(value, 3) for name, value in medians.items()}, "times_of_live": ratios}


def _peak_apart(name: str, device: str, size: int, features: int, symmetric: bool) -> float:
    """MiB beyond inputs and gradients at the peak of one forward and backward, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_peak, args=(theirs, name, device, size, features, symmetric))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def _peak(answer: Any, name: str, device: str, size: int, features: int, symmetric: bool) -> None:
    loss = {"dense": dense, "live": tiled}[name]
    warm = _leaves(device, 64, features)
    torch.autograd.grad(loss(*warm, symmetric), warm)  # libraries and their buffers
    leaves = _leaves(device, size, features)
    before = _memory_now(device)
    grads = torch.autograd.grad(loss(*leaves, symmetric), leaves)
    most = torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")
    answer.send((most - before - sum(grad.nbytes for grad in grads)) / 2**20)


def _memory_now(device: str) -> int:
    """Bytes in use; the peak is counted from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is forgotten
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _limits() -> dict[str, float]:
    """What this GPU does at best: bytes per second of copying (read and written), and of a large bfloat16 product."""
    source = torch.empty(1 << 29, dtype=torch.int8, device="cuda")
    sink, square = torch.empty_like(source), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    medians = _take_turns({"copy": lambda: sink.copy_(source), "product": lambda: square @ square}, 20, "cuda")
    return {
        "copy_bytes_per_s": 2 * source.nbytes / (medians["copy"] * 1e-3),
        "matmul_flop_per_s": 2 * 8192**3 / (medians["product"] * 1e-3),
    }


def lines(told: dict[str, Any]) -> list[str]:
    """A record for people to read."""
    live = told["live"]
    out = [f"live: {live['kernels']} on {live['device']}, {told['dtype']}, {told['threads']} threads"]
    rows = [(f"embedding, batch {told['patch_embed']['batch']:,}", told["patch_embed"])]
    rows.append((f"mask, batch {told['mask']['batch']:,}", told["mask"]))
    for entry in told["similarity"]:
        name = f"loss, {entry['batch']:,} x {entry['features']:,}{', symmetric' * entry['symmetric']}"
        rows.append((name, entry))
    for name, entry in rows:
        others = [
            f"{other} {entry['median_ms'][other]:.1f} ms ({r:.2f}x)" for other, r in entry["times_of_live"].items()
        ]
        line = f"{name:<36}{entry['median_ms']['live']:>10.1f} ms; {', '.join(others)}"
        if "peak_mib" in entry:
            line += f"; {max(0, entry['peak_mib']['live']):,.0f} MiB, dense {max(0, entry['peak_mib']['dense']):,.0f}"
        for limit in ("share_of_copy_rate", "share_of_matmul_rate"):
            line += f"; {100 * entry[limit]:.0f} % of the {limit[9:-5]} rate" if limit in entry else ""
        out.append(line)
    return out
