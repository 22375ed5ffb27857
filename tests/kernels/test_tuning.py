"""Tables of tiles: found by architecture and shape class, refused when they are not sound, the same on all ranks."""

import json
import time

import pytest
import torch

from cadiff.errors import ConfigError
from cadiff.kernels import tuning
from cadiff.launch import kernel_tune

GPU = torch.device("cuda")
DEFAULT = {"BLOCK_M": 64, "num_warps": 4}
OTHER = {"BLOCK_M": 32, "num_warps": 8}


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU is an sm_99."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 9))
    tuning._table.cache_clear()
    yield
    tuning._table.cache_clear()


@pytest.fixture
def table(tmp_path, monkeypatch, gpu):
    path = tmp_path / "tiles.json"
    path.write_text(tuning.table_text("sm_99", {"similarity": {"B=1024 F=64": OTHER}}, "by hand"))
    monkeypatch.setenv("CADIFF_TILES", str(path))
    return path


def test_sizes_share_a_class_up_to_the_next_power_of_two():
    assert tuning.shape_class(F=33, B=1024) == "B=1024 F=64"
    assert tuning.shape_class(B=1) == "B=1"


def test_a_table_gives_its_tiles_and_all_else_the_default(table):
    assert tuning.tiles("similarity", GPU, DEFAULT, B=1000, F=64) == OTHER
    assert tuning.tiles("similarity", GPU, DEFAULT, B=1025, F=64) == DEFAULT
    assert tuning.tiles("mask", GPU, DEFAULT, B=1000, F=64) == DEFAULT
    assert tuning.tiles("similarity", torch.device("cpu"), DEFAULT, B=1000, F=64) == DEFAULT
    with tuning.trying("mask", OTHER):
        assert tuning.tiles("mask", GPU, DEFAULT, B=1, F=1) == OTHER
    assert tuning.tiles("mask", GPU, DEFAULT, B=1, F=1) == DEFAULT


def test_an_architecture_without_a_table_has_the_defaults(gpu, monkeypatch):
    monkeypatch.delenv("CADIFF_TILES", raising=False)
    assert tuning.tiles("similarity", GPU, DEFAULT, B=8) == DEFAULT
    assert tuning.describe_tiles(GPU).startswith("defaults (")


def test_the_shipped_tables_are_sound():
    paths = sorted(tuning._SHIPPED.glob("*.json"))
    assert [path.stem for path in paths] == ["sm_80", "sm_90"]
    for path in paths:
        assert tuning.read_table(path, path.stem).keys() == {"similarity", "patch_embed", "mask"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "x"}, "no table of tiles of format"),
        ({"architecture": "sm_80"}, "is for sm_80, and this GPU is sm_99"),
        ({"tiles": {"similarity": {"B=8": {"BLOCK_M": "64"}}}}, "similarity, B=8: .* are no tiles"),
        ({"tiles": {"similarity": {"B=8": {"os.system": 1}}}}, "are no tiles"),
        ({"tiles": {"similarity": {"B=8": {"BLOCK_M": 10**9}}}}, "are no tiles"),
        ({"tiles": {"similarity": 3}}, "are no tiles"),
        ({"tiles": []}, "no table of tiles"),
    ],
)
def test_a_table_that_is_not_sound_is_refused(table, change, why):
    table.write_text(json.dumps(json.loads(table.read_text()) | change))
    with pytest.raises(ConfigError, match=f"tiles.json: .*{why}"):
        tuning.tiles("similarity", GPU, DEFAULT, B=8)


def test_a_missing_or_broken_file_is_refused(table):
    for text in ("{", ""):
        table.write_text(text)
        with pytest.raises(ConfigError, match="no table of tiles can be read"):
            tuning.tiles("similarity", GPU, DEFAULT, B=8)
    table.unlink()
    with pytest.raises(ConfigError, match="no table of tiles can be read"):
        tuning.tiles("similarity", GPU, DEFAULT, B=8)


def test_ranks_with_different_tables_stop(table, monkeypatch):
    monkeypatch.setattr(torch, "tensor", lambda data, device: torch.as_tensor(data))
    monkeypatch.setattr(tuning.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(tuning.distributed, "all_reduce", lambda extremes, op: None)
    tuning.agree_on_tiles(GPU)
    monkeypatch.setattr(tuning.distributed, "all_reduce", lambda extremes, op: extremes.add_(1))
    with pytest.raises(ConfigError, match=r"rank 3 has .*tiles.json \(\w{12}\). Set CADIFF_TILES"):
        tuning.agree_on_tiles(GPU)


def test_a_rank_without_the_table_tells_the_others_before_it_stops(table, monkeypatch):
    table.unlink()
    told = []
    monkeypatch.setattr(torch, "tensor", lambda data, device: torch.as_tensor(data))
    monkeypatch.setattr(tuning.distributed, "all_reduce", lambda extremes, op: told.append(extremes.tolist()))
    with pytest.raises(ConfigError, match="no table of tiles can be read"):
        tuning.agree_on_tiles(GPU)
    assert told == [[-1, 1]]


def test_the_fastest_candidate_that_runs_is_chosen():
    slept = {8: 0.02, 16: 0.001, 32: 0.01}

    def run():
        block = tuning.tiles("toy", torch.device("cpu"), DEFAULT)["BLOCK_M"]
        if block == 64:
            raise RuntimeError("out of resource: shared memory")
        time.sleep(slept[block])

    candidates = [{"BLOCK_M": block} for block in (64, 8, 16, 32)]
    assert kernel_tune.fastest("toy", candidates, run, rounds=3, finish=lambda: None) == {"BLOCK_M": 16}
    with pytest.raises(ConfigError, match="toy: none of 1 candidates runs"):
        kernel_tune.fastest("toy", candidates[:1], run, rounds=1, finish=lambda: None)


def test_tuning_without_a_gpu_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        kernel_tune.tune(tmp_path / "t.json", print)
