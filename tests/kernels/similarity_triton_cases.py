"""Contrastive similarity in Triton against float64: loss and every gradient, over shapes, dtypes, policies and scales.

Not collected by name: test_triton.py runs this file in a process of its own, once in Triton's interpreter on the CPU
and once natively on a GPU, because Triton decides at its first import which of the two it is.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from similarity_world import answer, close, draw, some_pairs, truth
from test_similarity_properties import DTYPES, batches, unit_gradients

from cadiff.errors import ConfigError
from cadiff.kernels import dispatch, triton_similarity
from cadiff.kernels.similarity import Cached, info_nce

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture
def small_tiles(monkeypatch):
    """Several blocks, splits, groups and strips even of a small batch."""
    config = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_F": 16, "num_warps": 4, "num_stages": 2}
    for name, value in (("DEFAULT", {2: config, 4: config}), ("_PROGRAMS", 6), ("_GROUP", 2), ("STRIP", 16 * 70)):
        monkeypatch.setattr(triton_similarity, name, value)


@pytest.mark.parametrize("symmetric", [False, True], ids=["one direction", "symmetric"])
@pytest.mark.parametrize("policy", [("negative", "any"), ("drop", "within"), ("positive", "across")])
@pytest.mark.parametrize(("batch", "features"), [(1, 3), (70, 41)])
def test_every_policy(batch, features, policy, symmetric, small_tiles):
    leaves = [*draw((batch, features), (batch, features), device=DEVICE), torch.tensor(0.1, device=DEVICE)]
    options = {"symmetric": symmetric, "pairs": some_pairs(batch, *policy, device=DEVICE)}
    close(answer(info_nce, leaves, **options), truth(leaves, **options), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    leaves = draw((40, 33), (40, 33), dtype=dtype, device=DEVICE)
    close(answer(info_nce, leaves, 0.1, symmetric=True), truth(leaves, 0.1, symmetric=True), 1e-2)


def test_gradients_are_the_same_every_time(small_tiles):
    leaves = draw((70, 20), (70, 20), device=DEVICE)
    once, again = (answer(info_nce, leaves, 0.05, symmetric=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.skipif(DEVICE != "cpu", reason="draws on the CPU")
@settings(max_examples=12, deadline=None, derandomize=True)
@given(batches().filter(lambda batch: batch[2] != DTYPES[torch.float64]))
def test_any_batch(batch):
    leaves, options, tolerance = batch
    got, wanted = answer(info_nce, leaves, **options), truth(leaves, **options)
    sharp = max(1.0, 0.07 / leaves[2].item())
    close(unit_gradients(got, leaves), unit_gradients(wanted, leaves), 2 * tolerance * sharp)


def test_a_row_too_short_for_a_float_has_no_direction_and_a_nan_is_not_lost():
    leaves = draw((6, 5), (6, 5), device=DEVICE)
    with torch.no_grad():
        leaves[0][2] = torch.tensor([1e-40, 0, 0, 0, 0])
    close(answer(info_nce, leaves, 0.1, symmetric=True), truth(leaves, 0.1, symmetric=True), 1e-4)
    old = torch.full((3, 5), 0.5, device=DEVICE)
    old[1, 1] = float("nan")
    assert info_nce(*leaves, 0.1, cached=Cached(old, old)).isnan()


def test_backward_under_autocast_is_the_same():
    leaves = draw((40, 33), (40, 33), device=DEVICE)
    plain = answer(info_nce, leaves, 0.1)
    with torch.autocast(DEVICE, torch.bfloat16):
        mixed = answer(info_nce, leaves, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


def test_tiles_that_would_read_beyond_a_row_are_refused(monkeypatch):
    wide = triton_similarity.DEFAULT[4] | {"BLOCK_F": 128}
    monkeypatch.setattr(triton_similarity, "DEFAULT", {2: wide, 4: wide})
    with pytest.raises(ConfigError, match="BLOCK_F is 128; expected a divisor of 64"):
        info_nce(*draw((4, 3), (4, 3), device=DEVICE), 0.1)


def test_triton_is_what_runs_and_passes_its_own_check():
    assert dispatch.describe(DEVICE)["kernels"] == ("triton interpreter" if DEVICE == "cpu" else "triton")
    dispatch.self_check(DEVICE)
