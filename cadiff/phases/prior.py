"""Training of the diffusion prior: pictures and their classes, in the latents of a frozen first stage.

Legend: B images, C latent channels, S pixels per side, s latents per side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadiff.config import FirstStageModel, PriorJob
from cadiff.exports import load_into, load_part
from cadiff.kernels.keyed import keyed_integers, keyed_normal, keyed_uniform
from cadiff.models.condition import ClassConditioner, Condition
from cadiff.models.first_stage import ImageCodec, to_bytes, to_unit
from cadiff.models.latent_diffusion import LatentDiffusion, time_width
from cadiff.models.reconstructor import read_architecture
from cadiff.phases import Space


class Prior(nn.Module):
    """Predict the noise in latents of known class; the term is ``noise``."""

    def __init__(self, job: PriorJob, space: Space) -> None:
        super().__init__()
        self.seed, self.drop = job.seed, job.model.drop
        first_stage = read_architecture(job.init.first_stage)["first_stage"]
        self.codec, report = frozen_codec(first_stage, job.init.first_stage)
        self.diffusion = LatentDiffusion(job.model, first_stage["latent"], checkpoint=job.engine.checkpoint_activations)
        self.classes = ClassConditioner(space.classes, job.model.context_width, time_width(job.model))
        self.init_report = {job.init.first_stage: report}
        self.architecture = {"first_stage": first_stage, "unet": job.model.model_dump()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise loss of ``batch["image"]``, uint8 (B, 3, S, S), given ``batch["label"]``."""
        drop_B = keyed_drop(self.seed, "prior/drop", batch, self.drop)
        condition = self.classes(batch["label"], drop_B)
        return {"noise": noise_loss(self.codec, self.diffusion, condition, batch, self.seed, "prior")}

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.diffusion.unet, "classes": self.classes, "first_stage": self.codec.vq}

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images, and what one look at their half-noised latents makes of them, uint8."""
        return denoise_once(self.codec, self.diffusion, self.classes(batch["label"]), batch, self.seed)


def frozen_codec(model: dict, folder: str) -> tuple[ImageCodec, dict[str, list[str]]]:
    """The first stage stored in an export, frozen, and the report of what was loaded."""
    codec = ImageCodec(FirstStageModel.model_validate(model)).requires_grad_(False)
    report = load_into(codec.vq, load_part(folder, "first_stage"), what=f"{folder}: first_stage")
    return codec, report


def keyed_drop(seed: int, stream: str, batch: dict[str, Tensor], share: float) -> Tensor:
    """Which samples to train without their condition, bool (B,)."""
    return keyed_uniform(seed, stream, batch["epoch"], batch["sample_id"], 1)[:, 0] < share


def noise_loss(
    codec: ImageCodec, diffusion: LatentDiffusion, condition: Condition, batch: dict[str, Tensor], seed: int, phase: str
) -> Tensor:
    """Mean squared error of the prediction (Ho et al. 2020), at one keyed time per sample."""
    with torch.no_grad():
        latent_BCss = codec.encode(to_unit(batch["image"])).float()
    key = (batch["epoch"], batch["sample_id"])
    time_B = keyed_integers(seed, f"{phase}/t", *key, 1, diffusion.timesteps)[:, 0]
    noise_BCss = keyed_normal(seed, f"{phase}/noise", *key, latent_BCss[0].numel()).view_as(latent_BCss)
    predicted_BCss = diffusion(diffusion.add_noise(latent_BCss, noise_BCss, time_B), time_B, *condition)
    return (predicted_BCss.float() - diffusion.target(latent_BCss, noise_BCss, time_B)).square().mean()


def denoise_once(
    codec: ImageCodec, diffusion: LatentDiffusion, condition: Condition, batch: dict[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Images, and their reconstruction by a single prediction from half-way through the noise schedule."""
    latent_BCss = codec.encode(to_unit(batch["image"])).float()
    noise_Bn = keyed_normal(seed, "preview", batch["epoch"], batch["sample_id"], latent_BCss[0].numel())
    time_B = torch.full_like(batch["sample_id"], diffusion.timesteps // 2)
    noisy_BCss = diffusion.add_noise(latent_BCss, noise_Bn.view_as(latent_BCss), time_B)
    predicted_BCss = diffusion(noisy_BCss, time_B, *condition).float()
    return {
        "image": batch["image"],
        "denoised": to_bytes(codec.decode(diffusion.clean(noisy_BCss, predicted_BCss, time_B))),
    }
