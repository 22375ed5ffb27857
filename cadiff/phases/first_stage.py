"""Training of the first stage: pictures in, pictures out, through vector-quantised latents.

Legend: B images, C latent channels, S pixels per side, s latents per side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import FirstStageJob
from cadiff.models.first_stage import ImageCodec, to_bytes, to_unit
from cadiff.phases import Space


class FirstStage(nn.Module):
    """Rebuild images; the terms are ``pixel``, ``edge``, ``code``, ``commit`` and ``spread``."""

    def __init__(self, job: FirstStageJob, space: Space) -> None:
        super().__init__()
        self.loss = job.loss
        self.codec = ImageCodec(job.model, checkpoint=job.engine.checkpoint_activations)
        self.init_report: dict[str, Any] = {}
        self.architecture = {"first_stage": job.model.model_dump()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses of ``batch["image"]``, uint8 (B, 3, S, S)."""
        image_B3SS = to_unit(batch["image"])
        latent_BCss = self.codec.encode(image_B3SS)
        coded = self.codec.quantise(latent_BCss)
        error_B3SS = self.codec.decode_codes(coded.latent_BCss).float() - image_B3SS
        return {
            "pixel": self.loss.pixel * error_B3SS.abs().mean(),
            "edge": self.loss.edge * sum(error_B3SS.diff(dim=axis).abs().mean() for axis in (2, 3)),
            "code": coded.code,
            "commit": self.loss.commit * coded.commit,
            "spread": self.loss.spread * spread(latent_BCss.float()),
        }

    def parts(self) -> dict[str, nn.Module]:
        return {"first_stage": self.codec.vq}

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images and their reconstructions, uint8."""
        rebuilt_B3SS = self.codec.decode(self.codec.encode(to_unit(batch["image"])))
        return {"image": batch["image"], "rebuilt": to_bytes(rebuilt_B3SS)}


def spread(latent_BCss: Tensor) -> Tensor:
    """How far the channels are from zero mean and unit deviation, over the micro-batch.

    It keeps the latents at the scale the diffusion's noise schedule presumes, without a scale factor to be measured
    and stored, and keeps the codes from being pulled into a few clusters.
    """
    mean_C, deviation_C = latent_BCss.mean(dim=(0, 2, 3)), latent_BCss.std(dim=(0, 2, 3))
    return (mean_C.square() + (deviation_C - 1).square()).mean()
