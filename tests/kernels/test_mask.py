"""Masks: the paper's counts, a way back for every patch, and regions that are hidden more often."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadiff.errors import ConfigError
from cadiff.kernels import mask
from cadiff.kernels.keyed import FRACTION, fixed_point_log, keyed_uniform
from cadiff.kernels.mask import Masking, focus_weights, random_mask, random_mask_reference
from cadiff.kernels.mask_ops import INVERSE_BITS, inverse_weights, random_mask_op

EDGES = torch.tensor([0, 1, 2, 2**22, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 2, 2**24 - 1])


def key(batch: int, epoch: int = 0) -> tuple:
    return 3, "phase1/view1", torch.full((batch,), epoch), torch.arange(batch)


def parts(masking: Masking) -> tuple[torch.Tensor, ...]:
    return masking.keep_BK, masking.restore_BL, masking.hidden_BL


def assert_same(one: Masking, other: Masking) -> None:
    for got, wanted in zip(parts(one), parts(other), strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


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


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    batch=st.integers(0, 4),
    length=st.sampled_from([1, 2, 3, 5, 63, 64, 65, 196, 262, 291]),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.95]),
    spread=st.sampled_from([None, 0.0, 1.0, 20.0]),
    seed=st.sampled_from([0, -1, 2022, 1 + 2**64]),
)
def test_the_fast_path_is_the_reference_bit_for_bit(batch, length, ratio, spread, seed):
    weights_L = None if spread is None else torch.linspace(-spread, 0, length).exp()
    ids_B = torch.arange(batch) * (2**35 + 3)
    args = (seed, "any", ids_B % 5 - 1, ids_B, length, max(0.0, min(ratio, 1 - 1.01 / length)), weights_L)
    assert_same(random_mask(*args), random_mask_reference(*args))


@pytest.mark.parametrize("focus", [[], [0, 16000]], ids=["plain", "focus"])
def test_the_fast_path_is_the_reference_on_the_whole_cortex(focus):
    args = (*key(1), 5706, 0.75, focus_weights(5706, 16, focus, 0.6))
    assert_same(random_mask(*args), random_mask_reference(*args))


def test_weighted_masks_do_not_depend_on_company_order_or_ranks():
    weights_L = focus_weights(40, 16, [0, 160], 0.7)
    seed, stream, epoch_B, sample_id_B = key(9)
    whole = random_mask(seed, stream, epoch_B, sample_id_B, 40, 0.75, weights_L)
    for ranks in (2, 3, 9):
        for rank in range(ranks):
            mine = torch.arange(rank, 9, ranks).flip(0)
            of_rank = random_mask(seed, stream, epoch_B[mine], sample_id_B[mine], 40, 0.75, weights_L)
            assert_same(of_rank, Masking(*(part[mine] for part in parts(whole))))


def test_weighted_masks_never_change_between_versions():
    masking = random_mask(2022, "phase1/view1", torch.tensor([-1]), torch.tensor([123_456_789_012]), 12, 0.5, WEIGHTS_L)
    assert masking.keep_BK.tolist() == GOLDEN_KEEP
    assert masking.restore_BL.tolist() == GOLDEN_RESTORE


WEIGHTS_L = torch.linspace(0.2, 3.0, 12)
GOLDEN_KEEP = [[0, 1, 2, 9, 7, 10]]
GOLDEN_RESTORE = [[0, 1, 2, 11, 6, 7, 10, 4, 8, 3, 5, 9]]


def test_pairs_are_hidden_together_as_often_as_drawing_one_after_the_other_says():
    weights = [0.1, 0.4, 0.3, 0.2]
    masks_BL = random_mask(*key(20_000), 4, 0.5, torch.tensor(weights)).hidden_BL.bool()
    for i, j in itertools.combinations(range(4), 2):
        wanted = weights[i] * weights[j] * (1 / (1 - weights[i]) + 1 / (1 - weights[j]))
        assert (masks_BL[:, i] & masks_BL[:, j]).float().mean().item() == pytest.approx(wanted, abs=0.012)


def test_weighted_order_is_that_of_the_real_logarithm_except_for_near_ties():
    weights_L = torch.linspace(0.5, 1.5, 262)
    order_BL = random_mask(*key(50), 262, 0.0, weights_L).keep_BK
    exact_BL = torch.log1p(-keyed_uniform(*key(50), 262).double()) / weights_L.double() / math.log(2)
    steps_BL = exact_BL.gather(1, order_BL).diff(dim=1)
    assert steps_BL.min() > -(2.0**-26)
    assert (steps_BL < 0).float().mean() < 1e-4


def test_fixed_point_logarithm_is_close_and_grows_with_every_draw():
    runs = [torch.arange(first, first + 5000) for first in (0, 2**22, 2**23 - 2500, 2**24 - 5000)]
    for draw_n in (*runs, EDGES):
        answer_n = fixed_point_log(draw_n)
        assert (answer_n.diff() > 0).all()
        real_n = -torch.log1p(-draw_n.double() / 2**24) / math.log(2)
        torch.testing.assert_close(answer_n.double() / 2**FRACTION, real_n, atol=2.0 ** (2 - FRACTION), rtol=0)
    assert fixed_point_log(EDGES)[[0, 5, 8]].tolist() == [0, 2**FRACTION, 24 * 2**FRACTION]  # 1, 1/2, 2**-24


def test_inverse_weights_are_integers_whose_products_fit():
    assert inverse_weights(torch.tensor([0.4, 0.6, 4e9])).tolist() == [2**28, 178_956_966, 1]  # 0.4 and 0.6 in float32
    assert 24 * 2 ** (FRACTION + INVERSE_BITS) < 2**63


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_no_weights_are_refused(bad):
    with pytest.raises(ConfigError, match="positive"):
        random_mask(*key(1), 3, 0.5, torch.tensor([1.0, bad, 2.0]))


def test_weights_on_another_device_are_not_looked_at():
    assert inverse_weights(torch.empty(3, device="meta")).device.type == "meta"  # where nothing can be read


@pytest.mark.parametrize("weights_L", [None, torch.tensor([0.5, 0.2, 0.3])], ids=["plain", "weighted"])
def test_the_operator_is_one_that_pytorch_can_trust(weights_L):
    _, stream, epoch_B, sample_id_B = key(4)
    torch.library.opcheck(random_mask_op, (str(2**70), stream, epoch_B, sample_id_B, 3, 1, weights_L))


@pytest.mark.parametrize("kernels", ["torch", "reference"])
def test_masks_are_the_same_compiled(choose, kernels):
    choose(kernels)
    _, _, epoch_B, sample_id_B = key(4)
    weights_L = torch.linspace(1, 2, 9)

    def masked(ids_B):
        return parts(random_mask(2**70, "phase1/view1", epoch_B, ids_B, 9, 0.5, weights_L))

    one_graph = kernels == "torch"  # the reference is hashed where the compiler cannot look
    compiled = torch.compile(masked, backend="aot_eager", fullgraph=one_graph)
    for got, wanted in zip(compiled(sample_id_B), masked(sample_id_B), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("kernels", ["torch", "reference"])
def test_the_live_path_passes_its_own_check(choose, kernels):
    choose(kernels)
    for live, wanted in zip(*mask.check_pair(torch.device("cpu")), strict=True):
        assert live.dtype == torch.float32
        assert torch.equal(live, wanted)


@pytest.mark.gpu
def test_gpu_hides_what_the_cpu_hides():
    seed, stream, epoch_B, sample_id_B = key(32)
    for weights_L in (None, focus_weights(262, 16, [0, 1600], 0.6)):
        on_gpu = random_mask(seed, stream, epoch_B.cuda(), sample_id_B.cuda(), 262, 0.75, weights_L)
        assert torch.equal(on_gpu.keep_BK.cpu(), random_mask(*key(32), 262, 0.75, weights_L).keep_BK)


@pytest.mark.gpu
def test_weighted_masks_on_a_gpu_do_not_wait_for_it():
    seed, stream, epoch_B, sample_id_B = key(32)
    given = (seed, stream, epoch_B.cuda(), sample_id_B.cuda(), 262, 0.75, focus_weights(262, 16, [0, 1600], 0.6).cuda())
    random_mask(*given)  # kernels are compiled
    try:
        torch.cuda.set_sync_debug_mode("error")
        waited_for_nothing = random_mask(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(waited_for_nothing.keep_BK.cpu(), random_mask(*key(32), 262, 0.75, given[-1].cpu()).keep_BK)
