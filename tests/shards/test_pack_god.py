"""GOD: pairing, text ids, train-only statistics, stimulus-disjoint splits, parts, and clear refusals."""

import json
import shutil

import numpy as np
import pytest
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards import god
from cadiff.shards.dataset import Dataset
from cadiff.shards.god import pack_god
from cadiff.shards.verify import verify


@pytest.fixture(scope="module")
def ds(god_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "god"
    pack_god(god_files.parent, out, val_fraction=0.2, test="averaged+trials")
    return Dataset(out)


@pytest.fixture
def broken(god_files, tmp_path):
    return shutil.copytree(god_files, tmp_path / "god")


def edit(path, **changes):
    arrays = {**np.load(path), **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def test_splits_have_the_right_rows_and_share_no_stimulus(ds):
    assert ds.subjects == ["sbj_1", "sbj_2"] and verify(ds.folder) == []
    assert [len(ds.ids(split)) for split in ("train", "val", "test")] == [20, 4, 48]
    of = {split: set(ds.table.stimulus[ds.ids(split)].tolist()) for split in ("train", "val", "test")}
    assert (len(of["train"]), len(of["val"]), len(of["test"])) == (5, 1, 4)
    assert not of["train"] & of["val"] and not of["train"] & of["test"] and not of["val"] & of["test"]
    averaged = ds.ids("test")[ds.table.repeat[ds.ids("test")] == -1]
    assert len(averaged) == 8 and ds.table.stimulus[averaged].tolist() == [6, 7, 8, 9] * 2


def test_ids_are_text_with_six_decimals(ds):
    assert ds.stimuli[2] == "1621127.019020" and ds.stimuli[6] == "1443537.022563"


def test_each_row_is_paired_with_its_picture_and_class(god_files, ds):
    subject = np.load(god_files / "sbj_2.npz")
    rows = np.flatnonzero((ds.table.subject == 1) & (ds.table.split != 2))
    assert ds.table.stimulus[rows].tolist() == subject["arr_3"].tolist()
    trials = np.flatnonzero((ds.table.subject == 1) & (ds.table.split == 2) & (ds.table.repeat >= 0))
    assert (ds.table.stimulus[trials] - 6).tolist() == subject["arr_4"].tolist()
    assert sorted(ds.table.repeat[trials].tolist()) == sorted([0, 1, 2, 3, 4] * 4)
    pictures = np.load(god_files / "images_256.npz")
    np.testing.assert_array_equal(ds.images(np.arange(6), 24), pictures["train_images"].transpose(0, 3, 1, 2))
    restored = np.rint(pictures["test_images"] * 255).astype(np.uint8)
    np.testing.assert_array_equal(ds.images(np.arange(6, 10), 24), restored.transpose(0, 3, 1, 2))
    label = {s: n for s, n in zip(ds.table.stimulus.tolist(), ds.table.label.tolist())}
    assert label[2] == label[3] and label[4] == label[5] and label[2] != label[0] == label[1]
    assert ds.classes[0] == "class 1" and len(ds.classes) == 7  # training classes first, test classes continue


def test_statistics_come_from_training_rows_alone(god_files, ds):
    subject = np.load(god_files / "sbj_1.npz")
    columns = np.flatnonzero(subject["VC"])
    train = ds.ids("train", ["sbj_1"])
    rows = subject["arr_0"][train][:, columns].astype(np.float32)
    np.testing.assert_allclose(ds.stats("sbj_1").mean, rows.mean(0), rtol=1e-5)
    average = ds.ids("test", ["sbj_1"])[:4]
    expected = (subject["arr_2"][:, columns] - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(ds.signals(average, len(columns)), expected, atol=4e-3)


def test_one_mean_for_all_voxels_on_request(god_files, tmp_path):
    pack_god(god_files, tmp_path / "s", subjects=["sbj_1"], normalise="scalar")
    ds = Dataset(tmp_path / "s")
    train = ds.signals(ds.ids("train"), ds.voxels)
    assert abs(train.mean()) < 1e-3 and abs(train.std() - 1) < 1e-3 and np.abs(train.mean(0)).max() > 0.1
    assert ds.stats("sbj_1").mean.shape == (1,) and [len(ds.ids(s)) for s in ("train", "test")] == [10, 4]


@pytest.mark.parametrize("aligned", [False, True])
def test_legacy_statistics_are_those_of_the_padded_training_rows(dataprep, dataprep_widths, broken, tmp_path, aligned):
    stored, voxels = dataprep[1], max(width for width in dataprep_widths if (width % 16 == 0) == aligned)
    rows, padded = stored[f"voxts.{voxels}.in"], stored[f"pad.{voxels}.out"]
    assert padded.shape == (len(rows), voxels + 16 - voxels % 16)  # what is aligned gets a whole patch of 16 more
    masks = {"VC": np.ones(voxels, bool), "V1": None, "LOC": None}
    edit(broken / "sbj_1.npz", arr_0=rows[:12], arr_2=rows[12:16], **masks)
    pack_god(broken, tmp_path / "out", subjects=["sbj_1"], val_fraction=0, legacy=True)
    ds = Dataset(tmp_path / "out")
    mean, std = padded[:12].mean(), padded[:12].std()
    np.testing.assert_allclose([ds.stats("sbj_1").mean[0], ds.stats("sbj_1").std[0]], [mean, std], rtol=1e-5)
    assert abs(rows[:12].std() - std) > 1e-4 * std  # not what the unpadded rows give
    np.testing.assert_allclose(ds.signals(ds.ids("train"), voxels), (rows[:12] - mean) / std, atol=4e-3)
    np.testing.assert_allclose(ds.signals(ds.ids("test"), voxels), (rows[12:16] - mean) / std, atol=4e-3)
    options = ds.manifest["options"]
    assert (options["normalise"], options["legacy"]) == ("scalar", True)


def test_legacy_statistics_leave_validation_out(god_files, tmp_path):
    pack_god(god_files, tmp_path / "out", subjects=["sbj_1"], legacy=True)
    ds, subject = Dataset(tmp_path / "out"), np.load(god_files / "sbj_1.npz")
    rows = subject["arr_0"][ds.ids("train")][:, subject["VC"]].astype(np.float32)
    padded = rows[:, np.arange(48) % 35]  # 35 voxels
    assert len(ds.ids("val")) == 2 and ds.voxels == 35
    np.testing.assert_allclose(ds.stats("sbj_1").mean[0], padded.mean(), rtol=1e-5)
    pack_god(god_files, tmp_path / "plain", subjects=["sbj_1"])
    options = Dataset(tmp_path / "plain").manifest["options"]
    assert (options["normalise"], options["legacy"]) == ("voxel", False)


def test_regions_are_columns_of_the_packed_signal(god_files, ds, tmp_path):
    subject = np.load(god_files / "sbj_1.npz")
    columns = np.flatnonzero(subject["VC"])
    np.testing.assert_array_equal(columns[ds.rois["sbj_1"]["V1"]], np.flatnonzero(subject["VC"] & subject["V1"]))
    assert "LOC" not in ds.rois["sbj_1"]  # no voxel of it was packed
    pack_god(god_files, tmp_path / "u", roi=["V1", "LOC"])
    assert set(Dataset(tmp_path / "u").rois["sbj_1"]) == {"V1", "LOC", "VC"}
    assert Dataset(tmp_path / "u").voxel_counts.tolist() == [25, 15]


def test_a_voxel_that_is_not_finite_becomes_zeros_and_is_reported(broken, tmp_path):
    values = np.load(broken / "sbj_1.npz")["arr_2"]
    values[1, 7] = np.nan
    edit(broken / "sbj_1.npz", arr_2=values)
    summary = pack_god(broken, tmp_path / "n")
    ds = Dataset(tmp_path / "n")
    assert summary["notes"] == {"voxels_not_finite": {"sbj_1": 1}}
    assert not ds.signals(ds.ids("train", ["sbj_1"]), ds.voxels)[:, 3].any()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"arr_2": None, "arr_3": None}, "keys arr_2, arr_3 are missing"),
        ({"arr_3": np.arange(1, 13)}, "arr_3 runs from 1 to 12, but there are 6 pictures"),
        ({"arr_3": np.arange(5)}, "expected 12 whole numbers"),
        ({"arr_3": np.linspace(0, 1, 12)}, "whole numbers"),
        ({"arr_2": np.zeros((3, 60))}, "arr_2 has 3 rows for 4 pictures"),
        ({"arr_2": np.zeros((4, 7))}, "same voxels"),
        ({"VC": None}, "no mask 'VC'; it holds LOC, V1"),
        ({"VC": np.zeros(60, bool)}, "has no voxels"),
        ({"arr_4": None}, "keys arr_4 are missing"),
        ({"arr_4": np.repeat([1, 2, 3, 0], 5)}, "resemble their row of arr_2"),
        ({"arr_0": np.array([{"x": 1}], dtype=object)}, "Pickled objects are never loaded"),
    ],
)
def test_files_that_do_not_fit_are_refused(broken, tmp_path, change, message):
    edit(broken / "sbj_1.npz", **change)
    with pytest.raises(DataError, match=message):
        pack_god(broken, tmp_path / "x", test="averaged+trials")
    assert not (tmp_path / "x").exists()


