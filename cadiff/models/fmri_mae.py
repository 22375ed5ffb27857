"""Masked autoencoder for one-dimensional fMRI: hide most patches, rebuild the signal.

Source: He et al. 2022 (MAE), applied to voxels by Chen et al. 2023 (MinD-Vis). The networks know nothing of losses,
and masks are drawn outside and passed in. A sample is one frame, or a clip of several: then a patch is some voxels of
some frames, and patches are numbered span of frames by span of frames.

Legend: B records, F frames, V voxels, P values per patch, L patches, K kept, N = 1 + K tokens, S spans of frames,
D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadiff.config import FmriModel
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.layers import (
    Block,
    PatchProjection,
    check_heads,
    nothing_hidden,
    run_layers,
    sincos_positions,
    with_mask_tokens,
)


class PatchEmbed(nn.Module):
    """Holds the projection under its name in the paper's weights, ``patch_embed.proj``.

    Its weight is (D, 1, voxels), as the paper's, or (D, 1, frames, voxels) for patches of several frames.
    """

    def __init__(self, width: int, patch: int, frames: int) -> None:
        super().__init__()
        self.proj = PatchProjection(width, 1, patch) if frames == 1 else PatchProjection(width, 1, frames, patch)

    def forward(self, signal_BV: Tensor, keep_BK: Tensor, position_LD: Tensor) -> Tensor:
        # A clip (B, F, V) is an image of one channel, with a row for each frame.
        return self.proj(signal_BV if signal_BV.ndim == 2 else signal_BV[:, None], keep_BK, position_LD)


class FmriEncoder(nn.Module):
    """Turn the visible patches of a signal into tokens. Phases 2 and 3 inherit this network.

    Args:
        model: sizes.
        voxels: length of a signal, a multiple of ``model.patch``.
        frames: of a sample, a multiple of ``model.patch_frames``.
        checkpoint: compute the blocks again in backward instead of keeping their insides.

    Attributes:
        patch: voxels of a patch.
        places: patches side by side, of the same frames.
        spans: patches one after the other, of the same voxels.
        length: all patches of a sample, places * spans.

    Raises:
        ConfigError: the patch does not divide the signal or the clip, or the heads do not divide a width.
    """

    def __init__(self, model: FmriModel, voxels: int, frames: int = 1, *, checkpoint: bool = False) -> None:
        super().__init__()
        if voxels < model.patch or voxels % model.patch:
            raise ConfigError(
                f"A signal of {voxels} voxels does not divide into patches of {model.patch}. "
                "Pad the signal to a multiple of model.patch, or change model.patch."
            )
        if frames % model.patch_frames:
            raise ConfigError(
                f"A clip of {frames} frames does not divide into patches of {model.patch_frames}. "
                "Make data.clip_frames a multiple of model.patch_frames; both are 1 for single frames."
            )
        check_heads(model.width, model.heads, "model.heads")
        self.patch, self.places, self.spans = model.patch, voxels // model.patch, frames // model.patch_frames
        self.length, self.checkpoint = self.places * self.spans, checkpoint
        self.cls_token = nn.Parameter(torch.empty(1, 1, model.width))
        self.register_buffer("pos_embed", clip_positions(self.places, self.spans, model.width))
        self.patch_embed = PatchEmbed(model.width, model.patch, model.patch_frames)
        self.blocks = nn.ModuleList(Block(model.width, model.heads, model.mlp_ratio) for _ in range(model.depth))
        self.norm = nn.LayerNorm(model.width)
        nn.init.normal_(self.cls_token, std=0.02)
        draw_linear(self.blocks)

    def forward(self, signal_BV: Tensor, masking: Masking | None = None, cls: bool = True) -> Tensor:
        """Encode the kept patches of signals float (B, V), or clips (B, F, V).

        Args:
            signal_BV: z-scored signals.
            masking: the patches to keep; None keeps all, in order.
            cls: put the class token first. Phase 3 conditions on patches only.

        Returns:
            tokens (B, [1 +] K, D) in the order of ``masking.keep_BK``.
        """
        return self.norm(self.hidden(signal_BV, masking, cls))

    def hidden(self, signal_BV: Tensor, masking: Masking | None = None, cls: bool = True) -> Tensor:
        """Like ``forward``, before the final LayerNorm."""
        if masking is None:
            masking = nothing_hidden(len(signal_BV), self.length, signal_BV.device)
        return run_layers(self.blocks, self.embed(signal_BV, masking, cls), checkpoint=self.checkpoint)

    def embed(self, signal_BV: Tensor, masking: Masking, cls: bool = True) -> Tensor:
        """Tokens (B, [1 +] K, D) of the kept patches as they enter the blocks.

        A signal may be shorter than the network's own length: it has the first of its positions.
        """
        length = masking.hidden_BL.shape[1]
        tokens_BND = self.patch_embed(signal_BV, masking.keep_BK, self.pos_embed[0, 1 : 1 + length])
        if not cls:
            return tokens_BND
        first_11D = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first_11D.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)


class FmriMae(FmriEncoder):
    """The autoencoder: encode what is visible, rebuild the whole signal."""

    def __init__(self, model: FmriModel, voxels: int, frames: int = 1, *, checkpoint: bool = False) -> None:
        super().__init__(model, voxels, frames, checkpoint=checkpoint)
        check_heads(model.decoder_width, model.decoder_heads, "model.decoder_heads")
        width, heads = model.decoder_width, model.decoder_heads
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("decoder_pos_embed", clip_positions(self.places, self.spans, width))
        self.decoder_embed = nn.Linear(model.width, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, model.mlp_ratio) for _ in range(model.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, model.patch_frames * model.patch)
        nn.init.normal_(self.mask_token, std=0.02)
        draw_linear(self.decoder_embed, self.decoder_blocks, self.decoder_pred)

    def forward(self, signal_BV: Tensor, masking: Masking) -> Tensor:
        """Rebuild signals float (B, V) or clips (B, F, V) from their kept patches: predicted patches (B, L, P)."""
        return self.decode(self.encode(signal_BV, masking), masking)

    def encode(self, signal_BV: Tensor, masking: Masking | None = None) -> Tensor:
        """Tokens (B, 1 + K, D) of the kept patches; of all patches without a masking."""
        return FmriEncoder.forward(self, signal_BV, masking)

    def decode(self, tokens_BND: Tensor, masking: Masking) -> Tensor:
        """Predict every patch (B, L, P) from the tokens of the kept ones."""
        tokens_BND = self.placed(self.decoder_embed(tokens_BND), masking)
        tokens_BND = run_layers(self.decoder_blocks, tokens_BND, checkpoint=self.checkpoint)
        return self.decoder_pred(self.decoder_norm(tokens_BND))[:, 1:]

    def placed(self, tokens_BND: Tensor, masking: Masking) -> Tensor:
        """The decoder's tokens (B, 1 + L, D): those of kept patches at their places, mask tokens at the others."""
        tokens_BND = with_mask_tokens(tokens_BND, self.mask_token, masking.restore_BL)
        return tokens_BND + self.decoder_pos_embed[:, : tokens_BND.shape[1]]


