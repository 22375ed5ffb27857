"""Masked patch embedding in plain PyTorch does what it says; triton_cases.py compares the Triton kernel with it."""

import pytest
import torch

from cadiff.kernels.patch_embed import masked_patch_embed, masked_patch_embed_reference


def test_kept_patches_are_projected_and_hidden_ones_are_not():
    signal_BV = torch.arange(12.0).view(1, 12)  # patches [0..3], [4..7], [8..11]
    keep_BK = torch.tensor([[2, 0]])
    bias_D, position_LD = torch.tensor([0.5]), torch.tensor([[100.0], [200.0], [300.0]])
    tokens_BKD = masked_patch_embed(signal_BV, keep_BK, torch.ones(1, 4), bias_D, position_LD)
    assert tokens_BKD.shape == (1, 2, 1)
    assert tokens_BKD.flatten().tolist() == [8 + 9 + 10 + 11 + 0.5 + 300, 0 + 1 + 2 + 3 + 0.5 + 100]


def test_a_partial_last_patch_is_completed_with_zeros():
    signal_BV, keep_BK, weight_DP = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1]]), torch.tensor([[10.0, 7.0]])
    tokens_BKD = masked_patch_embed(signal_BV, keep_BK, weight_DP, torch.zeros(1), torch.zeros(2, 1))
    assert tokens_BKD.item() == 30


@pytest.mark.parametrize("voxels", [4, 9], ids=["a patch too short", "too long"])
def test_a_signal_of_the_wrong_length_is_refused(voxels):
    with pytest.raises(AssertionError, match=f"{voxels} voxels are not 2 patches of 4"):
        masked_patch_embed(
            torch.zeros(1, voxels), torch.tensor([[0]]), torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, 3)
        )


def test_gradients_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(0)
    signal_BV = torch.randn(2, 11, generator=draw, dtype=torch.float64)
    keep_BK = torch.tensor([[3, 0], [1, 3]])
    leaves = [
        torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (5,), (4, 5))
    ]
    assert torch.autograd.gradcheck(lambda *weights: masked_patch_embed(signal_BV, keep_BK, *weights), leaves)


def test_tokens_have_the_dtype_of_the_weights_and_stay_close_under_autocast():
    signal_BV, keep_BK = torch.randn(2, 32), torch.tensor([[1, 0], [1, 3]])
    weight_DP, bias_D, position_LD = torch.randn(6, 8), torch.randn(6), torch.randn(4, 6)
    exact = masked_patch_embed_reference(signal_BV, keep_BK, weight_DP, bias_D, position_LD)
    halves = masked_patch_embed(signal_BV, keep_BK, weight_DP.bfloat16(), bias_D.bfloat16(), position_LD)
    assert halves.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = masked_patch_embed(signal_BV, keep_BK, weight_DP, bias_D, position_LD)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0.02)
    torch.testing.assert_close(halves.float(), exact, atol=0.1, rtol=0.02)