def test_missing_files_of_the_release_are_config_errors(broken, tmp_path):
    for name in ("imagenet_testing_label.csv", "imagenet_class_index.json", "images_256.npz"):
        kept = (broken / name).read_bytes()
        (broken / name).unlink()
        with pytest.raises(ConfigError, match=f"no {name}"):
            pack_god(broken, tmp_path / "x")
        (broken / name).write_bytes(kept)
    assert not (tmp_path / "x").exists()


def test_pictures_must_fit_the_labels(broken, tmp_path):
    pictures = dict(np.load(broken / "images_256.npz"))
    edit(broken / "images_256.npz", test_images=pictures["test_images"][:3])
    with pytest.raises(DataError, match=r"expected \(4, height, width, 3\)"):
        pack_god(broken, tmp_path / "x")
    edit(broken / "images_256.npz", test_images=pictures["test_images"] * 999)
    with pytest.raises(DataError, match=r"expected 0\.\.1 or 0\.\.255"):
        pack_god(broken, tmp_path / "x")
    (broken / "images_256.npz").write_bytes((broken / "images_256.npz").read_bytes()[:2000])
    with pytest.raises(DataError, match="images_256"):
        pack_god(broken, tmp_path / "x")


def test_wrong_folders_subjects_and_options_are_config_errors(god_files, tmp_path):
    both = {"normalise": "voxel", "legacy": True}
    for options in ({"root": tmp_path}, {"subjects": ["sbj_9"]}, {"normalise": "max"}, {"test": "all"}, both):
        with pytest.raises(ConfigError):
            pack_god(**{"root": god_files, "out": tmp_path / "x", **options})