def clip_positions(places: int, spans: int, width: int) -> Tensor:
    """Positions of a clip's patches behind a zero row for the class token: float32 (1, 1 + spans * places, width).

    The first span has the paper's table over places, so a single frame is a clip of one span. Each later one adds a
    row of the same waves with sines and cosines exchanged, less the first span's: a sum of two equal tables could not
    tell place 3 of span 5 from place 5 of span 3.
    """
    table_1LD = sincos_positions(places, width)
    if spans == 1:
        return table_1LD
    span_SD = sincos_positions(spans, width)[0, 1:].roll(width // 2, dims=1)
    patches_LD = ((span_SD - span_SD[:1])[:, None] + table_1LD[:, 1:]).flatten(0, 1)
    return torch.cat([table_1LD[:, :1], patches_LD[None]], dim=1)


def clip_patches(signal_BV: Tensor, patch: int, frames: int) -> Tensor:
    """Cut signals (B, V) or clips (B, F, V) into patches (B, L, P) in the network's order; P is frames * patch.

    Args:
        frames: of a patch.
    """
    if signal_BV.ndim == 2:
        return signal_BV.unflatten(1, (-1, patch))
    blocks_BSFLP = signal_BV.unflatten(2, (-1, patch)).unflatten(1, (-1, frames))
    return blocks_BSFLP.transpose(2, 3).flatten(3).flatten(1, 2)


def draw_linear(*modules: nn.Module) -> None:
    """Draw the linear layers of ``modules`` Xavier-uniform with zero bias, as the paper's code does."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
