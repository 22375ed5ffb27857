"""Signals come back from every storage type, padding and cache; every byte is checked before its first use."""

import numpy as np
import pytest
import torch
from packed_folder import flip

from cadiff.errors import ConfigError, DataError
from cadiff.shards.address import AddressRange
from cadiff.shards.batches import balanced
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import FaultPolicy
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Reading, Stream
from cadiff.shards.verify import verify

ROWS, WIDTHS = 150, (37, 50)
SIGNALS = [np.random.default_rng(v).normal(size=(ROWS, v)).astype(np.float32) for v in WIDTHS]


def pack(folder, dtype="float16"):
    def fill(pack):
        for s, signals in enumerate(SIGNALS):
            pack.add(make_records(f"s{s}", "r", signals, "train"))

    pack_folder(folder, "hcp", {}, {}, fill, silent, dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("store") / "set")


@pytest.mark.parametrize("dtype,error", [("float16", 2e-3), ("float32", 0), ("int16", 1e-4), ("int8", 2e-2)])
def test_every_storage_type_comes_back_within_its_rounding(tmp_path, dtype, error):
    ds = Dataset(pack(tmp_path / "set", dtype))
    assert ds.manifest["dtype"] == dtype and verify(tmp_path / "set") == []
    ids = np.random.default_rng(0).permutation(2 * ROWS)
    found = ds.signals(ids, 64)
    for row, i in zip(found, ids.tolist()):
        subject, place = divmod(i, ROWS)
        np.testing.assert_allclose(row[: WIDTHS[subject]], SIGNALS[subject][place], atol=error * 4, rtol=0)
        np.testing.assert_array_equal(row, row[np.arange(64) % WIDTHS[subject]])
    with pytest.raises(ConfigError, match="one of float16"):
        pack_folder(tmp_path / "x", "hcp", {}, {}, lambda pack: None, silent, dtype="float64")


