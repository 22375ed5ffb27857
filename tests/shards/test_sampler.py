"""The order of samples: fixed for ever by (version, seed, epoch, step), each sample at most once per epoch."""

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.shards.sampler import Sampler, WindowedSampler, keyed_permutation, stable_order


def test_the_permutation_never_changes():
    # Golden values: if these change, stored runs cannot be resumed; raise the order version instead.
    assert keyed_permutation(10, "data", 2022, "epoch", 0).tolist() == [3, 7, 8, 1, 6, 0, 2, 5, 4, 9]
    assert sorted(keyed_permutation(1000, "x").tolist()) == list(range(1000))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 1000, 70_000])
@pytest.mark.parametrize("bits", [0, 3, 12, 63])
def test_words_are_sorted_as_a_stable_sort_does_even_when_many_are_alike(count, bits):
    draw = np.random.default_rng([count, bits])
    for low in (0, 1 << 40):  # alike in the high bits, or in all
        words = draw.integers(0, 1 << bits, count, dtype=np.uint64) + np.uint64(low)
        np.testing.assert_array_equal(stable_order(words), np.argsort(words, kind="stable"))


def test_every_sample_occurs_at_most_once_per_epoch_and_the_left_out_rotate():
    sampler = Sampler(23, 5, 1, "v")
    left = []
    for epoch in range(23):
        seen = np.concatenate([sampler.positions(epoch * 4 + step) for step in range(4)]).tolist()
        assert len(set(seen)) == 20
        assert sorted(seen + sampler.left_out(epoch).tolist()) == list(range(23))
        left += sampler.left_out(epoch).tolist()
    assert sorted(left) == sorted(list(range(23)) * 3)  # all equally often


def test_epochs_seeds_and_data_versions_have_different_orders():
    first = Sampler(100, 10, 1, "v").positions(0).tolist()
    assert Sampler(100, 10, 1, "v").positions(0).tolist() == first
    assert Sampler(100, 10, 1, "v").positions(10).tolist() != first
    assert Sampler(100, 10, 2, "v").positions(0).tolist() != first
    assert Sampler(100, 10, 1, "w").positions(0).tolist() != first


def test_too_few_samples_for_a_batch_is_a_config_error():
    with pytest.raises(ConfigError, match="cannot fill one batch"):
        Sampler(3, 4, 0, "v")


def test_the_windowed_order_never_changes():
    sampler = WindowedSampler(np.arange(100) // 10, 16, 12, 5, "v")
    assert sampler.steps_per_epoch == 8 and sampler.streams == 12
    assert sampler.positions(0).tolist() == [87, 40, 48, 10, 14, 32, 3, 91, 98, 75, 23, 62]
    assert sampler.positions(8).tolist() == [37, 38, 69, 99, 52, 57, 88, 15, 72, 76, 4, 22]


def test_ranks_share_few_pieces_of_a_windowed_order():
    pieces = np.arange(96_000) // 256
    sampler = WindowedSampler(pieces, 640, 960, 0, "v")
    order = np.stack([sampler.positions(step) for step in range(sampler.steps_per_epoch)])
    for world, most in ((1, 1.0), (4, 1.02), (16, 1.06), (20, 1.5)):
        share = 960 // world
        read = sum(len(np.unique(pieces[order[:, r * share : (r + 1) * share]])) for r in range(world))
        assert read / (pieces[-1] + 1) <= most, world
    assert len(np.unique(pieces[order[40]])) > 100  # and still a batch mixes a third of the set
