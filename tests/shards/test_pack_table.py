"""A CSV describes any study: arrays, NIfTI with events or attributes, chunks, lags; the real Haxby set packs."""

import json

import numpy as np
import pytest
import table_world
from packed_folder import contents
from PIL import Image

from cadiff.errors import ConfigError, DataError
from cadiff.shards import table as packer
from cadiff.shards.dataset import Dataset
from cadiff.shards.table import pack_table
from cadiff.shards.verify import verify


@pytest.fixture
def study(tmp_path):
    return table_world.build(tmp_path)


def test_events_label_frames_and_name_pictures(study, tmp_path):
    table = study(
        {"file": "run1.npy", "subject": "s1", "run": "1", "events": "events.tsv", "tr_s": "2"},
        {
            "file": "run2.npz",
            "key": "bold",
            "subject": "s1",
            "session": "b",
            "run": "2",
            "split": "test",
            "label": "dog",
        },
    )
    summary = pack_table(table, tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    names = [ds.classes[i] if i >= 0 else None for i in ds.table.label[:12]]
    assert names == ["face"] * 2 + [None] * 2 + ["house"] * 2 + [None] * 6
    assert ds.runs == ["1", "b_2"] and summary["samples"] == {"train": 12, "val": 0, "test": 8}
    assert ds.stimuli == ["pics/f.png"] and ds.table.stimulus[:3].tolist() == [0, 0, -1]
    assert ds.images([0], 8)[0, :, 4, 4].tolist() == [200, 0, 0] and verify(tmp_path / "out") == []
    run = ds.signals(np.arange(12), 6)
    np.testing.assert_allclose(run.mean(0), 0, atol=2e-3)
    np.testing.assert_allclose(run.std(0), 1, atol=2e-3)


def test_a_lag_moves_labels_to_later_frames(study, tmp_path):
    rows = [{"file": "run1.npy", "subject": "s", "events": "events.tsv", "tr_s": "2"}]
    pack_table(study(*rows), tmp_path / "e", lag_s=4.0, unlabelled="drop")
    ds = Dataset(tmp_path / "e")
    assert len(ds) == 4 and [ds.classes[i] for i in ds.table.label] == ["face", "face", "house", "house"]
    everything = tmp_path / "all"
    pack_table(study(*rows), everything)
    np.testing.assert_array_equal(ds.signals(np.arange(4), 6), Dataset(everything).signals(np.array([2, 3, 6, 7]), 6))
    rows = [{"file": "run1.npy", "subject": "s", "attributes": "attributes.txt", "tr_s": "2"}]
    pack_table(study(*rows), tmp_path / "a", lag_s=2.0)
    names = [Dataset(tmp_path / "a").classes[i] if i >= 0 else None for i in Dataset(tmp_path / "a").table.label]
    assert names == [None] * 3 + ["face"] * 3 + [None] + ["house"] * 5  # never across the border of a chunk


def test_chunks_are_runs_and_can_be_split(study, tmp_path):
    row = {"file": "run1.npy", "subject": "s", "run": "x", "attributes": "attributes.txt"}
    pack_table(study({**row, "chunks": "0"}, {**row, "chunks": "1", "split": "val"}), tmp_path / "out", window=2)
    ds = Dataset(tmp_path / "out")
    assert ds.runs == ["x-0", "x-1"] and ds.table.split.tolist() == [0] * 3 + [1] * 3
    assert [ds.classes[i] if i >= 0 else None for i in ds.table.label] == [None] + ["face"] * 2 + ["house"] * 3
    with pytest.raises(ConfigError, match="no chunk 7"):
        pack_table(study({**row, "chunks": "7"}), tmp_path / "no")


def test_single_trials_with_pictures_share_their_runs_statistics(study, tmp_path):
    for i in range(4):
        np.save(tmp_path / f"t{i}.npy", np.arange(5.0) * (i + 1))
    rows = [
        {"file": f"t{i}.npy", "subject": "s", "run": "1", "image": "pics/f.png", "stimulus": "red"} for i in range(4)
    ]
    pack_table(study(*rows), tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    assert ds.stimuli == ["red"] and ds.has_picture.all() and len(ds) == 4
    np.testing.assert_allclose(ds.signals(np.arange(4), 5).std(0), [0, 1, 1, 1, 1], atol=2e-3)
    assert ds.manifest["notes"] == {"flat_voxels": {"s/1": 1}}
    with pytest.raises(DataError, match="one sample alone cannot be z-scored"):
        pack_table(study(rows[0]), tmp_path / "one")
    pack_table(study(rows[3]), tmp_path / "one", normalise="none")
    assert Dataset(tmp_path / "one").signals([0], 5)[0].tolist() == [0, 4, 8, 12, 16]


@pytest.fixture
def people(study, tmp_path):
    """The table of three people, whose rows alternate, and of three stimuli with pictures."""
    rng = np.random.default_rng(2)
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(12, 6)))
    for colour in ("green", "blue"):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "pics" / f"{colour[0]}.png")
    return study(
        {"file": "a.npy", "subject": "a", "run": "1", "events": "events.tsv", "tr_s": "2"},
        {"file": "b.npy", "subject": "b", "run": "1", "stimulus": "pics/g.png", "label": "green"},
        {"file": "c.npy", "subject": "c", "run": "1", "stimulus": "blue", "image": "pics/b.png", "split": "val"},
        {"file": "run1.npy", "subject": "a", "run": "2", "label": "dog"},
    )


