"""Batches are the same whatever the number of ranks, the micro-batch, or the step a job resumes from."""

import threading

import numpy as np
import pytest
import torch

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream


@pytest.fixture(scope="module")
def ds(tiny_set):
    return Dataset(tiny_set)


def make(ds, **options):
    chosen = {"split": "train", "batch": 16, "micro_batch": 4, "width": 32, "image_size": 16, "seed": 5} | options
    return Stream(ds if isinstance(ds, list) else [ds], **chosen)


def collect(stream, start, stop):
    """All batches, copied, because a stream uses their memory again."""
    return [(s, i, {key: v.clone() for key, v in batch.items()}) for s, i, batch in stream.iterate(start, stop)]


def global_batch(ds, step, world, micro_batch):
    parts = []
    for rank in range(world):
        stream = make(ds, rank=rank, world=world, micro_batch=micro_batch)
        parts += [stream.micro(step, index) for index in range(stream.accumulate)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize("world,micro_batch", [(1, 4), (2, 8), (2, 2), (4, 4), (4, 1), (8, 2)])
def test_the_global_batch_is_the_same_for_all_worlds_and_micro_batches(ds, world, micro_batch):
    for step in (0, 3, 11):
        expected = global_batch(ds, step, 1, 16)
        found = global_batch(ds, step, world, micro_batch)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_batch_holds_what_the_contract_says(ds):
    batch = make(ds).micro(9, 1)
    kinds = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}
    assert kinds == {
        "signal": (torch.float32, (4, 32)),
        "image": (torch.uint8, (4, 3, 16, 16)),
        **{k: (torch.int64, (4,)) for k in ("label", "stimulus", "subject", "sample_id", "epoch")},
    }
    ids = batch["sample_id"].numpy()
    np.testing.assert_array_equal(batch["signal"], ds.signals(ids, 32))
    np.testing.assert_array_equal(batch["image"], ds.images(ds.table.stimulus[ids], 16))
    np.testing.assert_array_equal(batch["label"], ds.table.label[ids])
    assert batch["epoch"].tolist() == [2] * 4 and make(ds).steps_per_epoch == 4


def test_an_epoch_shows_every_sample_once(ds):
    stream = make(ds)
    seen = [i for step in range(4) for i in stream.sample_ids(step).tolist()]
    assert sorted(seen) == ds.ids("train").tolist() and len(stream) == 64


def test_resuming_from_any_step_gives_the_same_batches(ds):
    whole = collect(make(ds), 0, 6)
    assert [(step, index) for step, index, _ in whole] == [(s, i) for s in range(6) for i in range(4)]
    for start in range(6):
        resumed = collect(make(ds), start, 6)
        for (step, index, batch), (step2, index2, batch2) in zip(whole[4 * start :], resumed, strict=True):
            assert (step, index) == (step2, index2)
            assert all(torch.equal(batch[key], batch2[key]) for key in batch)


def test_validation_is_the_same_every_time(ds):
    stream = make(ds, split="val", batch=8, micro_batch=8)
    assert stream.steps_per_epoch == 2
    assert torch.equal(stream.micro(0, 0)["sample_id"], stream.micro(2, 0)["sample_id"])
    assert stream.micro(5, 0)["epoch"].tolist() == [-1] * 8
    assert set(stream.sample_ids(0)) | set(stream.sample_ids(1)) == set(ds.ids("val"))


def test_batches_that_do_not_divide_are_refused(ds):
    with pytest.raises(ConfigError, match="not a multiple of micro_batch 5 x 1"):
        make(ds, micro_batch=5)
    with pytest.raises(ConfigError, match="not a multiple"):
        make(ds, world=3)
    with pytest.raises(ConfigError, match="16 samples, fewer than"):
        make(ds, split="val", batch=32)
    with pytest.raises(ConfigError, match="no subject 'Z'"):
        make(ds, subjects=["Z"])
    assert len(make(ds, subjects=["B"])) == 32


def pack_small(folder, signals, name, label, picture):
    def fill(pack):
        pack.add(make_records(name, "r", signals, "train", ["p0"] + [None] * 7, [label] * 8))
        if picture:
            pack.picture("p0", encode_png(np.full((8, 8, 3), 200, np.uint8)), "png")

    pack_folder(folder, "table", {}, {}, fill, silent)
    return Dataset(folder)


def test_several_sets_are_mixed_with_united_names(ds, tmp_path):
    other = pack_small(tmp_path / "o", np.ones((8, 20), np.float32), "B", "blue", False)
    stream = make([ds, other], batch=8, image_size=None)
    assert stream.subjects == ["A", "B"] and stream.classes == ["red", "green", "blue"]
    seen = {
        int(i): b
        for step in range(9)
        for index in range(2)
        for b in [stream.micro(step, index)]
        for i in b["sample_id"]
    }
    assert set(range(96, 104)) <= set(seen) and "image" not in stream.keys
    batch = next(b for i, b in seen.items() if i >= 96)
    row = int((batch["sample_id"] >= 96).nonzero()[0])
    assert batch["subject"][row] == 1 and batch["label"][row] == 2 and (batch["signal"][row] == 1).all()
    assert batch["stimulus"][row] in (-1, 48)


def test_a_set_without_pictures_makes_all_batches_pictureless(ds, tmp_path):
    other = pack_small(tmp_path / "o", np.ones((8, 20), np.float32), "B", "blue", False)
    assert "image" not in make([ds, other]).micro(0, 0)


def test_samples_without_a_picture_are_left_out_when_pictures_are_wanted(tmp_path):
    one = pack_small(tmp_path / "o", np.ones((8, 20), np.float32), "B", "blue", True)
    stream = make(one, batch=1, micro_batch=1)
    assert len(stream) == 1 and (stream.micro(0, 0)["image"] == 200).all()
    assert len(make(one, batch=8, image_size=None)) == 8


def test_pictures_alone_give_no_signal(ds):
    assert "signal" not in make(ds, width=0).micro(0, 0)


def test_an_error_in_the_prefetch_thread_reaches_the_trainer(ds, monkeypatch):
    stream = make(ds)
    monkeypatch.setattr(stream, "_fill", lambda *a: (_ for _ in ()).throw(DataError("shard vanished")))
    with pytest.raises(DataError, match="shard vanished"):
        list(stream.iterate(0, 1))


def test_leaving_early_stops_the_prefetch_thread(ds):
    batches = make(ds).iterate(0, 1000)
    next(batches)
    batches.close()
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


@pytest.mark.gpu
def test_batches_are_pinned_where_there_is_a_gpu(ds):
    assert next(make(ds).iterate(0, 1))[2]["signal"].is_pinned()