@pytest.fixture
def begun(monkeypatch):
    """What the parts begun so far hold: a subject, or one half of the pictures."""
    names = []

    def noting(unit):
        def noted(*arguments):
            names.append(arguments[-2])
            unit(*arguments)

        return noted

    for unit in ("pack_subject", "pack_pictures"):
        monkeypatch.setattr(god, unit, noting(getattr(god, unit)))
    return names


def test_the_number_of_processes_does_not_change_a_byte(god_files, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        pack_god(god_files, tmp_path / name, test="averaged+trials", workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and verify(tmp_path / "two") == []


def test_an_interrupted_pack_goes_on_after_its_finished_parts(broken, tmp_path, begun):
    pack_god(broken, tmp_path / "whole", workers=1)
    assert begun == ["sbj_1", "sbj_2", "train", "test"]
    good = (broken / "sbj_2.npz").read_bytes()
    (broken / "sbj_2.npz").write_bytes(bytes(len(good)))
    begun.clear()
    with pytest.raises(DataError, match=r"sbj_2\.npz: not a readable"):
        pack_god(broken, tmp_path / "out", workers=1)
    assert begun == ["sbj_1", "sbj_2"] and not (tmp_path / "out").exists()
    (broken / "sbj_2.npz").write_bytes(good)
    begun.clear()
    pack_god(broken, tmp_path / "out", workers=1)
    assert begun == ["sbj_2", "train", "test"] and contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_are_made_anew_where_a_file_they_depend_on_has_changed(broken, tmp_path, begun):
    images = dict(np.load(broken / "images_256.npz"))
    edit(broken / "images_256.npz", test_images=images["test_images"] * 999)

    def stopped():
        begun.clear()
        with pytest.raises(DataError, match=r"expected 0\.\.1 or 0\.\.255"):
            pack_god(broken, tmp_path / "out", workers=1)
        return begun

    assert stopped() == ["sbj_1", "sbj_2", "train", "test"] and stopped() == ["test"]
    edit(broken / "sbj_1.npz", arr_2=np.load(broken / "sbj_1.npz")["arr_2"] + 1)
    assert stopped() == ["sbj_1", "test"]
    labels = broken / "imagenet_testing_label.csv"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join([lines[1], lines[0], *lines[2:]]))
    assert stopped() == ["sbj_1", "sbj_2", "train", "test"]
    np.savez(broken / "images_256.npz", **images)
    begun.clear()
    pack_god(broken, tmp_path / "out", workers=1)
    assert begun == ["train", "test"]  # the pictures are in one file
    assert Dataset(tmp_path / "out").stimuli[6:8] == ["1943899.024131", "1443537.022563"]


def test_the_command_takes_a_number_of_processes(god_files, tmp_path, cadiff):
    pack_god(god_files, tmp_path / "one", workers=1)
    code, out, _ = cadiff("pack", "god", god_files, tmp_path / "two", "--workers", "2", "--json")
    assert code == 0 and json.loads(out)["samples"] == {"train": 20, "val": 4, "test": 8}
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
