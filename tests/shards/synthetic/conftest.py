"""A tiny simulated study that the tests of the synthetic brain share."""

from pathlib import Path

import pytest

from cadiff.shards.synthetic.brain import BrainSpec, simulate

TINY = {
    "seed": 5,
    "classes": 4,
    "voxels": 120,
    "train_images": 48,
    "test_images": 12,
    "test_repeats": 6,
    "hcp_subjects": 1,
    "hcp_frames": 24,
    "bold_trials": 80,
    "bold_repeated": 6,
    "bold_voxels": 60,
    "extra_images": 6,
}


@pytest.fixture(scope="session")
def tiny_spec() -> BrainSpec:
    return BrainSpec(**TINY)


@pytest.fixture(scope="session")
def study(tiny_spec, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("study")
    simulate(root, tiny_spec)
    return root
