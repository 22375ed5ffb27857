"""The order of samples: fixed for ever by (version, seed, epoch, step), each sample at most once per epoch."""

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.shards.sampler import Sampler, keyed_permutation


def test_the_permutation_never_changes():
    # Golden values: if these change, stored runs cannot be resumed; raise the order version instead.
    assert keyed_permutation(10, "data", 2022, "epoch", 0).tolist() == [3, 7, 8, 1, 6, 0, 2, 5, 4, 9]
    assert sorted(keyed_permutation(1000, "x").tolist()) == list(range(1000))


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