def test_zero_padding_says_how_many_values_are_signal(folder):
    ds = Dataset(folder)
    stream = Stream([ds], split="train", batch=8, micro_batch=8, width=64, reading=Reading(pad="zero"))
    batch = stream.micro(3, 0)
    for row, voxels, i in zip(batch["signal"], batch["voxels"].tolist(), batch["sample_id"].tolist()):
        assert voxels == WIDTHS[i // ROWS] and (row[voxels:] == 0).all() and (row[:voxels] != 0).any()
    with pytest.raises(ConfigError, match="one of wrap, zero, packed"):
        Stream([ds], split="train", batch=8, micro_batch=8, width=64, reading=Reading(pad="mirror"))


def test_packed_batches_lie_end_to_end_and_are_balanced(folder):
    ds, parts = Dataset(folder), []
    plain = Stream([ds], split="train", batch=24, micro_batch=24, width=64)
    for rank in range(4):
        reading = Reading(pad="packed", patch=10)
        stream = Stream([ds], split="train", batch=24, micro_batch=6, width=64, rank=rank, world=4, reading=reading)
        parts.append(stream.micro(5, 0))
    ids = [i for part in parts for i in part["sample_id"].tolist()]
    assert sorted(ids) == sorted(plain.sample_ids(5).tolist()) and ids == stream.sample_ids(5).tolist()
    sums = [int(part["lengths"].sum()) for part in parts]
    assert max(sums) - min(sums) <= 10  # one sample of 40 against one of 50
    for part in parts:
        assert len(part["signal"]) == part["lengths"].sum()
        starts = np.cumsum(part["lengths"].numpy()) - part["lengths"].numpy()
        for i, start, length in zip(part["sample_id"].tolist(), starts.tolist(), part["lengths"].tolist()):
            assert length == (40, 50)[i // ROWS]
            np.testing.assert_array_equal(
                part["signal"][start : start + length], ds.signals(np.array([i]), 64)[0, :length]
            )


def test_balance_holds_for_any_number_of_ranks():
    lengths = np.random.default_rng(0).integers(4000, 6300, 240) // 16 * 16
    for world in (2, 3, 4, 5, 8, 12, 24):
        sums = lengths[balanced(lengths)].reshape(world, -1).sum(axis=1)
        at_random = lengths.reshape(world, -1).sum(axis=1)
        assert np.ptp(sums) / sums.mean() < 0.08 and (world < 4 or np.ptp(sums) < np.ptp(at_random)), world
    assert sorted(balanced(lengths).tolist()) == list(range(240)) and balanced(np.array([5])).tolist() == [0]


def test_a_cache_in_memory_gives_the_same_rows_without_the_files(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "set")
    ids = np.random.default_rng(0).permutation(2 * ROWS)
    expected = Dataset(folder).signals(ids, 64)
    ds = Dataset(copy)
    ds.store.hold("cpu", 64)
    assert ds.store.table_MW.dtype == torch.float16 and ds.store.table_MW.nbytes == ds.store.held_bytes(64)
    shutil.rmtree(copy)
    np.testing.assert_array_equal(ds.signals(ids, 64), expected)
    stream = Stream([ds], split="train", batch=30, micro_batch=30, width=64, reading=Reading(order="window"))
    for _, _, batch in stream.iterate(0, 3):  # nor does a windowed order read ahead from them
        rows = [expected[ids.tolist().index(i)] for i in batch["sample_id"].tolist()]
        np.testing.assert_array_equal(batch["signal"], rows)


@pytest.mark.gpu
def test_a_cache_on_the_gpu_gives_the_same_rows(folder):
    ds = Dataset(folder)
    expected = ds.signals(np.arange(2 * ROWS), 64)
    ds.store.hold("cuda", 64)
    np.testing.assert_array_equal(ds.signals(np.arange(2 * ROWS), 64), expected)
    batch = Stream([ds], split="train", batch=8, micro_batch=8, width=64).micro(0, 0)
    assert batch["signal"].is_cuda
    np.testing.assert_array_equal(batch["signal"].cpu(), expected[batch["sample_id"].numpy()])
    zeros = Stream([ds], split="train", batch=8, micro_batch=8, width=64, reading=Reading(pad="zero")).micro(0, 0)
    assert zeros["signal"].is_cuda and (zeros["signal"][:, 50:] == 0).all()


def test_a_damaged_block_is_found_on_its_first_read_and_named(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "set")
    ds = Dataset(copy)
    place = ds.describe(70)
    flip(copy / place["shard"], place["offset"] + 5)
    ds = Dataset(copy)
    ds.signals(np.arange(64), 64)  # the block before is sound
    with pytest.raises(DataError, match=r"fmri-000000\.tar: block 1 at byte [\d,]+ is damaged"):
        ds.signals(np.array([3, 65]), 64)
    with pytest.raises(DataError, match="is damaged"):
        ds.store.hold("cpu", 64)


def test_checking_every_read_finds_what_changes_later(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "set")
    for check in ("first", "every"):
        ds = Dataset(copy)
        reading = Reading(workers=0, faults=FaultPolicy(check=check))
        stream = Stream([ds], split="train", batch=300, micro_batch=300, width=64, reading=reading)
        stream.micro(0, 0)
        place = ds.describe(200)
        flip(copy / place["shard"], place["offset"])
        if check == "first":
            stream.micro(0, 0)
        else:
            with pytest.raises(DataError, match="is damaged"):
                stream.micro(0, 0)
        flip(copy / place["shard"], place["offset"])


def test_a_shard_that_vanishes_or_shrinks_is_an_error_not_a_crash(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "set")
    ds = Dataset(copy)
    with open(copy / "fmri-000000.tar", "rb+") as handle:
        handle.truncate(3000)
    with pytest.raises(DataError, match="ends at byte"):
        ds.signals(np.arange(10), 64)
    (copy / "fmri-000000.tar").unlink()
    with pytest.raises(DataError, match="missing"):
        ds.signals(np.arange(10), 64)


def test_a_shard_that_shrinks_while_it_is_mapped_is_noticed(folder, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr("cadiff.shards.store._WATCH_S", 0.0)
    copy = shutil.copytree(folder, tmp_path / "set")
    ds = Dataset(copy)
    ds.signals(np.arange(300), 64)
    with open(copy / "fmri-000000.tar", "rb+") as handle:
        handle.truncate(3000)
    with pytest.raises(DataError, match=r"fmri-000000\.tar: is 3,000 bytes now"):
        ds.signals(np.arange(10), 64)


def test_a_disk_that_cannot_read_is_damage(folder, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    ds = Dataset(folder)
    monkeypatch.setattr("cadiff.shards.checks.os.preadv", broken)
    with pytest.raises(DataError, match="the disk cannot read it"):
        ds.signals(np.arange(3), 64)


def test_what_one_thread_finds_damaged_no_other_takes_back(folder):
    ds = Dataset(folder)
    ds.checks.look(np.arange(6))
    assert ds.checks.all_sound
    ds.checks.mark(np.array([2]))
    assert not ds.checks.all_sound and ds.checks.damaged(np.arange(6)).tolist() == [2]


def test_a_row_at_the_end_of_a_file_can_be_read_a_little_beyond(tmp_path):
    for k in range(2):
        (tmp_path / str(k)).write_bytes(b"\1" * 8192)
    area = AddressRange([8192, 8192])
    area.map(0, tmp_path / "0")  # the next file is not there yet
    assert area.flat(torch.int8)[8000 : 8192 + 1024].sum() == 192


def test_files_share_one_range_of_addresses(tmp_path):
    sizes = [5000, 0, 4096, 10]
    paths = [tmp_path / str(k) for k in range(4)]
    for k, (path, size) in enumerate(zip(paths, sizes)):
        path.write_bytes(bytes([k + 1]) * size)
    area = AddressRange(sizes)
    flat = area.flat(torch.int8)
    for k in (2, 0, 3, 1):
        area.map(k, paths[k])
    assert area.starts.tolist() == [0, 12288, 16384, 24576]
    for k, (start, size) in enumerate(zip(area.starts.tolist(), sizes)):
        assert (flat[start : start + size] == k + 1).all()
    with pytest.raises(DataError, match=r"5,000 bytes, expected 4,096"):
        area.map(2, paths[0])
    del area
    assert flat[0] == 1  # a view keeps the mapping
