"""Losses of the autoencoders, in float32 whatever the network ran in; plain InfoNCE is in kernels/similarity.

Legend: B records, L patches, P values per patch, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rebuild_loss(prediction_BLP: Tensor, target_BLP: Tensor, hidden_BL: Tensor) -> Tensor:
    """Mean squared error over the hidden patches; zero if nothing is hidden.

    Args:
        prediction_BLP: the network's patches, any float type.
        target_BLP: the true patches.
        hidden_BL: 1 where a patch was hidden from the network, else 0.

    Returns:
        A float32 scalar. Source: He et al. 2022, section 3.
    """
    error_BL = (prediction_BLP.float() - target_BLP.float()).square().mean(dim=-1)
    return (error_BL * hidden_BL).sum() / hidden_BL.sum().clamp(min=1)


def normalised_patches(target_BLP: Tensor) -> Tensor:
    """Bring each patch to mean 0 and variance 1, the target that He et al. 2022 found best for pixels."""
    mean, spread = patch_moments(target_BLP)
    return (target_BLP - mean) / spread


def patch_moments(target_BLP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, both (B, L, 1); the deviation is never zero."""
    variance = target_BLP.var(dim=-1, keepdim=True)
    return target_BLP.mean(dim=-1, keepdim=True), (variance + 1e-6).sqrt()


def contrast_among_anchors(anchor_BF: Tensor, target_BF: Tensor, temperature: float) -> Tensor:
    """InfoNCE whose negatives are the other anchors instead of the other targets.

        mean_i  -log( exp(cos(a_i, t_i) / temperature) / (exp(cos(a_i, t_i) / temperature)
                                                          + sum_{j != i} exp(cos(a_i, a_j) / temperature)) )

    Returns:
        A float32 scalar; zero for a single record. Source: the option "paired" of the paper's code.
    """
    with torch.autocast(anchor_BF.device.type, enabled=False):
        anchor_BF, target_BF = (F.normalize(rows.float(), dim=1, eps=1e-12) for rows in (anchor_BF, target_BF))
        own = torch.eye(len(anchor_BF), dtype=torch.bool, device=anchor_BF.device)
        cosine_BB = torch.where(own, (anchor_BF * target_BF).sum(dim=1), anchor_BF @ anchor_BF.T)
        return F.cross_entropy(cosine_BB / temperature, torch.arange(len(own), device=own.device))
