"""Masks: the paper's counts, a way back for every patch, and regions that are hidden more often."""

import pytest
import torch

from cadiff.errors import ConfigError
from cadiff.kernels.keyed import keyed_uniform
from cadiff.kernels.mask import Masking, focus_weights, random_mask


def key(batch: int, epoch: int = 0) -> tuple:
    return 3, "phase1/view1", torch.full((batch,), epoch), torch.arange(batch)


def test_smallest_noise_is_kept_and_the_rest_hidden():
    masking = Masking.from_noise(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert masking.keep_BK.tolist() == [[1, 3]]
    assert masking.restore_BL.tolist() == [[3, 0, 2, 1]]
    assert masking.hidden_BL.tolist() == [[1, 0, 1, 0]]


def test_equal_noise_is_settled_by_position():
    assert Masking.from_noise(torch.zeros(1, 6), 0.5).keep_BK.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("length", "ratio", "kept"), [(262, 0.75, 65), (291, 0.75, 72), (196, 0.5, 98), (5, 0.0, 5)])
def test_counts_are_those_of_the_paper(length, ratio, kept):
    masking = random_mask(*key(3), length, ratio)
    assert masking.keep_BK.shape == (3, kept)
    assert masking.hidden_BL.sum(1).tolist() == [length - kept] * 3


def test_restore_puts_every_patch_back():
    masking = random_mask(*key(4), 17, 0.75)
    patches_BL = torch.arange(17.0).expand(4, -1)
    kept_BK = patches_BL.gather(1, masking.keep_BK)
    with_masks_BL = torch.cat([kept_BK, torch.full((4, 17 - kept_BK.shape[1]), -1.0)], dim=1)
    restored_BL = with_masks_BL.gather(1, masking.restore_BL)
    assert torch.equal(restored_BL, torch.where(masking.hidden_BL.bool(), -1.0, patches_BL))


def test_mask_follows_the_sample_and_changes_with_the_epoch():
    of_all = random_mask(*key(8), 40, 0.75).keep_BK
    seed, stream, epoch_B, sample_id_B = key(8)
    assert torch.equal(random_mask(seed, stream, epoch_B[5:], sample_id_B[5:], 40, 0.75).keep_BK, of_all[5:])
    assert not torch.equal(random_mask(*key(8, epoch=1), 40, 0.75).keep_BK, of_all)
    assert torch.equal(of_all, Masking.from_noise(keyed_uniform(*key(8), 40), 0.75).keep_BK)


def test_a_ratio_that_keeps_nothing_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"0\.75 keeps none of 3 patches.*Lower"):
        Masking.from_noise(torch.rand(2, 3), 0.75)


def test_weighted_masks_have_the_distribution_of_drawing_without_replacement():
    weights_L = torch.tensor([0.5, 0.3, 0.2])  # two of three are hidden, so one is kept
    hidden_L = random_mask(*key(20_000), 3, 0.5, weights_L).hidden_BL.mean(0)
    # P(kept = i) = sum over the two orders of drawing the others
    w = weights_L.tolist()
    kept = [w[j] * w[k] / (1 - w[j]) + w[k] * w[j] / (1 - w[k]) for j, k in ((1, 2), (0, 2), (0, 1))]
    torch.testing.assert_close(hidden_L, 1 - torch.tensor(kept), atol=0.012, rtol=0)


def test_a_focus_region_is_hidden_more_often():
    weights_L = focus_weights(16, 16, [0, 96], 0.6)
    torch.testing.assert_close(weights_L, torch.tensor([0.6] * 6 + [0.4] * 10))
    hidden_L = random_mask(*key(2000), 16, 0.5, weights_L).hidden_BL.mean(0)
    assert hidden_L[:6].min() > 0.5 > hidden_L[6:].max()


def test_no_region_means_no_weights():
    assert focus_weights(16, 16, [], 0.6) is None


@pytest.mark.parametrize("voxels", [[0, 15], [32, 16], [0, 300]], ids=["less than a patch", "backwards", "outside"])
def test_a_region_without_patches_is_refused(voxels):
    with pytest.raises(ConfigError, match="focus_range"):
        focus_weights(16, 16, voxels, 0.6)


@pytest.mark.gpu
def test_gpu_hides_what_the_cpu_hides():
    seed, stream, epoch_B, sample_id_B = key(32)
    for weights_L in (None, focus_weights(262, 16, [0, 1600], 0.6)):
        on_gpu = random_mask(seed, stream, epoch_B.cuda(), sample_id_B.cuda(), 262, 0.75, weights_L)
        assert torch.equal(on_gpu.keep_BK.cpu(), random_mask(*key(32), 262, 0.75, weights_L).keep_BK)
