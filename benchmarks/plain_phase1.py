"""Phase 1 as the paper's code computes it, plainly: what our own phase 1 is compared with, in numbers and in speed.

Written from a description of that code, with its parameter names and its costs: a convolution embeds all patches before
most of them are dropped, the two views go through the network one after the other, and attention holds its whole
matrix of weights. plain_trainer.py trains it as that code does. Both use nothing of the package.

Legend: B samples, V voxels, L patches, K kept, N = 1 + K tokens, P voxels per patch, D width, H heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Sizes:
    """Of the network; defaults are the paper's."""

    voxels: int = 4192
    patch: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mlp_ratio: float = 1.0


@dataclass(frozen=True)
class Terms:
    """Which terms the loss has and their weights, under the names of the paper's code, with its defaults."""

    do_mask_loss: bool = False
    do_self_contrast: bool = False
    do_cross_contrast: bool = False
    sep_loss: bool = False  # inside the cross-contrast, the second view is contrasted with the input too
    negative_mode: str = "unpaired"  # "paired": for the self-contrast, negatives are the other samples' predictions
    mask_loss_weight: float = 0.5
    contrastive_loss_weight: float = 0.5
    self_contrast_loss_weight: float = 0.5
    cross_contrast_loss_weight: float = 0.5


@dataclass(frozen=True)
class View:
    """A mask: int64 ids (B, K) and (B, L), and float32 (B, L) with 1 where a patch is removed."""

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor

    @classmethod
    def drawn(cls, batch: int, length: int, ratio: float) -> View:
        """As the network draws it at every step."""
        return cls.of_noise(torch.rand(batch, length), ratio)

    @classmethod
    def of_noise(cls, noise_BL: Tensor, ratio: float) -> View:
        kept = int(noise_BL.shape[1] * (1 - ratio))
        ids_shuffle = torch.argsort(noise_BL, dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        mask = torch.ones_like(noise_BL)
        mask[:, :kept] = 0
        return cls(ids_shuffle[:, :kept], ids_restore, torch.gather(mask, 1, ids_restore))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q_BHNE, k_BHNE, v_BHNE = qkv.unbind(0)
        weights_BHNN = self.attn_drop(((q_BHNE @ k_BHNE.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((weights_BHNN @ v_BHNE).transpose(1, 2).reshape(batch, count, width)))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(width, hidden), nn.GELU()
        self.fc2, self.drop = nn.Linear(hidden, width), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(width), Attention(width, heads), nn.Identity()
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv1d(1, width, kernel_size=patch, stride=patch)

    def forward(self, x_B1V: Tensor) -> Tensor:
        return self.proj(x_B1V).transpose(1, 2).contiguous()


class PlainMae(nn.Module):
    """The masked autoencoder, its losses included."""

    def __init__(self, sizes: Sizes, terms: Terms) -> None:
        super().__init__()
        self.sizes, self.terms = sizes, terms
        width, narrow, length = sizes.width, sizes.decoder_width, sizes.voxels // sizes.patch
        self.patch_embed = PatchEmbed(width, sizes.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(positions(length, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed = nn.Parameter(positions(length, narrow), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(narrow, sizes.decoder_heads, sizes.mlp_ratio) for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(narrow)
        self.decoder_pred = nn.Linear(narrow, sizes.patch)
        self.apply(draw)
        for token in (self.cls_token, self.mask_token, self.patch_embed.proj.weight):
            nn.init.normal_(token, std=0.02)

    def encode(self, x_B1V: Tensor, view: View) -> Tensor:
        x_BLD = self.patch_embed(x_B1V) + self.pos_embed[:, 1:]
        x_BKD = torch.gather(x_BLD, 1, view.ids_keep[:, :, None].repeat(1, 1, x_BLD.shape[2]))
        first_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(len(x_BKD), -1, -1)
        x_BND = torch.cat([first_B1D, x_BKD], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)

    def decode(self, latent_BND: Tensor, view: View) -> Tensor:
        x = self.decoder_embed(latent_BND)
        missing = view.ids_restore.shape[1] + 1 - x.shape[1]
        filled = torch.cat([x[:, 1:], self.mask_token.repeat(len(x), missing, 1)], dim=1)
        filled = torch.gather(filled, 1, view.ids_restore[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], filled], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def predict(self, x_B1V: Tensor, view: View) -> Tensor:
        """Predicted patches (B, L, P)."""
        return self.decode(self.encode(x_B1V, view), view)

    def forward(self, x_B1V: Tensor, views: list[View]) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of signals float32 (B, 1, V), and the first view's prediction (B, L, P).

        Returns:
            "loss", "contrast" (weighted, without its common factor), "mask", and unweighted "self", "cross" and
            "self_view1" where they are in the loss.
        """
        pred_BLP, terms, signal_BV = self.predict(x_B1V, views[0]), self.terms, x_B1V.flatten(1)
        zero, first_BV = x_B1V.new_zeros(()), pred_BLP.flatten(1)
        told = {"mask": masked_error(pred_BLP, x_B1V.view(pred_BLP.shape), views[0].mask), "contrast": zero}
        if terms.do_self_contrast and len(x_B1V) > 1:
            told["self"] = (
                paired_nce(first_BV, signal_BV) if terms.negative_mode == "paired" else nce(first_BV, signal_BV)
            )
            told["contrast"] = told["contrast"] + terms.self_contrast_loss_weight * told["self"]
        if terms.do_cross_contrast:
            second_BV = self.predict(x_B1V, views[1]).flatten(1)
            told["cross"] = nce(first_BV, second_BV)
            told["contrast"] = told["contrast"] + terms.cross_contrast_loss_weight * told["cross"]
            if terms.sep_loss:
                told["self_view1"] = nce(second_BV, signal_BV)
                told["contrast"] = told["contrast"] + terms.self_contrast_loss_weight * told["self_view1"]
        rebuild = terms.mask_loss_weight * told["mask"] if terms.do_mask_loss else zero
        return {"loss": rebuild + terms.contrastive_loss_weight * told["contrast"], **told}, pred_BLP


def positions(length: int, width: int) -> Tensor:
    """Sines, then cosines, of places 0 to length - 1 behind a row of zeros: float32 (1, 1 + length, width)."""
    rate = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float32) / (width / 2.0))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, 0, 1, 0))[None]


def draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.zeros_(module.bias)


def masked_error(pred_BLP: Tensor, target_BLP: Tensor, mask_BL: Tensor) -> Tensor:
    error_BL = ((pred_BLP - target_BLP) ** 2).mean(dim=-1) * mask_BL
    return error_BL.sum() / mask_BL.sum() if mask_BL.sum() != 0 else error_BL.sum()


def nce(rows_BV: Tensor, keys_BV: Tensor) -> Tensor:
    """Each row chooses its own key among all."""
    logits_BB = F.normalize(rows_BV, dim=-1) @ F.normalize(keys_BV, dim=-1).T
    return F.cross_entropy(logits_BB / TEMPERATURE, torch.arange(len(rows_BV), device=rows_BV.device))


def paired_nce(rows_BV: Tensor, keys_BV: Tensor) -> Tensor:
    """Each row chooses its own key among that and the other rows: the negatives are copied out, O(B^2 V)."""
    batch = len(rows_BV)
    rows_BV, keys_BV = F.normalize(rows_BV, dim=-1), F.normalize(keys_BV, dim=-1)
    others_BCV = torch.stack([torch.cat([rows_BV[:i], rows_BV[i + 1 :]]) for i in range(batch)])
    own_B1 = (rows_BV * keys_BV).sum(dim=1, keepdim=True)
    logits_BB = torch.cat([own_B1, (rows_BV[:, None] @ others_BCV.transpose(1, 2))[:, 0]], dim=1)
    return F.cross_entropy(logits_BB / TEMPERATURE, torch.zeros(batch, dtype=torch.int64, device=rows_BV.device))
