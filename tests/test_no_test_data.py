"""A trainer's datasets have no test data: every door is shut, and a job never notices that the test data is gone."""

import shutil

import numpy as np
import pytest
import torch
from tuned_world import TINY_PAIR, train_alone

from cadiff import session
from cadiff.config import load_job
from cadiff.distributed import Place
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part
from cadiff.shards.dataset import Dataset
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.readahead import Pieces
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream

OPEN = ("train", "val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One subject: a run of 40 samples of training and 8 of validation, one of 8 of testing, each with its picture.

    A third run mixes all splits, so one of its blocks holds samples of each.
    """
    out, rng = tmp_path_factory.mktemp("guard") / "set", np.random.default_rng(0)
    splits = {
        "r1": ["train"] * 40 + ["val"] * 8,
        "r2": ["test"] * 8,
        "r3": ["train"] * 2 + ["val"] * 2 + ["test"] * 2,
    }

    def fill(pack):
        pack.split_by = "stimulus"
        for run, split in splits.items():
            names = [f"{run}s{i:02d}" for i in range(len(split))]
            pack.add(make_records("A", run, rng.standard_normal((len(split), 30)).astype(np.float32), split, names))
            for name in names:
                pack.picture(name, encode_png(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "png")

    pack_folder(out, "table", {"guard": 1}, {}, fill, silent)
    return out


@pytest.fixture
def shut(folder):
    return Dataset(folder, splits=OPEN)


def parts(folder):
    """Ids of open and of closed samples, from the table alone."""
    split_N = Dataset(folder).table.split
    return np.flatnonzero(split_N != 2), np.flatnonzero(split_N == 2)


def test_every_door_is_shut(folder, shut):
    _, closed = parts(folder)
    stimuli = shut.table.stimulus[closed]
    out_NW, pictures_NSS3 = torch.zeros(1, 32), np.zeros((1, 16, 16, 3), np.uint8)
    doors = {
        "ids": lambda i: shut.ids("test"),
        "labels": lambda i: shut.labels(closed[[i]]),
        "signals": lambda i: shut.signals(closed[[i]], 32),
        "mixed with open ones": lambda i: shut.signals(np.array([0, closed[i]]), 32),
        "read_signals": lambda i: shut.read_signals(closed[[i]], out_NW),
        "check_rows": lambda i: shut.check_rows(closed[[i]]),
        "gather": lambda i: shut.store.gather(closed[[i]], 30, out_NW, "wrap"),
        "raw": lambda i: list(shut.store.raw(closed[[i]])),
        "images": lambda i: shut.images(stimuli[[i]], 16),
        "pictures.read": lambda i: shut.pictures.read(stimuli[[i]], pictures_NSS3),
        "encoded": lambda i: shut.pictures.encoded(int(stimuli[i])),
        "stream": lambda i: Stream([shut], split="test", batch=2, micro_batch=2, width=32),
    }
    for held in (False, True):
        if held:
            shut.store.hold("cpu", 32)
            doors["take"] = lambda i: shut.store.take(closed[[i]], out_NW)
            assert shut.store.table_MW[closed].isnan().all() and not shut.store.table_MW[parts(folder)[0]].isnan().any()
        for name, door in doors.items():
            for i in (0, len(closed) - 1):  # of a block of its own, and of one that open samples share
                with pytest.raises(ConfigError, match=r"opened for train and val only"):
                    door(i)
                    pytest.fail(name)
    assert not out_NW.any() and not pictures_NSS3.any()


def test_open_samples_are_read_as_ever(folder, shut):
    ds, (opened, _) = Dataset(folder), parts(folder)
    np.testing.assert_array_equal(shut.signals(opened, 32), ds.signals(opened, 32))
    np.testing.assert_array_equal(shut.images(ds.table.stimulus[opened], 16), ds.images(ds.table.stimulus[opened], 16))
    assert shut.hash == ds.hash and len(ds.ids("test")) == 10
    for split in OPEN:
        np.testing.assert_array_equal(shut.ids(split), ds.ids(split))
    assert shut.checks.all_sound and shut.pictures.checks.all_sound  # what nobody may read is not waited for
    with pytest.raises(ConfigError, match="split 'tets'"):
        Dataset(folder, splits=("train", "tets"))


def spoil(folder, copy):
    """A copy whose blocks and pictures of testing alone are overwritten with NaN."""
    shutil.copytree(folder, copy)
    ds, (_, closed) = Dataset(copy), parts(folder)
    places = [ds.describe(int(i)) for i in closed]
    for place in places[:8]:  # those of the run that is all of testing; the others share a block with open samples
        with open(copy / place["shard"], "r+b") as handle:
            handle.seek(place["offset"])
            handle.write(np.full(place["bytes"] // 2, np.nan, np.float16).tobytes())
    for place in places:
        with open(copy / place["picture_shard"], "r+b") as handle:
            handle.seek(place["picture_offset"])
            handle.write(b"\0" * place["picture_bytes"])
    with pytest.raises(DataError, match="damaged"):
        ds.signals(closed[:8], 32)
    return copy


@pytest.mark.parametrize("how", [{}, {"data.cache": "none"}, {"data.order": "window"}])
def test_a_job_never_notices_that_the_test_data_is_spoiled(folder, tiny_job, warm, tmp_path, how):
    spoiled, config = spoil(folder, tmp_path / "spoiled"), tiny_job(tmp_path / "job.toml", "phase2", TINY_PAIR)
    words = ["train.steps=2", "image.train_encoder=true", *(f"{key}={value}" for key, value in how.items())]
    if "data.order" in how:
        words.append("data.cache=none")
    for name, shards in (("whole", folder), ("spoiled", spoiled)):
        train_alone(warm, config, tmp_path / name / "run", *words, f'data.shards=["{shards}"]')
    for part in ("fmri", "image"):
        one, other = (load_part(tmp_path / name / "run", part) for name in ("whole", "spoiled"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_reading_ahead_leaves_out_blocks_of_testing(folder, tmp_path):
    copy, damaged = spoil(folder, tmp_path / "spoiled"), []
    for ds in (Dataset(copy, splits=OPEN), Dataset(copy)):
        assert len(Pieces([ds])) == 1  # all blocks lie together
        Pieces([ds]).look(0)
        damaged.append(len(ds.checks.damaged(np.arange(len(ds.blocks["rows"])))))
    assert damaged == [0, 1]


def test_a_shard_of_testing_alone_is_never_touched(tmp_path):
    out, rng = tmp_path / "set", np.random.default_rng(0)

    def fill(pack):
        pack.tars["fmri"]._shard_bytes = 1  # a shard for each run
        for run, split in (("r1", "train"), ("r2", "test"), ("r3", "val")):
            pack.add(make_records("A", run, rng.standard_normal((8, 30)).astype(np.float32), split))

    pack_folder(out, "table", {"shards": 1}, {}, fill, silent)
    whole = Dataset(out)
    shard = whole.describe(int(whole.ids("test")[0]))["shard"]
    assert shard not in {whole.describe(int(i))["shard"] for split in OPEN for i in whole.ids(split)}
    shut, opened = Dataset(out, splits=OPEN), np.r_[0:8, 16:24]
    (out / shard).unlink()
    assert np.isfinite(shut.signals(opened, 32)).all()
    shut.store.hold("cpu", 32)
    assert np.isfinite(shut.signals(opened, 32)).all()
    with pytest.raises(DataError, match="missing"):
        whole.store.hold("cpu", 32)


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_every_session_opens_its_sets_so(tiny_job, tmp_path, monkeypatch, phase):
    found = []

    def stop(datasets, place):
        found.extend(datasets)
        raise InterruptedError

    monkeypatch.setattr(session, "agree_on_data", stop)
    config = tiny_job(tmp_path / "job.toml", phase, TINY_PAIR if phase == "phase2" else "")
    with pytest.raises(InterruptedError):
        session.prepare(load_job(config), tmp_path / "run", Place())
    with pytest.raises(ConfigError, match="no test data can reach a trained weight"):
        found[0].ids("test")
