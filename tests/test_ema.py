"""The running mean of the weights: its value, its place in the module, and its file."""

import pytest
import torch
from torch import nn

from cadiff.ema import ShardedMean
from cadiff.errors import DataError

YES, NO = torch.ones(()), torch.zeros(())


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(3, 5)
    layer.bias.requires_grad_(False)
    return layer


def walk(layer, mean, steps, decay):
    """Move the weights and compute the mean in plain numbers beside it."""
    expected = layer.weight.detach().clone()
    for step in range(steps):
        with torch.no_grad():
            layer.weight.add_(1.0 + step)
        mean.update(YES)
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * layer.weight.detach()
    return expected


def test_it_is_the_mean_it_says_and_takes_the_weights_place_for_a_while(layer):
    mean = ShardedMean(layer, 0.5, rank=0, world=1)
    expected = walk(layer, mean, 12, 0.5)
    live = layer.weight.detach().clone()
    with mean.in_place():
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.weight, live)


def test_the_ranks_pieces_make_the_whole(layer):
    whole = ShardedMean(layer, 0.9, rank=0, world=1)
    parts = [ShardedMean(layer, 0.9, rank=rank, world=4) for rank in range(4)]
    for _ in range(3):
        with torch.no_grad():
            layer.weight.mul_(1.5)
        for mean in (whole, *parts):
            mean.update(YES)
    assert sum(len(part._means[0]) for part in parts) == 15
    assert torch.equal(torch.cat([part._means[0] for part in parts]), whole._means[0])


def test_a_step_that_changed_nothing_is_no_update(layer, tmp_path):
    mean, other = (ShardedMean(layer, 0.9, rank=0, world=1) for _ in range(2))
    for step, applied in enumerate((YES, NO, YES, NO, NO, YES)):
        before = mean._means[0].clone()
        with torch.no_grad():
            layer.weight.add_(1.0 + step)
        mean.update(applied)
        if applied:
            other.update(YES)
        assert torch.equal(mean._means[0], before) != bool(applied)
    assert mean.updates == other.updates == 3
    assert torch.equal(mean._means[0], other._means[0])
    mean.save(tmp_path)
    other.load(tmp_path)
    assert other.updates == 3


def test_it_continues_from_its_file(layer, tmp_path):
    mean = ShardedMean(layer, 0.9, rank=0, world=1)
    walk(layer, mean, 3, 0.9)
    mean.save(tmp_path)
    again = ShardedMean(layer, 0.9, rank=0, world=1)
    again.load(tmp_path)
    assert again.updates == 3
    for each in (mean, again):
        each.update(YES)
    assert torch.equal(again._means[0], mean._means[0])


def test_a_checkpoint_without_it_is_refused(layer, tmp_path):
    with pytest.raises(DataError, match=r"saved without train\.ema"):
        ShardedMean(layer, 0.9, rank=0, world=1).load(tmp_path)
    ShardedMean(layer, 0.9, rank=0, world=1).save(tmp_path)
    with pytest.raises(DataError, match="does not fit this job at weight"):
        ShardedMean(nn.Linear(4, 5), 0.9, rank=0, world=1).load(tmp_path)
