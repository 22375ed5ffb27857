"""The pieces both autoencoders are made of: position tables, patch projection, and transformer layers.

Names of parameters are those of the paper's code, so that its weights load by name: the fMRI branch follows timm
(``attn.qkv``, ``mlp.fc1``), the image branch and the cross layers follow Hugging Face's ViT-MAE
(``attention.attention.query``, ``intermediate.dense``).

Legend: B records, V values of a record, P values per patch, L patches, K kept, N tokens, M memory tokens, T tokens of
records laid end to end, D width, H heads, E width of one head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from cadiff.attention import attention, attention_packed
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.kernels.patch_embed import masked_patch_embed
from cadiff.lean import LeanLinear, LeanNorm, Rows, gelu

VIT_EPS = 1e-12  # LayerNorm of facebook/vit-mae-base; the fMRI blocks keep torch's 1e-5


def sincos_positions(length: int, width: int) -> Tensor:
    """Fixed positions 0..length-1 behind a zero row for the class token: float32 (1, length + 1, width).

    The left half of the width holds sines, the right half cosines, of wavelengths growing up to 10,000 * 2 pi
    (Vaswani et al., 2017).

    Raises:
        ConfigError: the width is odd.
    """
    if width % 2:
        raise ConfigError(f"Sine and cosine positions need an even width, not {width}. Change model.width or its like.")
    return _behind_class_row(_waves(torch.arange(length, dtype=torch.float64), width))


def sincos_positions_2d(side: int, width: int) -> Tensor:
    """Fixed positions of a square grid of patches, row by row: float32 (1, side * side + 1, width).

    The left half of the width encodes the column and the right half the row, as in ViT-MAE (He et al., 2022).

    Raises:
        ConfigError: the width is no multiple of four.
    """
    if width % 4:
        raise ConfigError(
            f"Two-dimensional positions need a width that is a multiple of 4, not {width}. Change image.*."
        )
    place = torch.arange(side, dtype=torch.float64)
    row, column = torch.meshgrid(place, place, indexing="ij")
    both = torch.cat([_waves(column.flatten(), width // 2), _waves(row.flatten(), width // 2)], dim=1)
    return _behind_class_row(both)


def _waves(place_L: Tensor, width: int) -> Tensor:
    rate = torch.exp(torch.arange(width // 2, dtype=torch.float64) * (-2 * math.log(10000.0) / width))
    angle = place_L[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _behind_class_row(table_LD: Tensor) -> Tensor:
    return F.pad(table_LD, (0, 0, 1, 0)).to(torch.float32)[None]


def nothing_hidden(batch: int, length: int, device: torch.device) -> Masking:
    """Keep every patch, in its own order."""
    order_BL = torch.arange(length, device=device).expand(batch, length)
    return Masking(order_BL, order_BL, torch.zeros(batch, length, device=device))


def with_mask_tokens(tokens_BND: Tensor, mask_token: Tensor, restore_BL: Tensor) -> Tensor:
    """Put a mask token at every hidden patch and all patches back in order.

    Args:
        tokens_BND: class token, then the K kept patches.
        mask_token: (1, 1, D).
        restore_BL: see ``Masking``.

    Returns:
        (B, 1 + L, D).
    """
    batch, count, width = tokens_BND.shape
    hidden = restore_BL.shape[1] + 1 - count
    patches_BLD = torch.cat([tokens_BND[:, 1:], mask_token.expand(batch, hidden, width)], dim=1)
    ordered_BLD = patches_BLD.gather(1, restore_BL[:, :, None].expand(-1, -1, width))
    return torch.cat([tokens_BND[:, :1], ordered_BLD], dim=1)


def run_layers(layers: Iterable[nn.Module], tokens_BND: Tensor, *beside: object, checkpoint: bool) -> Tensor:
    """Apply layers one after the other; with ``checkpoint`` their insides are computed again in backward.

    Args: ``beside``: what each layer takes beside its tokens: a memory, or the lengths of packed sequences.
    """
    for layer in layers:
        if checkpoint and torch.is_grad_enabled():
            tokens_BND = recompute(layer, tokens_BND, *beside, use_reentrant=False)
        else:
            tokens_BND = layer(tokens_BND, *beside)
    return tokens_BND


def check_heads(width: int, heads: int, where: str) -> None:
    """Raise ConfigError unless ``heads`` divides ``width``."""
    if width % heads:
        raise ConfigError(f"{where}: {heads} heads do not divide a width of {width}. Choose a divisor of {width}.")


class PatchProjection(nn.Module):
    """Project the kept patches to tokens; the weight has a convolution's shape, whose stride is its kernel."""

    def __init__(self, width: int, *patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, *patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, signal: Tensor, keep_BK: Tensor, position_LD: Tensor) -> Tensor:
        """Give (B, K, D): each kept patch of signals (B, V) or images (B, C, H, W) projected, plus its position."""
        weight = self.weight
        flat = weight.flatten(1) if signal.ndim == 2 else weight.view(*weight.shape[:2], -1, weight.shape[-1])
        return masked_patch_embed(signal, keep_BK, flat, self.bias, position_LD)


