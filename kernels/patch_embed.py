"""Masked patch embedding: cut a signal into patches and project only those that are kept.

    tokens[b, k] = weight @ signal[b, keep[b, k] * P : (keep[b, k] + 1) * P] + bias + position[keep[b, k]]

Hidden patches are neither read nor projected, so at a mask ratio of 0.75 the work is a quarter of embedding everything
and choosing afterwards.

Legend: B samples, V voxels, P voxels per patch, L patches, K kept patches, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.kernels.dispatch import use_triton


def masked_patch_embed(
    signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor
) -> Tensor:
    """Embed the kept patches, in Triton or PyTorch as cadiff.kernels.dispatch decides.

    Args:
        signal_BV: any float dtype, (L - 1) * P < V <= L * P; what the last patch lacks counts as zero.
        keep_BK: int64, unique within a row, 0..L-1.
        weight_DP, bias_D: the projection, float32, float16 or bfloat16.
        position_LD: added to the token of each patch; its gradient is computed if it asks for one.

    Returns:
        tokens_BKD in weight_DP's dtype. In Triton sums are made in float32. A signal that asks for a gradient
        always takes the reference path: the kernel treats signals as data.
    """
    voxels, length, patch = signal_BV.shape[1], position_LD.shape[0], weight_DP.shape[1]
    assert (length - 1) * patch < voxels <= length * patch, f"{voxels} voxels are not {length} patches of {patch}"
    if use_triton(signal_BV) and not signal_BV.requires_grad:
        from cadiff.kernels.triton_patch_embed import MaskedPatchEmbed

        return MaskedPatchEmbed.apply(signal_BV, keep_BK, weight_DP, bias_D, position_LD)
    return masked_patch_embed_reference(signal_BV, keep_BK, weight_DP, bias_D, position_LD)


def masked_patch_embed_reference(
    signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor
) -> Tensor:
    """Say the same in plain PyTorch: gather, project, add. The kernel is tested against this."""
    length, patch = position_LD.shape[0], weight_DP.shape[1]
    patches_BLP = F.pad(signal_BV, (0, length * patch - signal_BV.shape[1])).unflatten(1, (length, patch))
    kept_BKP = patches_BLP.gather(1, keep_BK[:, :, None].expand(-1, -1, patch)).to(weight_DP.dtype)
    return F.linear(kept_BKP, weight_DP, bias_D) + position_LD.to(weight_DP.dtype)[keep_BK]


def check_pair(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Tokens and gradients of a small odd-shaped input, from the live path and from the reference."""
    signal_BV = torch.linspace(-1, 1, 2 * 37, device=device).sin().view(2, 37)
    keep_BK = torch.tensor([[4, 0, 2], [1, 4, 3]], device=device)
    grown = [torch.linspace(-2, 2, n, device=device).cos() for n in (5 * 8, 5, 5 * 5)]
    leaves = [grown[0].view(5, 8), grown[1], grown[2].view(5, 5)]
    answers = []
    for embed in (masked_patch_embed, masked_patch_embed_reference):
        weights = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            tokens_BKD = embed(signal_BV, keep_BK, *weights)
            answers.append((tokens_BKD.detach(), *torch.autograd.grad(tokens_BKD.square().sum(), weights)))
    return answers[0], answers[1]