def test_parts_and_processes_change_nothing(people, tmp_path, monkeypatch, cadiff):
    pack_table(people, tmp_path / "one", workers=1)
    code, told, _ = cadiff("pack", "table", people, tmp_path / "two", "--workers", 2, "--json")
    assert code == 0 and json.loads(told)["samples"] == {"train": 36, "val": 12, "test": 0}
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and verify(tmp_path / "two") == []
    monkeypatch.setattr(packer, "PARTS", 2)
    pack_table(people, tmp_path / "fewer")
    one, fewer = Dataset(tmp_path / "one"), Dataset(tmp_path / "fewer")
    assert [len(list(ds.folder.glob("fmri-*.tar"))) for ds in (one, fewer)] == [3, 2]
    for ds in (one, fewer):
        assert ds.subjects == ["a", "b", "c"] and ds.table.subject.tolist() == [0] * 24 + [1] * 12 + [2] * 12
        assert ds.stimuli == ["pics/f.png", "pics/g.png", "blue"] and ds.classes == ["face", "house", "dog", "green"]
        assert ds.has_picture.all()
        assert {"events.tsv", "pics/f.png", "pics/g.png", "pics/b.png"} <= {s["name"] for s in ds.manifest["sources"]}
    np.testing.assert_array_equal(one.signals(np.arange(48), 6), fewer.signals(np.arange(48), 6))


