"""BOLD5000: averaged test pictures, train-only statistics, and a dictionary of pictures read without running code."""

import pickle
import shutil

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.arrays import load_npy_dict
from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.dataset import Dataset
from cadiff.shards.verify import verify

TESTED = ["COCO_train2014_000000000001.jpg", "church1.jpg", "never_shown.jpg"]
TRAINED = [f"n0144353{i % 3}_{i}.JPEG" for i in range(9)] + ["attic4.jpg"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """CSI1: 16 trials in 2 sessions, CSI4: 12; regions of 3 to 12 voxels in both hemispheres."""
    root, rng = tmp_path_factory.mktemp("bold") / "BOLD5000", np.random.default_rng(0)
    betas, stimuli = root / "BOLD5000_GLMsingle_ROI_betas/py", root / "BOLD5000_Stimuli"
    betas.mkdir(parents=True)
    shown = {"CSI1": TRAINED[:5] + TESTED[:1] + TRAINED[5:] + TESTED[:2] * 2 + TRAINED[:1]}
    shown["CSI4"] = TRAINED[:9] + TESTED[:1] * 3
    for subject, ids in shown.items():
        for session in (0, 1):
            folder = stimuli / "Stimuli_Presentation_Lists" / subject / f"{subject}_sess0{session + 1}"
            folder.mkdir(parents=True)
            part = ids[8 * session : 8 * session + 8] if session == 0 else ids[8:]
            lines = [f"rep_{name}" if name in TESTED else name for name in part]
            (folder / f"{subject}_sess0{session + 1}_run01.txt").write_text("\n".join(lines) + "\n")
        for voxels, roi in enumerate(("EarlyVis", "LOC", "OPA", "PPA", "RSC"), 3):
            for side, count in (("LH", voxels), ("RH", voxels + 1)):
                name = f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{side}{roi}.npy"
                np.save(betas / name, rng.normal(voxels, 2, (len(ids), count + (subject == "CSI4"))))
    pictures = {name: rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for name in TESTED + TRAINED}
    (stimuli / "Scene_Stimuli/Presented_Stimuli").mkdir(parents=True)
    np.save(stimuli / "Scene_Stimuli/Presented_Stimuli/img_dict.npy", pictures, allow_pickle=True)
    (stimuli / "Scene_Stimuli/repeated_stimuli_113_list.txt").write_text("\n".join(TESTED) + "\n")
    return root, shown, pictures


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


def test_legacy_statistics_are_those_of_all_padded_trials(golden, raw, tmp_path):
    stored = golden("dataprep")
    betas, padded = stored["voxts.112.in"][:16], stored["pad.112.out"][:16]

    def scale(values):
        return (values - values.mean()) / values.std()

    np.testing.assert_allclose(scale(stored["normalize.in"]), stored["normalize.out"], atol=1e-5)
    root = shutil.copytree(raw[0], tmp_path / "raw")
    parts = [f"{side}{roi}" for roi in ("EarlyVis", "LOC", "OPA", "PPA", "RSC") for side in ("LH", "RH")]
    for part, columns in zip(parts, np.array_split(np.arange(112), 10)):
        np.save(next((root / "BOLD5000_GLMsingle_ROI_betas/py").glob(f"CSI1_*_{part}.npy")), betas[:, columns])
    pack_bold5000(root, tmp_path / "out", subjects=["CSI1"], val_fraction=0.2, legacy=True)
    ds, expected = Dataset(tmp_path / "out"), scale(padded)[:, :112]
    np.testing.assert_allclose(ds.stats("CSI1").std[0], padded.std(), rtol=1e-5)  # test and validation trials as well
    shown = raw[1]["CSI1"]
    train = [row for row, name in enumerate(shown) if name not in TESTED]
    np.testing.assert_allclose(ds.signals(np.arange(11), 112), expected[train], atol=4e-3)
    mean = expected[[row for row, name in enumerate(shown) if name == TESTED[0]]].mean(0)
    np.testing.assert_allclose(ds.signals(ds.ids("test")[:1], 112)[0], mean, atol=4e-3)
    options = ds.manifest["options"]
    assert (options["normalise"], options["legacy"]) == ("scalar", True)


def test_legacy_differs_from_what_training_trials_give(raw, tmp_path):
    for name, legacy in (("new", False), ("old", True)):
        pack_bold5000(raw[0], tmp_path / name, subjects=["CSI1"], normalise="scalar", legacy=legacy)
    new, old = Dataset(tmp_path / "new"), Dataset(tmp_path / "old")
    assert new.stats("CSI1").mean[0] != old.stats("CSI1").mean[0] and len(new) == len(old) == 13  # nothing is cut off


def test_picture_files_and_plain_lists_serve_as_well(raw, tmp_path):
    from PIL import Image

    root = shutil.copytree(raw[0], tmp_path / "raw")
    stimuli = root / "BOLD5000_Stimuli"
    folder = stimuli / "Scene_Stimuli/Presented_Stimuli"
    (folder / "img_dict.npy").unlink()
    (folder / "ImageNet").mkdir()
    for name, pixels in raw[2].items():
        Image.fromarray(pixels).save(folder / "ImageNet" / name, "JPEG", quality=95)
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


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path):
    target = tmp_path / "created_by_pickle"
    for name, value in (("a", {"p": Evil(target)}), ("b", Evil(target))):
        np.save(tmp_path / name, np.array(value, dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match="not admitted"):
            load_npy_dict(tmp_path / f"{name}.npy")
    assert not target.exists()


def test_other_contents_of_the_dictionary_file_are_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(3))
    np.save(tmp_path / "list.npy", np.array([1, "a"], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array({"a": "b"}, dtype=object), allow_pickle=True)
    good = tmp_path / "good.npy"
    np.save(good, np.array({"a": np.arange(4, dtype=np.uint8)}, dtype=object), allow_pickle=True)
    assert load_npy_dict(good)["a"].tolist() == [0, 1, 2, 3]
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    for name in ("numbers", "list", "text", "cut", "junk", "absent"):
        with pytest.raises(DataError, match=name):
            load_npy_dict(tmp_path / f"{name}.npy")


def test_protocol_two_pickles_written_by_python_2_are_read(tmp_path):
    value = np.empty((), dtype=object)
    value[()] = {"a": np.arange(200, 204, dtype=np.uint8)}
    with open(tmp_path / "old.npy", "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(value, handle, protocol=2)
    assert load_npy_dict(tmp_path / "old.npy")["a"].tolist() == [200, 201, 202, 203]
