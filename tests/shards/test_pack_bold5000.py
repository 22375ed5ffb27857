"""BOLD5000: averaged test pictures, train-only statistics, parts, and pictures in one file or many."""

import json
import shutil

import numpy as np
import pytest
from bold5000_world import TESTED, TRAINED, build
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards import bold5000, bold5000_subject
from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.dataset import Dataset
from cadiff.shards.verify import verify


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("bold") / "BOLD5000"
    return root, *build(root)


@pytest.fixture(scope="module")
def ds(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "bold"
    summary = pack_bold5000(raw[0].parent, out, val_fraction=0.2)
    assert {entry["what"] for entry in summary["dropped"]} == {
        "CSI1: never_shown.jpg", "CSI4: never_shown.jpg", "CSI4: church1.jpg"
    }  # fmt: skip
    return Dataset(out)


def test_test_pictures_are_averaged_over_repeats_and_nothing_is_cut_off(raw, ds):
    root, shown, _ = raw
    assert verify(ds.folder) == [] and ds.voxel_counts.tolist() == [55, 65]
    test = ds.ids("test", ["CSI1"])
    assert [ds.stimuli[i] for i in ds.table.stimulus[test]] == TESTED[:2] and (ds.table.repeat[test] == -1).all()
    assert len(ds.ids("train", ["CSI1"])) + len(ds.ids("val", ["CSI1"])) == 11
    files = [root / f"BOLD5000_GLMsingle_ROI_betas/py/CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{s}{r}.npy"
             for r in ("EarlyVis", "LOC", "OPA", "PPA", "RSC") for s in ("LH", "RH")]  # fmt: skip
    betas = np.concatenate([np.load(file) for file in files], axis=1)
    held = {ds.stimuli[i] for i in ds.table.stimulus[ds.ids("val")]}
    train = [row for row, name in enumerate(shown["CSI1"]) if name not in TESTED and name not in held]
    scaled = (betas - betas[train].mean(0)) / betas[train].std(0)
    rows = [row for row, name in enumerate(shown["CSI1"]) if name == TESTED[0]]
    assert len(rows) == 3
    np.testing.assert_allclose(ds.signals(test[:1], 55)[0], scaled[rows].mean(0), atol=4e-3)
    np.testing.assert_allclose(ds.signals(ds.ids("train", ["CSI1"]), 55), scaled[train], atol=4e-3)


def test_splits_share_no_stimulus_and_pictures_come_along(raw, ds):
    of = {split: set(ds.table.stimulus[ds.ids(split)].tolist()) for split in ("train", "val", "test")}
    assert of["val"] and not of["train"] & of["val"] and not of["train"] & of["test"]
    for number, name in enumerate(ds.stimuli):
        np.testing.assert_array_equal(ds.images([number], 16)[0], raw[2][name].transpose(2, 0, 1))
    assert sorted(ds.classes) == ["n01443530", "n01443531", "n01443532"]
    assert ds.table.label[ds.table.stimulus == ds.stimuli.index("attic4.jpg")].tolist() == [-1]


def test_regions_of_both_hemispheres_are_kept(ds):
    rois = ds.rois["CSI1"]
    assert len(rois) == 15 and rois["LHEarlyVis"].tolist() == [0, 1, 2] and rois["EarlyVis"].tolist() == list(range(7))
    assert sum(len(rois[name]) for name in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")) == 55


def test_legacy_statistics_are_those_of_all_padded_trials(dataprep, dataprep_widths, raw, tmp_path):
    stored, voxels = dataprep[1], dataprep_widths[-1]
    betas, padded = stored[f"voxts.{voxels}.in"][:16], stored[f"pad.{voxels}.out"][:16]

    def scale(values):
        return (values - values.mean()) / values.std()

    np.testing.assert_allclose(scale(stored["normalize.in"]), stored["normalize.out"], atol=1e-5)
    root = shutil.copytree(raw[0], tmp_path / "raw")
    parts = [f"{side}{roi}" for roi in ("EarlyVis", "LOC", "OPA", "PPA", "RSC") for side in ("LH", "RH")]
    for part, columns in zip(parts, np.array_split(np.arange(voxels), 10)):
        np.save(next((root / "BOLD5000_GLMsingle_ROI_betas/py").glob(f"CSI1_*_{part}.npy")), betas[:, columns])
    pack_bold5000(root, tmp_path / "out", subjects=["CSI1"], val_fraction=0.2, legacy=True)
    ds, expected = Dataset(tmp_path / "out"), scale(padded)[:, :voxels]
    np.testing.assert_allclose(ds.stats("CSI1").std[0], padded.std(), rtol=1e-5)  # test and validation trials as well
    shown = raw[1]["CSI1"]
    train = [row for row, name in enumerate(shown) if name not in TESTED]
    np.testing.assert_allclose(ds.signals(np.arange(11), voxels), expected[train], atol=4e-3)
    mean = expected[[row for row, name in enumerate(shown) if name == TESTED[0]]].mean(0)
    np.testing.assert_allclose(ds.signals(ds.ids("test")[:1], voxels)[0], mean, atol=4e-3)
    options = ds.manifest["options"]
    assert (options["normalise"], options["legacy"]) == ("scalar", True)


def test_legacy_differs_from_what_training_trials_give(raw, tmp_path):
    for name, legacy in (("new", False), ("old", True)):
        pack_bold5000(raw[0], tmp_path / name, subjects=["CSI1"], normalise="scalar", legacy=legacy)
    new, old = Dataset(tmp_path / "new"), Dataset(tmp_path / "old")
    assert new.stats("CSI1").mean[0] != old.stats("CSI1").mean[0] and len(new) == len(old) == 13  # nothing is cut off


@pytest.fixture
def single(raw, tmp_path):
    """The same with a file for each picture."""
    from PIL import Image

    root = shutil.copytree(raw[0], tmp_path / "raw")
    folder = root / "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli"
    (folder / "img_dict.npy").unlink()
    (folder / "ImageNet").mkdir()
    for name, pixels in raw[2].items():
        Image.fromarray(pixels).save(folder / "ImageNet" / name, "JPEG", quality=95)
    return root


def test_picture_files_and_plain_lists_serve_as_well(raw, single, tmp_path):
    root, stimuli = single, single / "BOLD5000_Stimuli"
    folder = stimuli / "Scene_Stimuli/Presented_Stimuli"
    shutil.rmtree(stimuli / "Stimuli_Presentation_Lists")
    (stimuli / "CSI1_stim_lists.txt").write_text("\n".join(raw[1]["CSI1"]))
    pack_bold5000(root, tmp_path / "out", subjects=["CSI1"], rois=["LOC"], normalise="scalar")
    ds = Dataset(tmp_path / "out")
    assert ds.voxels == 9 and ds.has_picture.all()
    next(folder.rglob("attic4.jpg")).unlink()
    with pytest.raises(DataError, match=r"1 of 12 pictures are missing, first attic4\.jpg"):
        pack_bold5000(root, tmp_path / "two", subjects=["CSI1"])
    (stimuli / "CSI1_stim_lists.txt").unlink()
    with pytest.raises(ConfigError, match=r"no CSI1_stim_lists\.txt"):
        pack_bold5000(root, tmp_path / "two", subjects=["CSI1"])


def test_what_does_not_fit_is_refused(raw, tmp_path):
    root = shutil.copytree(raw[0], tmp_path / "raw")
    path = next((root / "BOLD5000_GLMsingle_ROI_betas/py").glob("CSI4*LHLOC.npy"))
    values = np.load(path)
    values[2, 1] = np.inf
    np.save(path, values)
    assert pack_bold5000(root, tmp_path / "n")["notes"] == {"voxels_not_finite": {"CSI4": 1}}
    np.save(path, values[:5])
    with pytest.raises(DataError, match="12 presented pictures"):
        pack_bold5000(root, tmp_path / "x")
    path.unlink()
    with pytest.raises(ConfigError, match="0 files CSI4"):
        pack_bold5000(root, tmp_path / "x")
    both = {"normalise": "voxel", "legacy": True}
    for options in ({"subjects": ["CSI9"]}, {"root": tmp_path / "none"}, {"normalise": "no"}, both):
        with pytest.raises(ConfigError):
            pack_bold5000(**{"root": raw[0], "out": tmp_path / "x", **options})
    (root / "BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt").unlink()
    with pytest.raises(ConfigError, match=r"repeated_stimuli_113_list\.txt: no such file"):
        pack_bold5000(root, tmp_path / "x")


@pytest.fixture
def begun(monkeypatch):
    """What the parts begun so far hold: a subject, or so many pictures; five at a time."""
    names = []

    def noting(unit):
        def noted(*arguments):
            names.append(arguments[1] if isinstance(arguments[1], str) else len(arguments[1]))
            unit(*arguments)

        return noted

    monkeypatch.setattr(bold5000_subject, "_PART_PICTURES", 5)
    for module, unit in ((bold5000, "pack_subject"), (bold5000_subject, "_pack_pictures")):
        monkeypatch.setattr(module, unit, noting(getattr(module, unit)))
    return names


def test_the_number_of_processes_does_not_change_a_byte(raw, single, tmp_path, monkeypatch):
    monkeypatch.setattr(bold5000_subject, "_PART_PICTURES", 5)
    for root, layout in ((raw[0], "table"), (single, "files")):
        for workers in (1, 2):
            pack_bold5000(root, tmp_path / f"{layout}{workers}", workers=workers)
        assert contents(tmp_path / f"{layout}1") == contents(tmp_path / f"{layout}2")
        assert verify(tmp_path / f"{layout}2") == []
    one, other = Dataset(tmp_path / "table2"), Dataset(tmp_path / "files2")
    assert one.stimuli == other.stimuli and one.stimuli[-2:] == TESTED[:2]
    assert len(list(other.folder.glob("images-*.tar"))) == 3 and other.has_picture.all()


def test_an_interrupted_pack_goes_on_after_its_finished_parts(single, tmp_path, begun):
    pack_bold5000(single, tmp_path / "whole", workers=1)
    assert begun == ["CSI1", "CSI4", 5, 5, 2]
    path = next(single.rglob("attic4.jpg"))
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))

    def stopped():
        begun.clear()
        with pytest.raises(DataError, match=r"attic4\.jpg: not a readable picture"):
            pack_bold5000(single, tmp_path / "out", workers=1)
        return begun

    assert stopped() == ["CSI1", "CSI4", 5, 5] and not (tmp_path / "out").exists() and stopped() == [5]
    path.write_bytes(good)
    begun.clear()
    pack_bold5000(single, tmp_path / "out", workers=1)
    assert begun == [5, 2] and contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_are_made_anew_where_a_file_they_depend_on_has_changed(single, tmp_path, begun):
    damaged = next(single.rglob("attic4.jpg"))
    good = damaged.read_bytes()
    damaged.write_bytes(bytes(len(good)))

    def stopped():
        begun.clear()
        with pytest.raises(DataError, match=r"attic4\.jpg"):
            pack_bold5000(single, tmp_path / "out", workers=1)
        return begun

    assert stopped() == ["CSI1", "CSI4", 5, 5] and stopped() == [5]
    betas = next(single.rglob("CSI4*LHLOC.npy"))
    np.save(betas, np.load(betas) + 1)
    assert stopped() == ["CSI4", 5]
    presented = next(single.rglob("CSI1_sess01_run01.txt"))
    lines = presented.read_text().splitlines()
    presented.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    assert stopped() == ["CSI1", "CSI4", 5, 5]
    damaged.write_bytes(good)
    for name in ("out", "fresh"):
        pack_bold5000(single, tmp_path / name, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert Dataset(tmp_path / "out").stimuli[:2] == [TRAINED[1], TRAINED[0]]


def test_pictures_that_the_dictionary_lacks_are_named(raw, tmp_path, begun):
    root = shutil.copytree(raw[0], tmp_path / "raw")
    few = {name: pixels for name, pixels in raw[2].items() if name != "attic4.jpg"}
    np.save(root / "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli/img_dict.npy", few, allow_pickle=True)
    with pytest.raises(DataError, match=r"1 of 12 pictures are missing, first attic4\.jpg"):
        pack_bold5000(root, tmp_path / "out", workers=1)
    assert begun == ["CSI1", "CSI4"] and not (tmp_path / "out").exists()
    begun.clear()
    with pytest.raises(DataError, match="1 of 12 pictures are missing"):
        pack_bold5000(root, tmp_path / "out", workers=1)
    assert begun == []


def test_the_command_takes_a_number_of_processes(raw, tmp_path, cadiff):
    pack_bold5000(raw[0], tmp_path / "one", workers=1)
    code, out, _ = cadiff("pack", "bold5000", raw[0], tmp_path / "two", "--workers", "2", "--json")
    assert code == 0 and json.loads(out)["subjects"] == ["CSI1", "CSI4"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