class Attention(nn.Module):
    """Self-attention with one fused projection (timm's names)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = LeanLinear(width, 3 * width)
        self.proj = LeanLinear(width, width)

    def forward(self, tokens_BND: Rows, lengths: Sequence[int] | None = None) -> Tensor:
        """Mix tokens (B, N, D); or, given the lengths of sequences that lie end to end, (T, D) within each."""
        qkv = self.qkv(tokens_BND).unflatten(-1, (3, self.heads, -1))
        if lengths is not None:
            return self.proj(attention_packed(*qkv.unbind(1), lengths).flatten(1))
        query_BHNE, key_BHNE, value_BHNE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(query_BHNE, key_BHNE, value_BHNE).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = LeanLinear(width, hidden)
        self.fc2 = LeanLinear(hidden, width)

    def forward(self, tokens_BND: Rows) -> Tensor:
        return self.fc2(gelu(self.fc1(tokens_BND)))


class Block(nn.Module):
    """A pre-norm transformer block of the fMRI branch; packed tokens (T, D) come with the lengths of sequences."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LeanNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = LeanNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens_BND: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        tokens_BND = tokens_BND + self.attn(self.norm1(tokens_BND), lengths)
        return tokens_BND + self.mlp(self.norm2(tokens_BND))


class Dense(nn.Module):
    """One linear layer under the name ``dense``, where Hugging Face has such a holder."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = LeanLinear(width_in, width_out)

    def forward(self, tokens_BND: Rows) -> Tensor:
        return self.dense(tokens_BND)


class SplitAttention(nn.Module):
    """Attention of tokens to a memory, with separate query, key and value projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = LeanLinear(width, width)
        self.key = LeanLinear(width, width)
        self.value = LeanLinear(width, width)

    def forward(self, tokens_BND: Rows, memory_BMD: Rows) -> Tensor:
        mixed_BHNE = attention(
            self._split(self.query(tokens_BND)), self._split(self.key(memory_BMD)), self._split(self.value(memory_BMD))
        )
        return mixed_BHNE.transpose(1, 2).flatten(2)

    def _split(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND.unflatten(2, (self.heads, -1)).transpose(1, 2)


class VitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SplitAttention(width, heads)
        self.output = Dense(width, width)

    def forward(self, tokens_BND: Rows, memory_BMD: Rows) -> Tensor:
        return self.output(self.attention(tokens_BND, memory_BMD))


class VitLayer(nn.Module):
    """A pre-norm transformer layer of the image branch."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = VitAttention(width, heads)
        self.intermediate = Dense(width, hidden)
        self.output = Dense(hidden, width)
        self.layernorm_before = LeanNorm(width, eps=VIT_EPS)
        self.layernorm_after = LeanNorm(width, eps=VIT_EPS)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        normal_BND = self.layernorm_before(tokens_BND)
        return self._mlp(tokens_BND + self.attention(normal_BND, normal_BND))

    def _mlp(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND + self.output(gelu(self.intermediate(self.layernorm_after(tokens_BND))))


class CrossLayer(VitLayer):
    """A layer whose tokens also attend to a memory from the other branch (paper section 3.2).

    The paper's code adds no residual after self-attention, and uses ``layernorm_before`` a second time for the query
    of cross-attention; both are kept for the sake of its weights.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, heads, hidden)
        self.cross_attention = VitAttention(width, heads)

    def forward(self, tokens_BND: Tensor, memory_BMD: Tensor) -> Tensor:
        normal_BND = self.layernorm_before(tokens_BND)
        query_BND = self.layernorm_before(self.attention(normal_BND, normal_BND))
        return self._mlp(tokens_BND + self.cross_attention(query_BND, memory_BMD))
