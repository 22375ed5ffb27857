"""Phase 3: teach the diffusion prior to listen to fMRI instead of class labels.

Trained: the whole conditioner and, of the UNet, only the cross-attention with the norms before it, as in the paper;
each parameter once. The rest of the UNet and the first stage stay as the prior left them, and voxel adapters as phase 2
left them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadiff.config import Phase3Job, UNetModel
from cadiff.errors import ConfigError
from cadiff.exports import load_into, load_part
from cadiff.models.adapter import PART
from cadiff.models.condition import FmriConditioner
from cadiff.models.latent_diffusion import LatentDiffusion, attends_context, time_width
from cadiff.models.reconstructor import read_architecture
from cadiff.phases import Space
from cadiff.phases.adapted import adapted, phase3_adapters
from cadiff.phases.prior import denoise_once, frozen_codec, keyed_drop, noise_loss


class Diffuse(nn.Module):
    """Predict the noise in the latents of seen images from the fMRI they evoked; the term is ``noise``."""

    def __init__(self, job: Phase3Job, space: Space) -> None:
        super().__init__()
        self.seed, self.drop = job.seed, job.condition.drop
        recompute = job.engine.checkpoint_activations
        inherited = read_architecture(job.init.prior)
        unet = UNetModel.model_validate(inherited["unet"])
        self.codec, codec_report = frozen_codec(inherited["first_stage"], job.init.prior)
        self.diffusion = LatentDiffusion(unet, inherited["first_stage"]["latent"], checkpoint=recompute)
        self.adapters = phase3_adapters(job.init.fmri, job.data.subjects, space)
        voxels = space.voxels if self.adapters is None else self.adapters.width
        self.conditioner = FmriConditioner(
            job.model, job.condition, voxels, unet.context_width, time_width(unet), checkpoint=recompute
        )
        self.init_report = {
            f"{job.init.prior}: first_stage": codec_report,
            f"{job.init.prior}: unet": _load(self.diffusion.unet, job.init.prior, "unet"),
        }
        if job.init.fmri:
            self.init_report[f"{job.init.fmri}: fmri"] = _load(self.conditioner.fmri, job.init.fmri, "fmri")
        self.architecture = inherited | ({"adapter": self.adapters.describe()} if self.adapters else {})
        for name, parameter in self.diffusion.unet.named_parameters():
            parameter.requires_grad_(attends_context(name))
        self.conditioner.fmri.cls_token.requires_grad_(False)  # no class token here, so it would never get a gradient

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise loss of ``batch["image"]``, uint8 (B, 3, S, S), given ``batch["signal"]``, float32 (B, V)."""
        drop_B = keyed_drop(self.seed, "phase3/drop", batch, self.drop)
        condition = self.conditioner(adapted(self.adapters, batch), drop_B)
        return {"noise": noise_loss(self.codec, self.diffusion, condition, batch, self.seed, "phase3")}

    def parts(self) -> dict[str, nn.Module]:
        parts = {"unet": self.diffusion.unet, "first_stage": self.codec.vq, "conditioner": self.conditioner}
        return parts | ({PART: self.adapters} if self.adapters else {})

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images, and what one look at their half-noised latents makes of them, uint8."""
        condition = self.conditioner(adapted(self.adapters, batch))
        return denoise_once(self.codec, self.diffusion, condition, batch, self.seed)


def _load(module: nn.Module, folder: str, part: str) -> dict[str, list[str]]:
    """Fill a module that the part must fit; only position tables may have another length."""
    report = load_into(module, load_part(folder, part), what=f"{folder}: {part}")
    misfits = [name for name in report["missing"] + report["resized"] if not name.endswith("pos_embed")]
    if misfits:
        raise ConfigError(
            f"{folder}: part '{part}' does not fit this job's model ({misfits[0]}). Set model.* as there."
        )
    return report
