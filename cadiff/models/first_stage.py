"""The first stage: a vector-quantised autoencoder between images and the small latents the diffusion works in.

Source: Esser et al. 2021 (VQGAN) and Rombach et al. 2022 (VQ-f4), as diffusers' ``VQModel``; without the adversary.
Latents are used as they come: their scale factor is 1, as in the paper, not the 0.18215 that diffusers presumes.

Legend: B images, C latent channels, S pixels per side, s = S / shrink latents per side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint as recompute

from cadiff.config import FirstStageModel

_WIDEST_GROUPS = 32  # of the paper's networks, whose narrowest group holds four channels


class Coded(NamedTuple):
    """Latents moved to their nearest codes.

    ``latent_BCss`` carries the gradient of the unmoved latents; ``code`` and ``commit`` are the mean squared distances
    that move the codes to the latents and the latents to their codes.
    """

    latent_BCss: Tensor
    code: Tensor
    commit: Tensor


class ImageCodec(nn.Module):
    """Encode images to continuous latents, and decode latents through their nearest codes.

    Fresh codes are standard normal, the scale at which the diffusion expects latents.
    """

    def __init__(self, model: FirstStageModel, *, checkpoint: bool = False) -> None:
        super().__init__()
        from diffusers import VQModel

        levels = len(model.channels)
        self.vq = VQModel(
            in_channels=3 * model.patch**2,
            out_channels=3 * model.patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(model.channels),
            layers_per_block=model.layers,
            latent_channels=model.latent,
            num_vq_embeddings=model.codes,
            norm_num_groups=norm_groups(model.channels),
            scaling_factor=1.0,
            mid_block_add_attention=model.attention,
        )
        start_as_zero(self.vq, ".conv2.", ".to_out.0.")
        nn.init.normal_(self.vq.quantize.embedding.weight)
        self.patch, self.shrink = model.patch, model.patch * 2 ** (levels - 1)
        self.checkpoint = checkpoint

    def encode(self, image_B3SS: Tensor) -> Tensor:
        """Latents float (B, C, s, s), before quantisation, of images float in [-1, 1]."""
        return self._run(lambda image: self.vq.encode(pixel_unshuffle(image, self.patch)).latents, image_B3SS)

    def quantise(self, latent_BCss: Tensor) -> Coded:
        """Move every latent to its nearest code, in float32 whatever the autocast type."""
        with torch.autocast(latent_BCss.device.type, enabled=False):
            latent_BssC = latent_BCss.float().movedim(1, -1)
            nearest_BssC = self._nearest(latent_BssC)
            code = (nearest_BssC - latent_BssC.detach()).square().mean()
            commit = (latent_BssC - nearest_BssC.detach()).square().mean()
            moved_BssC = latent_BssC + (nearest_BssC - latent_BssC).detach()
            return Coded(moved_BssC.movedim(-1, 1), code, commit)

    def _nearest(self, latent_BssC: Tensor) -> Tensor:
        """The code nearest to each latent. Codes are read through the embedding's forward, which ZeRO-3 relies on."""
        embedding = self.vq.quantize.embedding
        with torch.no_grad():
            codes_NC = embedding(torch.arange(embedding.num_embeddings, device=latent_BssC.device))
            index = torch.cdist(latent_BssC.flatten(0, 2), codes_NC).argmin(dim=1)
        return embedding(index).view_as(latent_BssC)

    def decode(self, latent_BCss: Tensor) -> Tensor:
        """Images float (B, 3, S, S), about [-1, 1], of the codes nearest to the latents."""
        return self.decode_codes(self.quantise(latent_BCss).latent_BCss)

    def decode_codes(self, coded_BCss: Tensor) -> Tensor:
        """Images of latents that lie on codes already."""
        folded = self._run(lambda coded: self.vq.decode(coded, force_not_quantize=True).sample, coded_BCss)
        return pixel_shuffle(folded, self.patch)

    def _run(self, half: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Run the encoder or the decoder, keeping its insides for backward or computing them again."""
        if self.checkpoint and torch.is_grad_enabled():
            return recompute(half, values, use_reentrant=False)
        return half(values)


def start_as_zero(network: nn.Module, *layers: str) -> None:
    """Zero the layers that end residual branches, so that a fresh network starts as its skip connections.

    CompVis's UNet starts so and diffusers' networks do not; short trainings gain much from it.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(layer in f".{name}" for layer in layers):
                parameter.zero_()


def norm_groups(channels: list[int]) -> int:
    """Groups of the group norms: the paper's 32 where the network is wide enough, else with 8 channels or more each.

    A group of one or two channels would normalise the brightness and colour of the whole picture away.
    """
    for groups in (_WIDEST_GROUPS, 16, 8, 4, 2):
        wide_enough = min(channels) >= (4 if groups == _WIDEST_GROUPS else 8) * groups
        if wide_enough and all(count % groups == 0 for count in channels):
            return groups
    return 1


def to_unit(image_B3SS: Tensor) -> Tensor:
    """Images uint8 as float32 in [-1, 1]."""
    # A batch may hold colour last in memory, as pictures are decoded; networks get one layout, whatever the source.
    return image_B3SS.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1.0


def to_bytes(image_B3SS: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, clamped and rounded."""
    return ((image_B3SS.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
