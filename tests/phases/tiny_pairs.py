"""A tiny world for phases 1 and 2: signals of 24 voxels, pictures of 8 pixels, networks of a few thousand weights."""

import torch

from cadiff.config import Phase1Job, Phase2Job
from cadiff.phases import Space

SPACE = Space(voxels=24, classes=3)
FMRI = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
IMAGE = {
    "patch": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_width": 24,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "decoder_mlp_width": 12,
}


def phase1_job(loss=None, **sections):
    tree = {"name": "tiny", "phase": "phase1", "model": FMRI, "train": {"steps": 1, "batch": 4}, "loss": loss or {}}
    return Phase1Job.model_validate({**tree, "data": {"shards": ["unused"]}, **sections})


def phase2_job(loss=None, image=None, **sections):
    tree = {"name": "tiny", "phase": "phase2", "model": FMRI, "train": {"steps": 1, "batch": 4}, "loss": loss or {}}
    tree["image"] = {**IMAGE, "train_encoder": True, **(image or {})}
    tree["cross"] = {"layers": 2}
    return Phase2Job.model_validate({**tree, "data": {"shards": ["unused"], "image_size": 16}, **sections})


def batch(count=6, epoch=0):
    """Distinct records, as the stream gives them."""
    generator = torch.Generator().manual_seed(7)
    return {
        "signal": torch.randn(count, 24, generator=generator),
        "image": torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "epoch": torch.full((count,), epoch),
        "sample_id": torch.arange(100, 100 + count),
        "subject": torch.arange(count) % 2,
    }


def rows(tensors, order):
    return {name: value[order] for name, value in tensors.items()}


def value(terms):
    return {name: term.item() for name, term in terms.items()}


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def reached(module):
    """Names of the parameters that have a gradient."""
    return {name for name, p in module.named_parameters() if p.grad is not None}


def descend(phase, tensors, steps=12):
    """Loss before and after a few steps of Adam on one batch."""
    optimizer = torch.optim.Adam([p for p in phase.parameters() if p.requires_grad], lr=3e-3)
    seen = []
    for _ in range(steps):
        loss = sum(phase(tensors).values())
        seen.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen[0], seen[-1]
