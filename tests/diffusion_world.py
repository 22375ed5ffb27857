"""A chain of three tiny phases on pictures of two colours: first stage, prior and phase 3, exported to a folder."""

from pathlib import Path

import torch

from cadiff.config import JOBS
from cadiff.exports import save_export
from cadiff.phases import Space, build_phase

SPACE = Space(voxels=32, classes=3)
COMMON = {"name": "tiny", "seed": 5, "data": {"shards": ["none"], "image_size": 16}, "train": {"steps": 1, "batch": 4}}
FIRST_STAGE = {"channels": [8, 16], "layers": 1, "latent": 3, "codes": 16}
UNET = {"channels": [8, 16], "attention": [False, True], "layers": 1, "heads": 2, "context_width": 12}
FMRI = {"patch": 4, "width": 16, "depth": 1, "heads": 2}


def tiny_job(phase: str, **sections):
    return JOBS[phase].model_validate({"phase": phase, **COMMON, **sections})


def tiny_batch(size: int = 4) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    return {
        "image": torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=draw),
        "signal": torch.randn(size, 32, generator=draw),
        "label": torch.arange(size) % 4 - 1,
        "sample_id": torch.arange(size) + 10,
        "epoch": torch.zeros(size, dtype=torch.int64),
    }


def export(phase: torch.nn.Module, job, folder: Path) -> Path:
    card = {
        "phase": job.phase,
        "job": job.model_dump(),
        "space": {"voxels": SPACE.voxels, "classes": SPACE.classes},
        "architecture": phase.architecture,
    }
    return save_export(folder, {name: part.state_dict() for name, part in phase.parts().items()}, card)


def awaken(phase: torch.nn.Module) -> None:
    """Give what is trained some weight: fresh residual branches end in zeros and would hide what they compute."""
    for parameter in phase.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)


def build_chain(folder: Path) -> Path:
    """Export a first stage, a prior and a phase 3 into ``folder``; their names are the phases'."""
    torch.manual_seed(0)
    sections = {
        "first_stage": {"model": FIRST_STAGE},
        "prior": {"model": UNET, "init": {"first_stage": str(folder / "first_stage")}},
        "phase3": {"model": FMRI, "condition": {"tokens": 6}, "init": {"prior": str(folder / "prior")}},
    }
    for name, section in sections.items():
        job = tiny_job(name, **section)
        phase = build_phase(job, SPACE)
        awaken(phase)
        export(phase, job, folder / name)
    return folder
