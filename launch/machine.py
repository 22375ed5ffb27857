"""What a measurement was made on: processor, GPU, versions and commit, for the records under benchmarks/results."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cadiff.files import memory_bytes
from cadiff.shards.parallel import cores

_PACKAGES = ("cadiff", "torch", "numpy", "triton", "deepspeed", "xformers", "webdataset", "zarr")


def machine() -> dict[str, Any]:
    """Facts beside every measured number; ``commit`` is None outside a git checkout, with "+" if files differ."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(), "cores": cores(), "memory_gb": round(memory_bytes() / 1e9),
        "gpu": gpu, "python": platform.python_version(), "versions": _versions(), "commit": _commit(),
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
