"""Phase 2's image branch as the paper's code computes it, plainly: a ViT-MAE whose encoder has cross layers.

Written from a description of that code, with its parameter names (Hugging Face's) and its costs: tokens are shuffled
even where nothing is hidden, attention holds its whole matrix of weights, and the map of the support is computed again
in every cross layer. It uses nothing of the package.

Legend: B samples, S pixels per side, L patches, K kept, N = 1 + K tokens, M tokens of the support, P values per patch,
D width, H heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from plain_phase1 import View
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class ImageSizes:
    """Of the image branch; defaults are facebook/vit-mae-base's, with six decoder layers as in the paper."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    decoder_width: int = 512
    decoder_depth: int = 6
    decoder_heads: int = 16
    decoder_hidden: int = 2048
    cross_layers: int = 3
    eps: float = 1e-12


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(0.0)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        source = x if support is None else support
        q_BHNE, k_BHME, v_BHME = self.split(self.query(x)), self.split(self.key(source)), self.split(self.value(source))
        scores_BHNM = torch.matmul(q_BHNE, k_BHME.transpose(-1, -2)) / q_BHNE.shape[-1] ** 0.5
        weights_BHNM = self.dropout(F.softmax(scores_BHNM, dim=-1))
        return torch.matmul(weights_BHNM, v_BHME).permute(0, 2, 1, 3).contiguous().flatten(2)


class Dense(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(wide, out), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.dense(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.output = SelfAttention(width, heads), Dense(width, width)

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        return self.output(self.attention(x, support))


class Layer(nn.Module):
    """A layer of ViT-MAE; with ``cross``, it attends to a support between self-attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, cross: bool = False) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads) if cross else None
        self.intermediate, self.output = Dense(width, hidden), Dense(hidden, width)
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(width, eps=eps) for _ in range(2))

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        attended = self.attention(self.layernorm_before(x))
        if self.cross_attention is not None:
            attended = self.cross_attention(self.layernorm_before(attended), support)
        x = attended + x
        return self.output(F.gelu(self.intermediate(self.layernorm_after(x)))) + x


class Embeddings(nn.Module):
    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        table = grid_positions(sizes.size // sizes.patch, sizes.width)
        self.position_embeddings = nn.Parameter(table, requires_grad=False)
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)

    def forward(self, pixels_BCSS: Tensor, view: View) -> Tensor:
        x_BLD = self.patch_embeddings.projection(pixels_BCSS).flatten(2).transpose(1, 2)
        x_BLD = x_BLD + self.position_embeddings[:, 1:]
        x_BKD = torch.gather(x_BLD, 1, view.ids_keep[:, :, None].repeat(1, 1, x_BLD.shape[2]))
        first_B1D = (self.cls_token + self.position_embeddings[:, :1]).expand(len(x_BKD), -1, -1)
        return torch.cat([first_B1D, x_BKD], dim=1)


class Encoder(nn.Module):
    def __init__(self, sizes: ImageSizes, support_width: int) -> None:
        super().__init__()
        plain = (sizes.width, sizes.heads, sizes.hidden, sizes.eps)
        self.layer = nn.ModuleList(Layer(*plain) for _ in range(sizes.depth))
        self.cross_map_in = nn.Linear(support_width, sizes.width)
        self.layer_cross = nn.ModuleList(Layer(*plain, cross=True) for _ in range(sizes.cross_layers))

    def forward(self, x: Tensor, support: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        if support is not None:
            for layer in self.layer_cross:
                x = layer(x, self.cross_map_in(support))
        return x


class Decoder(nn.Module):
    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        width = sizes.decoder_width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(grid_positions(sizes.size // sizes.patch, width))
        self.decoder_embed = nn.Linear(sizes.width, width)
        plain = (width, sizes.decoder_heads, sizes.decoder_hidden, sizes.eps)
        self.decoder_layers = nn.ModuleList(Layer(*plain) for _ in range(sizes.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, sizes.patch**2 * 3)

    def forward(self, latent_BND: Tensor, view: View) -> Tensor:
        x = self.decoder_embed(latent_BND)
        missing = view.ids_restore.shape[1] + 1 - x.shape[1]
        filled = torch.cat([x[:, 1:], self.mask_token.repeat(len(x), missing, 1)], dim=1)
        filled = torch.gather(filled, 1, view.ids_restore[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], filled], dim=1) + self.decoder_pos_embed
        for layer in self.decoder_layers:
            x = layer(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


class PlainImage(nn.Module):
    """The image autoencoder: all of its decoder is trained, its position table by accident, and its cross parts."""

    def __init__(self, sizes: ImageSizes, support_width: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.vit = nn.Module()
        self.vit.embeddings, self.vit.encoder = Embeddings(sizes), Encoder(sizes, support_width)
        self.vit.layernorm = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.decoder = Decoder(sizes)
        self.apply(draw)
        for token in (self.vit.embeddings.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=0.02)
        for name, parameter in self.vit.named_parameters():
            parameter.requires_grad_("cross" in name)

    def encode(self, pixels_BCSS: Tensor, view: View, support_BMD: Tensor | None = None) -> Tensor:
        return self.vit.layernorm(self.vit.encoder(self.vit.embeddings(pixels_BCSS, view), support_BMD))

    def decode(self, latent_BND: Tensor, view: View) -> Tensor:
        return self.decoder(latent_BND, view)


def draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def grid_positions(side: int, width: int) -> Tensor:
    """Of a grid row by row behind a row of zeros: sines and cosines of the column, then of the row."""
    rate = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    column, row = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    angles = [place.reshape(-1)[:, None] * rate for place in (column, row)]
    waves = [part for angle in angles for part in (np.sin(angle), np.cos(angle))]
    table = np.concatenate([np.zeros((1, width)), np.concatenate(waves, axis=1)])
    return torch.from_numpy(table).float()[None]


def cut(pixels_BCSS: Tensor, patch: int) -> Tensor:
    """Patches (B, L, P) row by row, each by row, column and colour."""
    batch, _, side, _ = pixels_BCSS.shape
    grid = pixels_BCSS.reshape(batch, 3, side // patch, patch, side // patch, patch)
    return torch.einsum("bchpwq->bhwpqc", grid).reshape(batch, -1, patch**2 * 3)


def extract(images_BSSC: Tensor, size: int) -> Tensor:
    """Images in [0, 1], float64, colour last, to normalised pixels float32 (B, 3, size, size), one after the other.

    What the paper's code means to do: as released it divides by 255 twice with most versions of its library.
    """
    rows = []
    for image in images_BSSC.numpy():
        picture = Image.fromarray((image * 255).round().astype(np.uint8)).resize((size, size), Image.BILINEAR)
        rows.append(((np.asarray(picture) / 255 - MEAN) / STD).transpose(2, 0, 1))
    return torch.tensor(np.stack(rows), dtype=torch.float32)
