"""Masked autoencoder for one-dimensional fMRI: hide most patches, rebuild the signal.

Source: He et al. 2022 (MAE), applied to voxels by Chen et al. 2023 (MinD-Vis). The networks know nothing of losses,
and masks are drawn outside and passed in.

Legend: B records, V voxels, P voxels per patch, L = V / P patches, K kept, N = 1 + K tokens, D width.
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
    """Holds the projection under its name in the paper's weights, ``patch_embed.proj``."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = PatchProjection(width, 1, patch)

    def forward(self, signal_BV: Tensor, keep_BK: Tensor, position_LD: Tensor) -> Tensor:
        return self.proj(signal_BV, keep_BK, position_LD)


class FmriEncoder(nn.Module):
    """Turn the visible patches of a signal into tokens. Phases 2 and 3 inherit this network.

    Args:
        model: sizes.
        voxels: length of a signal, a multiple of ``model.patch``.
        checkpoint: compute the blocks again in backward instead of keeping their insides.

    Raises:
        ConfigError: the patch does not divide the signal, or the heads do not divide a width.
    """

    def __init__(self, model: FmriModel, voxels: int, *, checkpoint: bool = False) -> None:
        super().__init__()
        if voxels < model.patch or voxels % model.patch:
            raise ConfigError(
                f"A signal of {voxels} voxels does not divide into patches of {model.patch}. "
                "Pad the signal to a multiple of model.patch, or change model.patch."
            )
        check_heads(model.width, model.heads, "model.heads")
        self.patch, self.length, self.checkpoint = model.patch, voxels // model.patch, checkpoint
        self.cls_token = nn.Parameter(torch.empty(1, 1, model.width))
        self.register_buffer("pos_embed", sincos_positions(self.length, model.width))
        self.patch_embed = PatchEmbed(model.width, model.patch)
        self.blocks = nn.ModuleList(Block(model.width, model.heads, model.mlp_ratio) for _ in range(model.depth))
        self.norm = nn.LayerNorm(model.width)
        nn.init.normal_(self.cls_token, std=0.02)
        draw_linear(self.blocks)

    def forward(self, signal_BV: Tensor, masking: Masking | None = None, cls: bool = True) -> Tensor:
        """Encode the kept patches of signals float (B, V).

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
        tokens_BND = self.patch_embed(signal_BV, masking.keep_BK, self.pos_embed[0, 1:])
        if cls:
            first_11D = self.cls_token + self.pos_embed[:, :1]
            tokens_BND = torch.cat([first_11D.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)
        return run_layers(self.blocks, tokens_BND, checkpoint=self.checkpoint)


class FmriMae(FmriEncoder):
    """The autoencoder: encode what is visible, rebuild the whole signal."""

    def __init__(self, model: FmriModel, voxels: int, *, checkpoint: bool = False) -> None:
        super().__init__(model, voxels, checkpoint=checkpoint)
        check_heads(model.decoder_width, model.decoder_heads, "model.decoder_heads")
        width, heads = model.decoder_width, model.decoder_heads
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_positions(self.length, width))
        self.decoder_embed = nn.Linear(model.width, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, model.mlp_ratio) for _ in range(model.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, model.patch)
        nn.init.normal_(self.mask_token, std=0.02)
        draw_linear(self.decoder_embed, self.decoder_blocks, self.decoder_pred)

    def forward(self, signal_BV: Tensor, masking: Masking) -> Tensor:
        """Rebuild signals float (B, V) from their kept patches: predicted patches (B, L, P)."""
        return self.decode(self.encode(signal_BV, masking), masking)

    def encode(self, signal_BV: Tensor, masking: Masking | None = None) -> Tensor:
        """Tokens (B, 1 + K, D) of the kept patches; of all patches without a masking."""
        return FmriEncoder.forward(self, signal_BV, masking)

    def decode(self, tokens_BND: Tensor, masking: Masking) -> Tensor:
        """Predict every patch (B, L, P) from the tokens of the kept ones."""
        tokens_BND = with_mask_tokens(self.decoder_embed(tokens_BND), self.mask_token, masking.restore_BL)
        tokens_BND = tokens_BND + self.decoder_pos_embed
        tokens_BND = run_layers(self.decoder_blocks, tokens_BND, checkpoint=self.checkpoint)
        return self.decoder_pred(self.decoder_norm(tokens_BND))[:, 1:]


def draw_linear(*modules: nn.Module) -> None:
    """Draw the linear layers of ``modules`` Xavier-uniform with zero bias, as the paper's code does."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
