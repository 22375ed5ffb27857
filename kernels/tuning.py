"""Tile sizes of the Triton kernels: a static table per GPU architecture, so that all ranks run the same code.

Nothing is tuned while a job runs: ranks that chose differently would add in another order. ``cadiff bench kernels
--tune FILE`` writes a table; the environment variable CADIFF_TILES names one that replaces the one shipped for its
architecture. Ranks compare what they hold before they train.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from cadiff.errors import ConfigError

FORMAT = "cadiff-tiles/1"
_SHIPPED = Path(__file__).parent / "tables"
_KEY = re.compile(r"BLOCK_[A-Z]+|num_warps|num_stages")
_trial: dict[str, dict[str, int]] = {}

Tiles = dict[str, int]


def tiles(kernel: str, device: torch.device, default: Tiles, **sizes: int) -> Tiles:
    """What to launch ``kernel`` with: its constexpr blocks, num_warps and num_stages.

    Args:
        kernel: its name in the tables, such as "patch_embed".
        default: used where no table has the shape class, and in the interpreter.
        sizes: what the shape class depends on, such as D=1024, P=16; each is rounded up to a power of two.
    """
    if kernel in _trial:
        return _trial[kernel]
    if device.type != "cuda":
        return default
    return _table(architecture(device)).get(kernel, {}).get(shape_class(**sizes), default)


def shape_class(**sizes: int) -> str:
    """The name of all shapes that share their tiles, such as "D=1024 P=16"."""
    return " ".join(f"{name}={1 << max(0, size - 1).bit_length()}" for name, size in sorted(sizes.items()))


def architecture(device: torch.device) -> str:
    """Such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def precision(inputs: torch.Tensor) -> dict[str, object]:
    """How a kernel multiplies: WIDEN to float32 first (the interpreter's bfloat16 is wrong); PRECISION of float32.

    TF32 only if PyTorch's own products may use it (torch.set_float32_matmul_precision).
    """
    fast = torch.get_float32_matmul_precision() != "highest"
    return {"WIDEN": inputs.device.type == "cpu", "PRECISION": "tf32" if fast and inputs.is_cuda else "ieee"}


@contextmanager
def trying(kernel: str, candidate: Tiles) -> Iterator[None]:
    """Launch ``kernel`` with these tiles meanwhile, whatever the table says."""
    _trial[kernel] = candidate
    try:
        yield
    finally:
        del _trial[kernel]


def read_table(path: Path, arch: str) -> dict[str, dict[str, Tiles]]:
    """Tiles by kernel and shape class, from a file that need not be trusted.

    Raises:
        ConfigError: it is no table, or another architecture's.
    """
    remedy = "Make one with cadiff bench kernels --tune FILE, or unset CADIFF_TILES."
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path}: no table of tiles can be read ({problem}). {remedy}") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT or not isinstance(told.get("tiles"), dict):
        raise ConfigError(f"{path}: is no table of tiles of format {FORMAT}. {remedy}")
    if told.get("architecture") != arch:
        raise ConfigError(f"{path}: is for {told.get('architecture')}, and this GPU is {arch}. {remedy}")
    for kernel, classes in told["tiles"].items():
        for name, chosen in classes.items() if isinstance(classes, dict) else [("?", None)]:
            if not _sound(chosen):
                raise ConfigError(f"{path}: {kernel}, {name}: {chosen!r} are no tiles. {remedy}")
    return told["tiles"]


def table_text(arch: str, chosen: dict[str, dict[str, Tiles]], measured: dict[str, Any] | str) -> str:
    """A table as its file holds it; ``measured`` says on what, or why not."""
    return json.dumps({"format": FORMAT, "architecture": arch, "measured": measured, "tiles": chosen}, indent=1) + "\n"


def describe_tiles(device: torch.device) -> str:
    """Which table is live on a GPU, and the beginning of its hash; "" on a CPU."""
    if device.type != "cuda":
        return ""
    arch = architecture(device)
    return f"{os.environ.get('CADIFF_TILES') or (arch if _shipped(arch).exists() else 'defaults')} ({_hash(arch)[:12]})"


def agree_on_tiles(device: torch.device) -> None:
    """See that every rank holds the same table: all ranks call it.

    Raises:
        ConfigError: on all ranks, each naming its own.
    """
    mine, problem = 0, None
    if device.type == "cuda":
        try:
            mine = int(_hash(architecture(device))[:15], 16)
        except ConfigError as unreadable:  # told after the others have heard of it, who would wait for this rank
            mine, problem = -1, unreadable
    extremes = torch.tensor([mine, -mine], device=device)
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    if problem is not None:
        raise problem
    if extremes[0] != -extremes[1]:
        raise ConfigError(
            f"Ranks hold different tables of tiles; rank {distributed.get_rank()} has {describe_tiles(device)}. Set "
            "CADIFF_TILES to the same file on every machine, and use one kind of GPU."
        )


def _sound(chosen: object) -> bool:
    return isinstance(chosen, dict) and all(
        isinstance(name, str) and _KEY.fullmatch(name) and type(value) is int and 0 < value <= 4096
        for name, value in chosen.items()
    )


def _shipped(arch: str) -> Path:
    return _SHIPPED / f"{arch}.json"


@functools.cache
def _table(arch: str) -> dict[str, dict[str, Tiles]]:
    asked = os.environ.get("CADIFF_TILES")
    if asked:
        return read_table(Path(asked), arch)
    return read_table(_shipped(arch), arch) if _shipped(arch).exists() else {}


def _hash(arch: str) -> str:
    return hashlib.sha256(json.dumps([arch, _table(arch)], sort_keys=True).encode()).hexdigest()
