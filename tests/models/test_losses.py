"""The losses on a world small enough to compute by hand."""

import math

import pytest
import torch

from cadiff.losses import contrast_among_anchors, normalised_patches, patch_moments, rebuild_loss


def test_only_hidden_patches_count():
    prediction = torch.zeros(1, 3, 2)
    target = torch.tensor([[[1.0, 1.0], [100.0, 100.0], [3.0, 1.0]]])
    hidden = torch.tensor([[1.0, 0.0, 1.0]])
    assert rebuild_loss(prediction, target, hidden).item() == pytest.approx((1 + 5) / 2)


def test_nothing_hidden_is_no_loss_and_no_gradient():
    prediction = torch.ones(1, 2, 2, requires_grad=True)
    loss = rebuild_loss(prediction, torch.zeros(1, 2, 2), torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0 and prediction.grad.abs().sum() == 0


def test_half_precision_predictions_are_judged_in_float32():
    assert rebuild_loss(torch.ones(1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 4), torch.ones(1, 1)).dtype == (
        torch.float32
    )


def test_normalised_patches_have_mean_zero_and_variance_one_and_come_back():
    torch.manual_seed(0)
    patches = torch.randn(2, 3, 64) * 5 + 2
    normal = normalised_patches(patches)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(-1), torch.ones(2, 3), atol=1e-4, rtol=0)
    mean, spread = patch_moments(patches)
    torch.testing.assert_close(normal * spread + mean, patches)


def test_flat_patches_do_not_divide_by_zero():
    assert normalised_patches(torch.ones(1, 1, 8)).abs().max() < 1e-3


def test_negatives_among_anchors_are_the_other_predictions():
    anchor = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    cosines = [(1.0, 0.0), (math.sqrt(0.5), 0.0)]  # (own input, the other anchor)
    expected = sum(math.log(1 + math.exp((other - own) / 0.5)) for own, other in cosines) / 2
    assert contrast_among_anchors(anchor, target, 0.5).item() == pytest.approx(expected, abs=1e-6)


def test_a_single_record_has_no_contrast():
    assert contrast_among_anchors(torch.ones(1, 3), torch.tensor([[1.0, -1.0, 0.0]]), 0.1).item() == 0
