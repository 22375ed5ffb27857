"""What a job's [data] section means for its streams, and what of it makes another experiment."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from cadiff import holding
from cadiff.config import load_job
from cadiff.distributed import Place, processes_here
from cadiff.errors import ConfigError, DataError
from cadiff.files import memory_bytes
from cadiff.fitting import agree_on_data, check_layout, check_negatives
from cadiff.holding import hold_signals
from cadiff.session import job_hash, reading_of
from cadiff.shards.dataset import Dataset
from cadiff.shards.synthetic.loader_set import make_loader_set


@pytest.fixture
def job(tiny_job, tmp_path):
    path = tiny_job(tmp_path / "job.toml", "phase1")
    return lambda *overrides: load_job(path, list(overrides))


def test_the_data_section_reaches_the_streams(job, tmp_path):
    reading = reading_of(
        job(
            "data.order=window", "data.workers=3", "data.weights=[2.0]", "data.on_damage=quarantine", "data.check=every"
        ),
        tmp_path,
    )
    assert (reading.order, reading.workers, reading.weights) == ("window", 3, (2.0,))
    assert (reading.faults.on_damage, reading.faults.check) == ("quarantine", "every")
    assert reading.faults.ledger == tmp_path / "quarantine.jsonl" and reading.faults.budget == 0.001


def test_how_data_is_read_does_not_make_another_experiment_but_which_data_does(job):
    same = (
        "data.workers=0",
        "data.cache=ram",
        "data.check=every",
        "data.on_damage=quarantine",
        "data.damage_budget=0.5",
    )
    assert job_hash(job(*same)) == job_hash(job())
    for other in ("data.order=window", "data.weights=[1.0]", "data.subjects=['A']"):
        assert job_hash(job(other)) != job_hash(job())


def test_signals_are_held_in_memory_only_where_they_fit(tiny_set, monkeypatch):
    ds = Dataset(tiny_set)
    expected = ds.signals(np.arange(96), 32)
    cpu = torch.device("cpu")
    monkeypatch.setattr(holding, "memory_bytes", lambda: 2 * 96 * 32 * 2)
    with pytest.raises(ConfigError, match=r"data.cache = 'ram': the signals are 0.0 GB"):
        hold_signals([ds], "ram", 32, True, cpu, 2)
    with pytest.raises(ConfigError, match="this job runs on the CPU"):
        hold_signals([ds], "gpu", 32, True, cpu, 1)
    assert ds.store.table_MW is None
    hold_signals([ds], "ram", 32, True, cpu, 1)
    monkeypatch.undo()
    assert ds.store.has(32, "wrap") and not ds.store.has(40, "wrap") and memory_bytes() > 10**8
    np.testing.assert_array_equal(ds.signals(np.arange(96), 32), expected)


def test_negatives_of_other_subjects_need_other_subjects(job):
    job = job("loss.negative_subjects=across")
    check_negatives(job, ["A", "B"], 4)
    with pytest.raises(ConfigError, match=r"data\.shards hold 1 subject"):
        check_negatives(job, ["A"], 4)


def test_small_sets_are_held_by_themselves_and_large_ones_read_from_files(tiny_set, tmp_path, monkeypatch, caplog):
    cpu = torch.device("cpu")
    for memory, processes, held in ((10**9, 1, True), (8 * 96 * 32 * 2, 2, True), (8 * 96 * 32 * 2 - 8, 2, False)):
        ds = Dataset(tiny_set)
        monkeypatch.setattr(holding, "memory_bytes", partial(int, memory))
        with caplog.at_level("INFO"):
            hold_signals([ds], "auto", 32, True, cpu, processes)
        assert ds.store.has(32, "wrap") == held
        assert ("kept in RAM" if held else "page cache") in caplog.messages[-1]
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    ds = Dataset(f"file://{tiny_set}")  # fetched as it is needed, not whole before the first step
    hold_signals([ds], "auto", 32, True, cpu, 1)
    assert not ds.store.has(32, "wrap")
    ds = Dataset(tiny_set)
    monkeypatch.setattr(holding, "AUTO_BYTES", 96 * 32 * 2 - 1)
    hold_signals([ds], "auto", 32, True, cpu, 1)
    assert not ds.store.has(32, "wrap")


def test_damage_that_a_job_may_never_read_stops_it_only_where_it_asked_for_all_in_memory(tiny_set, tmp_path, caplog):
    copy = shutil.copytree(tiny_set, tmp_path / "set")
    ds = Dataset(copy)
    place, sound = ds.describe(0), np.flatnonzero(ds.block_of != ds.block_of[0])
    with open(copy / place["shard"], "r+b") as shard:
        shard.seek(place["offset"])
        shard.write(b"\xff" * 4)
    cpu = torch.device("cpu")
    with pytest.raises(DataError, match="is damaged"):
        hold_signals([Dataset(copy)], "ram", 32, True, cpu, 1)
    ds = Dataset(copy)
    hold_signals([ds], "auto", 32, True, cpu, 1)
    assert ds.store.has(32, "wrap") and "1 of" in caplog.text and "blocks are damaged" in caplog.text
    np.testing.assert_array_equal(ds.signals(sound, 32), Dataset(tiny_set).signals(sound, 32))
    with pytest.raises(DataError, match="is damaged"):
        ds.signals(np.array([0]), 32)


def test_processes_of_this_machine_are_counted_as_the_launcher_says():
    here = Place(0, 0, 16)
    assert processes_here(here, {"LOCAL_SIZE": "8"}) == 8 and processes_here(here, {"LOCAL_WORLD_SIZE": "4"}) == 4
    assert processes_here(here, {}) == 16 and processes_here(here, {"LOCAL_SIZE": "many"}) == 16


def _open_as_rank(rank, folders, meeting, told):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    with pytest.raises(DataError) as problem:
        agree_on_data([Dataset(folders[rank])], Place(rank, rank, 2))
    told.put((rank, str(problem.value)))
    torch.distributed.destroy_process_group()


def test_ranks_that_opened_different_data_stop_before_they_train(tiny_set, tmp_path):
    other = make_loader_set(tmp_path / "other", subjects=1, rows=8, voxels=24, pictures=0)
    context, folders = torch.multiprocessing.get_context("spawn"), (tiny_set, other)
    told = context.Queue()
    ranks = [context.Process(target=_open_as_rank, args=(r, folders, tmp_path / "meeting", told)) for r in range(2)]
    for process in ranks:
        process.start()
    said = dict(told.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    assert "different versions" in said[0] and f"rank 1 has {other}" in said[1]


def test_packed_samples_and_clips_are_for_phase_1(job, tiny_job, tmp_path):
    path = tiny_job(tmp_path / "prior.toml", "first_stage", "")
    other = load_job(path, ["data.clip_frames=2"])
    check_layout(job("data.pad=packed"))
    with pytest.raises(ConfigError, match="packed samples and clips are phase 1's, not first_stage's"):
        check_layout(other)


def test_a_contrast_of_one_sample_is_refused(job):
    check_negatives(job("loss.negatives=micro"), ["A"], 2)
    check_negatives(job(), ["A"], 1)  # the whole batch is contrasted, however it is cut
    check_negatives(job("loss.negatives=micro", "loss.scale=0"), ["A"], 1)
    for negatives in ("micro", "predictions"):
        with pytest.raises(ConfigError, match=r"contrasts one sample with no other. Raise train.micro_batch"):
            check_negatives(job(f"loss.negatives={negatives}"), ["A"], 1)
