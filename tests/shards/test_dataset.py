"""Reading a packed folder: rows, padding, pictures; and refusing one that was damaged or tampered with."""

import shutil

import numpy as np
import pytest
from packed_folder import flip, reindex, reseal

from cadiff.errors import ConfigError, DataError
from cadiff.shards import picture_store
from cadiff.shards.dataset import Dataset
from cadiff.shards.verify import verify


@pytest.fixture
def copy(tiny_set, tmp_path):
    return shutil.copytree(tiny_set, tmp_path / "set")


def test_samples_are_found_by_split_and_subject(tiny_set):
    ds = Dataset(tiny_set)
    assert (len(ds), ds.kind, ds.voxels, ds.subjects) == (96, "table", 30, ["A", "B"])
    assert [len(ds.ids(split)) for split in ("train", "val", "test")] == [64, 16, 16]
    assert len(ds.ids("train", ["B"])) == 32 and (ds.table.subject[ds.ids("train", ["B"])] == 1).all()
    everything = np.concatenate([ds.ids(split) for split in ("train", "val", "test")])
    assert sorted(everything.tolist()) == list(range(96))
    with pytest.raises(ConfigError, match="one of train, val, test"):
        ds.ids("dev")
    with pytest.raises(ConfigError, match="no subject 'C' here; there are A, B"):
        ds.ids("train", ["C"])


def test_signals_are_padded_from_each_subjects_own_width(tiny_set):
    ds = Dataset(tiny_set)
    ids = np.array([95, 0, 50, 3])
    signals = ds.signals(ids, 64)
    assert signals.dtype == np.float32 and signals.shape == (4, 64)
    for row, voxels in zip(signals, (27, 30, 27, 30)):
        np.testing.assert_array_equal(row, row[np.arange(64) % voxels])
    np.testing.assert_array_equal(ds.signals(ids, 30)[:, :27], signals[:, :27])
    assert ds.signals(np.array([], dtype=int), 64).shape == (0, 64)
    with pytest.raises(ConfigError, match="Use a width of at least 30"):
        ds.signals(ids, 29)
    with pytest.raises(ConfigError, match=r"not within 0\.\.95"):
        ds.signals(np.array([96]), 64)


def test_pictures_are_resized_once_and_kept(tiny_set, monkeypatch):
    ds = Dataset(tiny_set)
    first = ds.images(np.array([3, 3, 40]), 16)
    assert first.shape == (3, 3, 16, 16) and first.dtype == np.uint8 and (first[0] == first[1]).all()
    monkeypatch.setattr(picture_store, "decode_square", lambda *a: pytest.fail("decoded again"))
    np.testing.assert_array_equal(ds.images(np.array([40, 3]), 16), first[[2, 0]])
    monkeypatch.undo()
    monkeypatch.setattr(picture_store, "CACHE_BYTES", 0)
    np.testing.assert_array_equal(Dataset(tiny_set).images(np.array([40, 3]), 16), first[[2, 0]])


def test_an_unfinished_folder_is_refused(tmp_path, copy):
    with pytest.raises(DataError, match="not a finished packed folder"):
        Dataset(tmp_path)
    (copy / "fmri-000000.tar").unlink()
    with pytest.raises(DataError, match="missing, expected"):
        Dataset(copy)
    assert len(verify(copy)) == 1


def test_a_shard_cut_short_is_refused(copy):
    with open(copy / "fmri-000000.tar", "rb+") as handle:
        handle.truncate(1000)
    with pytest.raises(DataError, match="1,000 bytes, expected"):
        Dataset(copy)


def test_verify_finds_one_flipped_byte(copy):
    assert verify(copy) == []
    flip(copy / "fmri-000000.tar", 3000)
    problems = verify(copy)
    assert any("sha256" in problem for problem in problems) and any("crc32" in problem for problem in problems)


def test_verify_finds_a_tar_that_is_not_webdataset(copy):
    import io
    import tarfile

    path = copy / "images-000000.tar"
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("../../evil.png")
        archive.addfile(member, io.BytesIO())
    reseal(copy)
    assert any("WebDataset needs" in problem for problem in verify(copy))
    path.write_bytes(b"\0" * 10 + b"x" * path.stat().st_size)
    reseal(copy)
    assert any("not readable as a tar" in problem for problem in verify(copy))


