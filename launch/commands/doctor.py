"""``cadiff doctor``: what this machine has, what CADiff would use of it, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata

import typer

PACKAGES = ("torch", "deepspeed", "webdataset", "triton", "xformers", "diffusers", "numpy", "zarr", "wandb", "pytest")


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Check this machine: versions, devices, attention and kernel paths (compared with their references), memory, disk.

    Exit code 0 if training can run here.
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    for title, facts in report.items():
        typer.echo(title)
        for key, value in facts.items():
            typer.echo(f"  {key:<14} {value}")


def examine() -> dict[str, dict[str, str]]:
    """Collect the report; raises if the live kernels disagree with their references."""
    import torch

    from cadiff.attention import describe_attention
    from cadiff.devices import device_of
    from cadiff.distributed import Place, place
    from cadiff.kernels.dispatch import describe, self_check
    from cadiff.precision import choose_precision

    device = device_of(place())
    self_check(device)
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": str(len(os.sched_getaffinity(0))),
            "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
            "free disk": f"{shutil.disk_usage('.').free / 2**30:.1f} GiB here",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU only",
        },
        "paths": {
            "attention": describe_attention(device),
            **{key: str(value) for key, value in describe().items()},
            "self-check": "kernels agree with their references",
            "precision": f"auto is {choose_precision('auto', device, Place())}",
            "collectives": "NCCL" if device.type == "cuda" else "gloo",
        },
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
