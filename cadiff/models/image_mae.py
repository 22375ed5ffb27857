"""Masked autoencoder for images: ViT-MAE (He et al. 2022) under the names of Hugging Face's weights.

Legend: B records, C = 3 colours, S pixels per side, G = S / p patches per side, L = G * G patches, K kept,
N = 1 + K tokens, M memory tokens, P = p * p * 3 values per patch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadiff.config import ImageModel
from cadiff.errors import ConfigError, DataError
from cadiff.kernels.mask import Masking
from cadiff.layers import (
    VIT_EPS,
    PatchProjection,
    VitLayer,
    check_heads,
    nothing_hidden,
    run_layers,
    sincos_positions_2d,
    with_mask_tokens,
)

# Channel statistics of ImageNet, which facebook/vit-mae-base was trained with; for pixels in [0, 1].
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
LEAST_SPREAD = 0.1  # of normalised pixels; photos have about 1, those scaled down by 255 twice 0.004


def normalise_image(image_BCSS: Tensor) -> Tensor:
    """Bring uint8 images to the scale the network was pre-trained with: float32, each colour about mean 0, std 1.

    Only uint8 is taken, so that an image can never be rescaled twice (which turns every picture into one colour).

    Raises:
        TypeError: the image is not uint8.
        ValueError: it is not (B, 3, S, S), as where colours lie last.
    """
    if image_BCSS.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images, found {image_BCSS.dtype}")
    if image_BCSS.ndim != 4 or image_BCSS.shape[1] != 3 or image_BCSS.shape[2] != image_BCSS.shape[3]:
        raise ValueError(f"expected images (B, 3, S, S), colours before rows, found {tuple(image_BCSS.shape)}")
    mean, std = _channel_statistics(image_BCSS.device)
    # A batch may hold colour last in memory, as pictures are decoded; networks get one layout, whatever the source.
    return (image_BCSS.to(torch.float32, memory_format=torch.contiguous_format) / 255 - mean) / std


def restore_image(pixels_BCSS: Tensor) -> Tensor:
    """The way back from ``normalise_image``: uint8, rounded and clipped."""
    mean, std = _channel_statistics(pixels_BCSS.device)
    return ((pixels_BCSS.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def check_contrast(image_BCSS: Tensor, what: str) -> None:
    """Refuse uint8 pictures that hold next to nothing when taken together.

    Raises:
        DataError: the standard deviation of every colour, normalised, is at most ``LEAST_SPREAD``.
    """
    spread_C = normalise_image(image_BCSS).transpose(0, 1).flatten(1).std(dim=1, unbiased=False)
    if (spread_C <= LEAST_SPREAD).all():
        raise DataError(
            f"{what}: the colours of {len(image_BCSS)} normalised pictures have standard deviations of "
            f"{', '.join(f'{value:.3f}' for value in spread_C.tolist())}; photos have about 1. They were scaled twice, "
            "such as divided by 255 before they were made whole numbers, or are all one colour. Pack the originals."
        )


def _channel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return (torch.tensor(values, device=device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))


def image_patches(pixels_BCSS: Tensor, patch: int) -> Tensor:
    """Cut images into patches (B, L, P), row by row; within a patch row, column, then colour: the decoder's order."""
    grid = pixels_BCSS.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def image_from_patches(patches_BLP: Tensor, patch: int) -> Tensor:
    """The way back from ``image_patches``: (B, 3, S, S)."""
    side = round(patches_BLP.shape[1] ** 0.5)
    grid = patches_BLP.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class PatchEmbeddings(nn.Module):
    """Holds the projection under its Hugging Face name."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.projection = PatchProjection(width, 3, patch, patch)

    def forward(self, pixels_BCSS: Tensor, keep_BK: Tensor, position_LD: Tensor) -> Tensor:
        return self.projection(pixels_BCSS, keep_BK, position_LD)


class Embeddings(nn.Module):
    """Pixels to tokens of the kept patches, class token first."""

    def __init__(self, image: ImageModel, side: int) -> None:
        super().__init__()
        self.length = side * side
        self.cls_token = nn.Parameter(torch.empty(1, 1, image.width))
        self.register_buffer("position_embeddings", sincos_positions_2d(side, image.width))
        self.patch_embeddings = PatchEmbeddings(image.width, image.patch)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, pixels_BCSS: Tensor, masking: Masking | None) -> Tensor:
        if masking is None:
            masking = nothing_hidden(len(pixels_BCSS), self.length, pixels_BCSS.device)
        tokens_BKD = self.patch_embeddings(pixels_BCSS, masking.keep_BK, self.position_embeddings[0, 1:])
        first_11D = self.cls_token + self.position_embeddings[:, :1]
        return torch.cat([first_11D.expand(len(tokens_BKD), -1, -1), tokens_BKD], dim=1)


class VitEncoder(nn.Module):
    def __init__(self, image: ImageModel, *, checkpoint: bool) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.layer = nn.ModuleList(VitLayer(image.width, image.heads, image.mlp_width) for _ in range(image.depth))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return run_layers(self.layer, tokens_BND, checkpoint=self.checkpoint)


class Vit(nn.Module):
    """Embeddings, encoder and final LayerNorm."""

    def __init__(self, image: ImageModel, side: int, encoder: VitEncoder) -> None:
        super().__init__()
        self.embeddings = Embeddings(image, side)
        self.encoder = encoder
        self.layernorm = nn.LayerNorm(image.width, eps=VIT_EPS)

    def forward(self, pixels_BCSS: Tensor, masking: Masking | None = None, *memory: Tensor) -> Tensor:
        """Tokens (B, 1 + K, D) of normalised pixels; ``memory`` goes to an encoder with cross-attention."""
        return self.layernorm(self.encoder(self.embeddings(pixels_BCSS, masking), *memory))


class Decoder(nn.Module):
    """Predict the pixels of every patch from the tokens of the kept ones."""

    def __init__(self, image: ImageModel, side: int, *, checkpoint: bool) -> None:
        super().__init__()
        width = image.decoder_width
        self.checkpoint = checkpoint
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        positions_1ND = sincos_positions_2d(side, width)
        if image.train_positions:
            self.decoder_pos_embed = nn.Parameter(positions_1ND)
        else:
            self.register_buffer("decoder_pos_embed", positions_1ND)
        self.decoder_embed = nn.Linear(image.width, width)
        self.decoder_layers = nn.ModuleList(
            VitLayer(width, image.decoder_heads, image.decoder_mlp_width) for _ in range(image.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width)  # torch's eps here, as in the paper's code
        self.decoder_pred = nn.Linear(width, image.patch * image.patch * 3)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens_BND: Tensor, masking: Masking) -> Tensor:
        tokens_BND = with_mask_tokens(self.decoder_embed(tokens_BND), self.mask_token, masking.restore_BL)
        tokens_BND = run_layers(self.decoder_layers, tokens_BND + self.decoder_pos_embed, checkpoint=self.checkpoint)
        return self.decoder_pred(self.decoder_norm(tokens_BND))[:, 1:]


class ImageMae(nn.Module):
    """The autoencoder: encode what is visible of an image, rebuild all of it.

    Args:
        image: sizes.
        image_size: pixels per side, a multiple of ``image.patch``.
        encoder: another encoder than the plain one, with the same sizes.
        checkpoint: compute the layers again in backward instead of keeping their insides.

    Raises:
        ConfigError: the patch does not divide the image, or the heads do not divide a width.
    """

    def __init__(
        self, image: ImageModel, image_size: int, *, encoder: VitEncoder | None = None, checkpoint: bool = False
    ) -> None:
        super().__init__()
        if image_size % image.patch:
            raise ConfigError(
                f"Images of {image_size} pixels do not divide into patches of {image.patch}. "
                "Change data.image_size or image.patch."
            )
        check_heads(image.width, image.heads, "image.heads")
        check_heads(image.decoder_width, image.decoder_heads, "image.decoder_heads")
        side = image_size // image.patch
        self.patch, self.length = image.patch, side * side
        self.vit = Vit(image, side, encoder or VitEncoder(image, checkpoint=checkpoint))
        self.decoder = Decoder(image, side, checkpoint=checkpoint)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, pixels_BCSS: Tensor, masking: Masking, *memory: Tensor) -> Tensor:
        """Rebuild normalised pixels float (B, 3, S, S) from their kept patches: predicted patches (B, L, P)."""
        return self.decoder(self.vit(pixels_BCSS, masking, *memory), masking)