def test_an_index_changed_afterwards_is_refused(copy):
    flip(copy / "index.npz", 200)
    with pytest.raises(DataError, match="hash differs"):
        Dataset(copy)
    assert any("hash differs" in problem for problem in verify(copy))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="cadiff-shards/9"),
        lambda m: m["files"][0].update(path="../outside.tar"),
        lambda m: m["files"][0].update(path="/etc/passwd"),
        lambda m: m.pop("samples"),
        lambda m: m.update(surprise=1),
        lambda m: m["subjects"][0].update(voxels=-1),
        lambda m: m["subjects"][0].update(voxels=10**9),
        lambda m: m["stimuli"].append("one more"),
        lambda m: m.update(runs=[]),
        lambda m: m["samples"].update(train=65, val=15),
        lambda m: m["arrays"].append({"subject": "*", "role": "roi", "name": "V1", "array": "array_000099"}),
    ],
)
def test_a_tampered_manifest_is_refused(copy, change):
    reseal(copy, change)
    with pytest.raises(DataError):
        Dataset(copy)


def _set(name, index, value):
    def change(arrays):
        arrays[name][index] = value

    return change


@pytest.mark.parametrize(
    "arrays",
    [
        _set("block_offset", 0, 10**12),
        _set("block_offset", 0, -2),
        _set("block_offset", 0, 1537),
        _set("block_rows", 0, 0),
        _set("block_first", 1, 3),
        _set("block_shard", 0, 7),
        _set("block_shard", 0, -1),
        _set("sample_subject", 0, 1),
        _set("sample_subject", 0, 9),
        _set("sample_split", 0, 5),
        _set("sample_label", 0, -2),
        _set("image_offset", 0, 10**12),
        _set("image_bytes", 0, -1),
        lambda a: a.pop("block_rows"),
        lambda a: a.update(block_rows=a["block_rows"].astype(float)),
        lambda a: a.update(block_rows=a["block_rows"][:-1]),
        lambda a: a.update(sample_run=a["sample_run"][:-1]),
        lambda a: a.update(image_offset=a["image_offset"][:-1]),
        lambda a: [a.update({k: a[k][:0]}) for k in list(a) if k.startswith("block_")],
        lambda a: a.update(sample_run=np.array([{"evil": 1}] * 96, dtype=object)),
    ],
)
def test_a_tampered_index_is_refused(copy, arrays):
    reindex(copy, arrays)
    with pytest.raises(DataError, match="not a valid index"):
        Dataset(copy)


def test_a_compressed_index_is_refused(copy):
    np.savez_compressed(copy / "index.npz", **dict(np.load(copy / "index.npz")))
    reseal(copy)
    with pytest.raises(DataError, match="compressed"):
        Dataset(copy)


def test_a_picture_that_does_not_decode_is_named(copy):
    def shorten(arrays):
        from cadiff.shards.encoding import crc32c

        arrays["image_bytes"][2] = 30
        shard = (copy / "images-000000.tar").read_bytes()
        arrays["image_crc32c"][2] = crc32c(shard[arrays["image_offset"][2] :][:30])

    reindex(copy, shorten)
    with pytest.raises(DataError, match="stimulus s02: the stored picture does not decode"):
        Dataset(copy).images(np.array([2]), 16)


def test_a_stimulus_without_a_picture_is_named(tmp_path):
    from cadiff.shards.protocol import pack_folder
    from cadiff.shards.record import make_records, silent

    signals = np.ones((2, 4), np.float32)
    pack_folder(
        tmp_path / "s", "table", {}, {}, lambda p: p.add(make_records("A", "r", signals, "train", ["a", "b"])), silent
    )
    ds = Dataset(tmp_path / "s")
    assert not ds.has_picture.any() and ds.stats("A") is None
    with pytest.raises(DataError, match="stimulus b has no picture"):
        ds.images(np.array([1]), 16)


def test_rows_survive_the_round_trip_to_half_precision(tmp_path):
    from cadiff.shards.voxels import to_half, to_single

    values = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    half = to_half(values)
    np.testing.assert_array_equal(half, values.astype(np.float16))
    np.testing.assert_array_equal(to_single(half, np.empty((50, 40), np.float32)), half.astype(np.float32))
    assert np.isinf(to_half(np.array([[1e6]]))).all()


def test_labels_are_names_or_none_and_regions_of_all_are_everyones(tmp_path):
    from cadiff.shards.protocol import pack_folder
    from cadiff.shards.record import make_records, silent

    def fill(pack):
        pack.add(make_records("A", "r", np.ones((3, 4), np.float32), "train", None, ["x", None, "y"]))
        pack.rois("*", {"V1": np.array([0, 2])})
        pack.rois("A", {"V2": np.array([3])})

    pack_folder(tmp_path / "s", "table", {}, {}, fill, silent)
    ds = Dataset(tmp_path / "s")
    assert ds.labels(np.arange(3)) == ["x", None, "y"]
    assert {name: columns.tolist() for name, columns in ds.regions("A").items()} == {"V1": [0, 2], "V2": [3]}
