"""What a validation of phase 2 reads of single samples: correlations of hidden patches, and features for retrieval.

Legend: B records, L patches, P values per patch, N = 1 + L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_correlation(prediction_BLP: Tensor, target_BLP: Tensor, hidden_BL: Tensor) -> Tensor:
    """Pearson correlation of each sample's predictions with their targets over all values of its hidden patches.

    The paper's code correlates the predicted patch 0 with the predicted patch 1 where it says it does this.

    Returns:
        float32 (B,); 0 where either side does not vary, or nothing is hidden.
    """
    weight_BL1 = hidden_BL.double()[:, :, None]
    count_B11 = (weight_BL1.sum((1, 2), keepdim=True) * target_BLP.shape[2]).clamp(min=1)
    sides = []
    for values_BLP in (prediction_BLP.double(), target_BLP.double()):
        mean_B11 = (values_BLP * weight_BL1).sum((1, 2), keepdim=True) / count_B11
        sides.append((values_BLP - mean_B11) * weight_BL1)
    one_BLP, other_BLP = sides
    lengths_B = one_BLP.square().sum((1, 2)).sqrt() * other_BLP.square().sum((1, 2)).sqrt()
    products_B = (one_BLP * other_BLP).sum((1, 2))
    return torch.where(lengths_B > 1e-9, products_B / lengths_B.clamp(min=1e-9), 0).float()


def pooled(tokens_BND: Tensor) -> Tensor:
    """The mean over patch tokens beside the class token, which comes first: float32 (B, 2D)."""
    return torch.cat([tokens_BND[:, 1:].float().mean(1), tokens_BND[:, 0].float()], dim=1)
