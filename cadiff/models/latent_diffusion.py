"""The latent diffusion UNet with its noise schedule and samplers, all from diffusers.

Source: Rombach et al. 2022 (cin256-v2). The context enters twice: through cross-attention, and, as in the paper's
double conditioning, as a vector added to the time embedding.

Legend: B latents, C channels, s latents per side, N context tokens, D context width, E width of the time embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from cadiff.attention import describe_attention
from cadiff.config import UNetModel
from cadiff.errors import ConfigError
from cadiff.models.first_stage import norm_groups, start_as_zero

SCHEDULERS = ("plms", "ddim", "dpm")


class LatentDiffusion(nn.Module):
    """Add noise to latents, and predict the noise that was added (or the velocity, which mixes noise and latents)."""

    def __init__(self, model: UNetModel, latent: int, *, checkpoint: bool = False) -> None:
        super().__init__()
        from diffusers import DDPMScheduler

        self.latent, self.patch = latent, model.patch
        self.unet = build_unet(model, latent * model.patch**2)
        if checkpoint:
            self.unet.enable_gradient_checkpointing()
        _choose_attention(self.unet)
        self.timesteps, self.predict = model.timesteps, model.predict
        self._noising = DDPMScheduler(**_schedule(model))

    def add_noise(self, latent_BCss: Tensor, noise_BCss: Tensor, time_B: Tensor) -> Tensor:
        """Latents at the noise level of ``time_B``, int64 in [0, timesteps)."""
        return self._noising.add_noise(latent_BCss, noise_BCss, time_B)

    def target(self, latent_BCss: Tensor, noise_BCss: Tensor, time_B: Tensor) -> Tensor:
        """What ``forward`` learns to say: the noise, or the velocity of Salimans and Ho 2022 (eq. 31, appendix D)."""
        if self.predict == "noise":
            return noise_BCss
        return self._noising.get_velocity(latent_BCss, noise_BCss, time_B)

    def clean(self, noisy_BCss: Tensor, predicted_BCss: Tensor, time_B: Tensor) -> Tensor:
        """The clean latents that a prediction implies."""
        kept_B111 = self._noising.alphas_cumprod.to(noisy_BCss)[time_B].view(-1, 1, 1, 1)
        if self.predict == "velocity":
            return kept_B111.sqrt() * noisy_BCss - (1 - kept_B111).sqrt() * predicted_BCss
        return (noisy_BCss - (1 - kept_B111).sqrt() * predicted_BCss) / kept_B111.sqrt()

    def forward(self, noisy_BCss: Tensor, time_B: Tensor, context_BND: Tensor, time_BE: Tensor) -> Tensor:
        """Predict the noise or velocity (B, C, s, s), given context tokens and a vector for the time embedding."""
        folded = self.unet(pixel_unshuffle(noisy_BCss, self.patch), time_B, context_BND, class_labels=time_BE).sample
        return pixel_shuffle(folded, self.patch)


def build_unet(model: UNetModel, channels: int) -> Any:
    """Build the UNet for inputs of ``channels`` channels.

    Raises:
        ConfigError: the heads do not divide the channels of a level that has attention.
    """
    from diffusers import UNet2DConditionModel

    attended = [count for count, attends in zip(model.channels, model.attention) if attends] + model.channels[-1:]
    uneven = [count for count in attended if count % model.heads]
    if uneven:
        raise ConfigError(
            f"model.heads = {model.heads} does not divide the {uneven[0]} channels of an attention level."
        )
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in model.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(model.attention)]
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(model.channels),
        layers_per_block=model.layers,
        norm_num_groups=norm_groups(model.channels),
        cross_attention_dim=model.context_width,
        attention_head_dim=model.heads,  # diffusers' name for the number of heads
        class_embed_type="identity",  # the conditioner's vector is added to the time embedding as it is
    )
    start_as_zero(unet, ".conv2.", ".proj_out.", ".conv_out.")
    return unet


def time_width(model: UNetModel) -> int:
    """Width of the time embedding, E."""
    return 4 * model.channels[0]


def make_scheduler(name: str, model: UNetModel) -> Any:
    """A fresh sampler: "plms" (the paper's, pseudo-linear multistep), "ddim" without noise, "dpm" (DPM-Solver++ 2M).

    All start at the same side of each interval as CompVis's: 250 steps of 1,000 are 1, 5, ..., 997.

    Raises:
        ConfigError: no such sampler.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

    if name not in SCHEDULERS:
        raise ConfigError(f"There is no sampler '{name}'. Choose one of {', '.join(SCHEDULERS)}.")
    leading = {"timestep_spacing": "leading", "steps_offset": 1, **_schedule(model)}
    if name == "plms":
        return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **leading)
    if name == "ddim":
        return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **leading)
    return DPMSolverMultistepScheduler(**leading)


def _choose_attention(unet: Any) -> None:
    """xformers or PyTorch's fused attention on a GPU, as cadiff.attention says; plain products on a CPU.

    On a CPU the backward of PyTorch's fused attention is slow for the short sequences of latents: a bfloat16 step of
    a small UNet took 11.5 ms an image with it and 9.2 ms without.
    """
    from diffusers.models.attention_processor import AttnProcessor

    if not torch.cuda.is_available():
        unet.set_attn_processor(AttnProcessor())
    elif describe_attention("cuda").startswith("xformers"):
        unet.enable_xformers_memory_efficient_attention()


def _schedule(model: UNetModel) -> dict[str, Any]:
    return {
        "num_train_timesteps": model.timesteps,
        "beta_start": model.beta_start,
        "beta_end": model.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon" if model.predict == "noise" else "v_prediction",
    }


def attends_context(name: str) -> bool:
    """True for the UNet parameters that phase 3 trains: cross-attention and the norm before it, as in the paper."""
    return ".transformer_blocks." in name and (".attn2." in name or ".norm2." in name)