def test_an_interrupted_pack_goes_on_and_makes_parts_of_changed_files_anew(people, tmp_path, monkeypatch):
    begun = []

    def noting(unit):
        def noted(*arguments):
            begun.append(arguments[-2][0][0])  # the part's first subject or stimulus
            unit(*arguments)

        return noted

    def stopped():
        begun.clear()
        with pytest.raises(DataError, match=r"b\.png: not a readable picture"):
            pack_table(people, tmp_path / "out")
        return begun

    monkeypatch.setattr(packer, "PICTURES", 2)
    for unit in ("pack_runs", "pack_pictures"):
        monkeypatch.setattr(packer, unit, noting(getattr(packer, unit)))
    good = (tmp_path / "pics/b.png").read_bytes()
    (tmp_path / "pics/b.png").write_bytes(bytes(len(good)))
    everything = ["a", "b", "c", "pics/f.png", "blue"]
    assert stopped() == everything and stopped() == ["blue"]
    for name, old, new, made in (
        ("events.tsv", "face", "cake", ["a", "pics/f.png", "blue"]),
        ("study.csv", "dog", "cat", everything),
    ):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
        assert stopped() == made
    np.save(tmp_path / "b.npy", np.random.default_rng(3).normal(size=(12, 6)))
    assert stopped() == ["b", "blue"]
    (tmp_path / "pics/b.png").write_bytes(good)
    begun.clear()
    pack_table(people, tmp_path / "out")
    assert begun == ["blue"] and Dataset(tmp_path / "out").classes == ["cake", "house", "cat", "green"]
    pack_table(people, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_file_that_has_changed_since_the_last_pack_is_read_again(study, tmp_path):
    table = study({"file": "run1.npy", "subject": "s", "run": "1"})
    pack_table(table, tmp_path / "before", normalise="none")
    np.save(tmp_path / "run1.npy", np.full((12, 6), 3, np.float32))
    pack_table(table, tmp_path / "after", normalise="none")
    assert np.ptp(Dataset(tmp_path / "before").signals(np.arange(12), 6)) > 1
    assert (Dataset(tmp_path / "after").signals(np.arange(12), 6) == 3).all()


def nearest_centroid(ds):
    """Leave one run out, nearest centroid by correlation, over the eight classes."""
    ids = np.flatnonzero(ds.table.label >= 0)
    signals, label, run = ds.signals(ids, ds.voxels), ds.table.label[ids], ds.table.run[ids]
    right = 0
    for held in np.unique(run):
        train, test = run != held, run == held
        centroids = np.stack([signals[train & (label == c)].mean(0) for c in range(8)])
        alike = np.corrcoef(signals[test], centroids)[: test.sum(), test.sum() :]
        right += int((alike.argmax(1) == label[test]).sum())
    return right / len(ids)


def test_haxby_packs_from_one_file_with_attributes(realdata, study, tmp_path):
    home = realdata / "haxby2001"
    row = {
        "file": str(home / "slice_bold.nii.gz"),
        "mask": str(home / "slice_mask.nii.gz"),
        "attributes": str(home / "slice_attributes_literal.txt"),
        "subject": "haxby1",
        "run": "run",
    }
    table = study(
        {**row, "chunks": "0 1 2 3 4 5 6 7 8 9", "split": "train"},
        {**row, "chunks": "10", "split": "val"},
        {**row, "chunks": "11", "split": "test"},
    )
    summary = pack_table(table, tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    assert summary["samples"] == {"train": 1210, "val": 121, "test": 121} and summary["voxels"] == 530
    assert len(ds.classes) == 8 and len(ds.runs) == 12 and "rest" not in ds.classes
    assert np.bincount(ds.table.label[ds.table.label >= 0]).tolist() == [108] * 8
    # Genuine responses to pictures: chance is 0.125.
    assert nearest_centroid(ds) == pytest.approx(0.433, abs=0.01)
    assert not set(ds.table.run[ds.ids("train")].tolist()) & set(ds.table.run[ds.ids("test")].tolist())


def test_haxby_packs_from_its_run_folders_with_events(realdata, study, tmp_path):
    home = realdata / "haxby2001/haxby2001/sub001"
    rows = []
    for run in range(1, 13):
        folder = home / f"BOLD/task001_run{run:03d}"
        if not (folder / "bold_events.tsv").is_file():
            pytest.skip(f"needs {folder.name}/bold_events.tsv")
        rows.append({
            "file": str(folder / "bold_1slice.nii.gz"), "mask": str(realdata / "haxby2001/slice_mask.nii.gz"),
            "events": str(folder / "bold_events.tsv"), "subject": "sub001", "run": f"{run:02d}",
            "split": "test" if run == 12 else "val" if run == 11 else "train",
        })  # fmt: skip
    summary = pack_table(study(*rows), tmp_path / "out", unlabelled="drop")
    ds = Dataset(tmp_path / "out")
    assert len(ds.classes) == 8 and len(ds.runs) == 12 and summary["voxels"] == 530
    # A block of 22.5 s is 9 frames of 2.5 s.
    assert np.bincount(ds.table.label).tolist() == [108] * 8
    assert nearest_centroid(ds) == pytest.approx(0.433, abs=0.01)


def test_real_volumes_of_one_run_are_scaled_together(realdata, study, tmp_path):
    import nibabel as nib

    volumes = sorted((realdata / "bold5000").glob("CSI1_*_volume*.nii.gz"))
    shape = nib.load(volumes[0]).shape
    mask = np.zeros(shape, np.uint8)
    mask[45:55, 20:30, 30:35] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii")
    pack_table(
        study(*({"file": str(v), "mask": "mask.nii", "subject": "CSI1", "run": "1"} for v in volumes)), tmp_path / "o"
    )
    ds = Dataset(tmp_path / "o")
    assert len(ds) == 5 and ds.voxels == 500


def test_cifti_runs_fit_in_a_table(realdata, study, tmp_path):
    path = realdata / "cifti/sub-MSC01_5frames_65890gray.dtseries.nii"
    pack_table(study({"file": str(path), "subject": "MSC01", "label": "task"}), tmp_path / "o", roi=["V1"])
    assert Dataset(tmp_path / "o").voxels == 1618
