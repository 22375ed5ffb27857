"""How many ranks start on a machine, and on which of its GPUs."""

from types import SimpleNamespace

import pytest
import torch

from cadiff.errors import ConfigError
from cadiff.launch import start


def job(batch, micro_batch=0):
    return SimpleNamespace(name="tiny", train=SimpleNamespace(batch=batch, micro_batch=micro_batch))


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(start, "visible_gpus", lambda: count)


@pytest.mark.parametrize(
    ("batches", "there", "ranks"),
    [([250], 8, 5), ([4096], 8, 8), ([32, 16], 3, 2), ([7], 4, 1)],
)
def test_as_many_gpus_as_divide_every_batch_and_idle_ones_are_told(gpus, caplog, batches, there, ranks):
    gpus(there)
    assert start.local_ranks([job(batch) for batch in batches]) == ranks
    assert (f"{ranks} of {there} GPUs are used" in caplog.text) == (ranks < there)


def test_whole_micro_batches_go_to_each_rank(gpus):
    gpus(4)
    assert start.local_ranks([job(48, micro_batch=8)]) == 3


def test_without_gpus_two_ranks_share_the_cores(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert start.local_ranks([job(32)]) == 2
    assert start.local_ranks([job(32)], asked=4) == 4


def test_more_ranks_than_gpus_are_refused(gpus):
    gpus(2)
    with pytest.raises(ConfigError, match="--ranks 3: there are 2 GPUs"):
        start.local_ranks([job(6)], asked=3)


def test_ranks_that_do_not_divide_a_batch_are_refused_before_anything_starts(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match="--ranks 3 x micro-batch 1 does not divide the batch of 32 of tiny"):
        start.local_ranks([job(12), job(32)], asked=3)


def test_gpus_that_this_torch_cannot_use_are_an_error_not_a_slow_cpu_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="8 NVIDIA GPUs are here, but PyTorch"):
        start.visible_gpus()


@pytest.mark.parametrize(
    ("visible", "ranks", "options"),
    [
        (None, 2, ["--num_gpus", "2"]),
        ("", 2, ["--num_gpus", "2"]),
        ("2,3", 2, ["--include", "localhost:2,3"]),
        ("5, 6,7", 2, ["--include", "localhost:5,6"]),
    ],
)
def test_the_launcher_takes_the_gpus_that_are_visible(visible, ranks, options):
    assert start.devices(ranks, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == options


def test_gpus_named_by_uuid_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="numbers only"):
        start.devices(1, {"CUDA_VISIBLE_DEVICES": "GPU-3f1c"})
