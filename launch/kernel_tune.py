"""Choosing tiles by timing every candidate on this GPU, and writing the table that jobs then read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cadiff.errors import ConfigError
from cadiff.files import write_text
from cadiff.kernels import tuning
from cadiff.launch.machine import machine

_DEVICE = torch.device("cuda")
# Batch and features of the contrastive loss; batch and width of the embedding; batch and patches of the mask.
_SIMILARITY = ((1024, 4192), (4096, 1024), (4096, 4192), (16384, 4192), (32768, 1024))
_EMBED = ((250, 1024), (250, 512), (250, 256))  # of one class each
_MASK = ((64, 262), (250, 262), (64, 5706))


def tune(path: Path, say: Callable[[str], None]) -> None:
    """Time all candidates of all kernels on the shapes people train with, and write ``path``. Takes minutes.

    Raises:
        ConfigError: there is no NVIDIA GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError("cadiff bench kernels --tune needs an NVIDIA GPU, and there is none here. Run it on one.")
    chosen: dict[str, dict[str, tuning.Tiles]] = {}
    for kernel, name, candidates, run in _cases():
        best = fastest(kernel, candidates, run, 10, torch.cuda.synchronize)
        chosen.setdefault(kernel, {})[name] = best
        say(f"{kernel}, {name}: {best}")
    write_text(path, tuning.table_text(tuning.architecture(_DEVICE), chosen, machine()))
    say(f"{path}: use it with CADIFF_TILES={path} on every machine of a job")


def fastest(
    kernel: str, candidates: list[tuning.Tiles], run: Callable[[], object], rounds: int, finish: Callable[[], object]
) -> tuning.Tiles:
    """The candidate with the smallest median time of ``run``; those that the GPU cannot hold are passed over.

    Raises:
        ConfigError: none runs; the last one's reason is told.
    """
    times: list[tuple[float, int]] = []
    reason = ""
    for place, candidate in enumerate(candidates):
        with tuning.trying(kernel, candidate):
            try:
                run()
                finish()
            except Exception as problem:  # noqa: BLE001 - too much shared memory, too many registers, a compiler's limit
                reason = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
                continue
            taken = []
            for _ in range(rounds):
                begin = time.perf_counter()
                run()
                finish()
                taken.append(time.perf_counter() - begin)
            times.append((statistics.median(taken), place))
    if not times:
        raise ConfigError(f"{kernel}: none of {len(candidates)} candidates runs on this GPU ({reason}).")
    return candidates[min(times)[1]]


def _cases():
    """(kernel, shape class, candidates, one forward and backward) of every shape that is tuned for."""
    from cadiff.kernels import triton_mask, triton_patch_embed, triton_similarity
    from cadiff.kernels.mask import random_mask
    from cadiff.kernels.patch_embed import masked_patch_embed
    from cadiff.kernels.similarity import info_nce

    normal = lambda *shape: torch.randn(*shape, device=_DEVICE, dtype=torch.bfloat16)  # noqa: E731
    for batch, features in _SIMILARITY:
        sides = [normal(batch, features).requires_grad_() for _ in range(2)]
        sizes = triton_similarity.sizes(batch, triton_similarity.padded(features), batch, 2)
        yield (
            "similarity", tuning.shape_class(**sizes), triton_similarity.CANDIDATES,
            lambda sides=sides: torch.autograd.grad(info_nce(*sides, 0.1, symmetric=True), sides),
        )  # fmt: skip
    for batch, width in _EMBED:
        ids_B = torch.arange(batch, device=_DEVICE)
        keep_BK = random_mask(0, "tune", ids_B, ids_B, 262, 0.75).keep_BK
        weights = [normal(width, 16).requires_grad_(), normal(width).requires_grad_()]
        fixed = (normal(batch, 4192), keep_BK, *weights, normal(262, width))
        yield (
            "patch_embed", tuning.shape_class(**triton_patch_embed.sizes(16, width)), triton_patch_embed.CANDIDATES,
            lambda fixed=fixed, weights=weights: torch.autograd.grad(masked_patch_embed(*fixed).sum(), weights),
        )  # fmt: skip
    for batch, length in _MASK:
        ids_B = torch.arange(batch, device=_DEVICE)
        yield (
            "mask", tuning.shape_class(B=batch, L=length), triton_mask.CANDIDATES,
            lambda ids_B=ids_B, length=length: random_mask(0, "tune", ids_B, ids_B, length, 0.75),
        )  # fmt: skip
