"""A small convolutional net that reads classes from pictures: the demo's own judge, trained on training stimuli only.

It stands in for the ImageNet classifier of published protocols, so its scores compare methods with each other here
and never with published figures. Legend: B pictures, C classes, F features, S pixels per side.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.errors import ConfigError
from cadiff.exports import load_part, read_card, save_export
from cadiff.splits import refuse_test

SIDE = 32  # pixels: every picture is read at this size, so that blur below it does not matter
BATCH = 64
FEATURES = 64


class Classifier(nn.Module):
    """Four convolutions, a mean over positions, a feature layer and a linear read-out."""

    def __init__(self, classes: int, *, card: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.classes, self.card = classes, dict(card or {})
        layers: list[nn.Module] = []
        for inside, outside in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers[:-1])  # 4 x 4 positions are left
        self.features = nn.Linear(64 * 2 * 2, FEATURES)
        self.readout = nn.Linear(FEATURES, classes)

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Float pictures in -1..1 at SIDE pixels give logits (B, C) and features (B, F)."""
        pooled = F.adaptive_avg_pool2d(self.body(pixels_B3SS), 2).flatten(1)
        features_BF = F.relu(self.features(pooled))
        return self.readout(features_BF), features_BF

    @torch.no_grad()
    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read uint8 pictures (..., 3, S, S): float32 logits (..., C) and features (..., F)."""
        lead = images.shape[:-3]
        flat = images.reshape(-1, *images.shape[-3:])
        self.eval()
        parts = [self(as_pixels(flat[start : start + 256])) for start in range(0, len(flat), 256)]
        logits, features = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        return logits.reshape(*lead, -1), features.reshape(*lead, -1)

    def accuracy(self, images_B: np.ndarray, label_B: np.ndarray) -> float:
        """Share of uint8 pictures (B, 3, S, S) read correctly."""
        return float((self.read(images_B)[0].argmax(1) == np.asarray(label_B)).mean())

    def save(self, folder: str | Path) -> Path:
        """Write weights and card as an export folder (safetensors, with hashes)."""
        return save_export(folder, {"classifier": self.state_dict()}, {**self.card, "classes": self.classes})


def load_classifier(folder: str | Path) -> Classifier:
    """Read back what ``save`` wrote; hashes are checked.

    Raises:
        DataError: missing or damaged files.
    """
    card = read_card(folder)
    model = Classifier(card["classes"], card=card)
    model.load_state_dict(load_part(folder, "classifier"))
    return model.eval()


def as_pixels(images_B: np.ndarray) -> Tensor:
    """uint8 (B, 3, S, S) to float32 (B, 3, SIDE, SIDE) in -1..1, averaged over areas."""
    pixels = torch.from_numpy(np.ascontiguousarray(images_B)).float() / 127.5 - 1
    return pixels if pixels.shape[-1] == SIDE else F.interpolate(pixels, size=(SIDE, SIDE), mode="area")


def fit_classifier(
    images_B: np.ndarray, label_B: np.ndarray, *, classes: int, split_B: np.ndarray, seed: int, epochs: int = 0
) -> Classifier:
    """Train on the CPU, so that the same pictures and seed give the same judge on every machine of one kind.

    Args:
        images_B: uint8 (B, 3, S, S) training stimuli.
        label_B: integer (B) in 0..classes-1.
        split_B: split code of each picture; test pictures are refused.
        epochs: passes over the pictures; 0 chooses about 240 steps.

    Raises:
        ConfigError: a test picture, fewer than two classes, or labels out of range.
    """
    refuse_test(split_B, what="classifier")
    label_B = np.asarray(label_B, dtype=np.int64)
    if len(label_B) == 0 or label_B.min() < 0 or label_B.max() >= classes or len(np.unique(label_B)) < 2:
        raise ConfigError(
            f"The classifier needs labels in 0..{classes - 1} of at least two classes, found {len(label_B)} pictures "
            f"with labels {sorted(set(label_B.tolist()))[:8]}. Pack stimuli with class labels."
        )
    with torch.random.fork_rng(devices=[]):  # layers fill themselves from the global generator; leave it as it was
        model = Classifier(classes)
    _initialise(model, seed)
    pixels, labels = as_pixels(images_B), torch.from_numpy(label_B)
    per_epoch = math.ceil(len(labels) / BATCH)
    epochs = epochs or max(4, round(240 / per_epoch))
    steps = epochs * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        draw = _generator(seed, f"classifier/epoch{epoch}")
        for rows in torch.randperm(len(labels), generator=draw).split(BATCH):
            logits, _ = model(augment(pixels[rows], draw))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.card = {
        "phase": "classifier",
        "note": "the demo's own classifier, trained on training stimuli; not an ImageNet model",
        "seed": seed,
        "pictures": len(labels),
        "labels": sorted(set(label_B.tolist())),
        "steps": steps,
    }
    return model.eval()


def augment(pixels_B3SS: Tensor, draw: torch.Generator) -> Tensor:
    """Mirror, shift by up to 3 pixels, tint, blur and add noise by random amounts, as reconstructions do."""
    count, _, side, _ = pixels_B3SS.shape
    padded = F.pad(pixels_B3SS, (3, 3, 3, 3), mode="replicate")
    shift = torch.randint(0, 7, (2, count, 1), generator=draw) + torch.arange(side)
    moved = padded[torch.arange(count)[:, None, None], :, shift[0][:, :, None], shift[1][:, None, :]].movedim(3, 1)
    moved = torch.where(torch.rand((count, 1, 1, 1), generator=draw) < 0.5, moved.flip(3), moved)
    moved = moved * (0.7 + 0.6 * torch.rand((count, 3, 1, 1), generator=draw))
    blurred = F.avg_pool2d(F.pad(moved, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    amount = torch.rand((count, 1, 1, 1), generator=draw) * (torch.rand((count, 1, 1, 1), generator=draw) < 0.5)
    noise = torch.randn(moved.shape, generator=draw) * torch.rand((count, 1, 1, 1), generator=draw) * 0.15
    return moved + amount * (blurred - moved) + noise


def _generator(seed: int, stream: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _initialise(model: nn.Module, seed: int) -> None:
    """He-normal weights, in an order that depends on names only."""
    draw = _generator(seed, "classifier/init")
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            with torch.no_grad():
                parameter.normal_(0, math.sqrt(2 / parameter[0].numel()), generator=draw)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
