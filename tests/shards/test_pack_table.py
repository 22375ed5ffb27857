"""A CSV describes any study: arrays, NIfTI with events or attributes, chunks, lags; the real Haxby set packs."""

import csv
import sys

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.table import pack_table
from cadiff.shards.verify import verify


@pytest.fixture
def study(tmp_path):
    """Files of a small study, and a function that writes its CSV."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "run1.npy", rng.normal(5, 2, (12, 6)).astype(np.float32))
    np.savez(tmp_path / "run2.npz", bold=rng.normal(size=(8, 6)), other=np.zeros(3))
    (tmp_path / "events.tsv").write_text(
        "onset\tduration\ttrial_type\tstim_file\n0\t4\tface\tpics/f.png\n8\t4\thouse\tn/a\n16\t4\trest\tn/a\n"
    )
    (tmp_path / "attributes.txt").write_text("\n".join(["rest 0"] * 2 + ["face 0"] * 4 + ["house 1"] * 6))
    (tmp_path / "pics").mkdir()
    from PIL import Image

    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "pics" / "f.png")

    def write(*rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(tmp_path / "study.csv", "w", newline="") as handle:
            writer = csv.DictWriter(handle, names)
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / "study.csv"

    return write


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


@pytest.mark.parametrize(
    "row,error,message",
    [
        ({"file": "run1.npy"}, ConfigError, "file and subject must be filled in"),
        ({"file": "run1.npy", "subject": "s", "lable": "x"}, ConfigError, "Did you mean 'label'"),
        ({"file": "run1.npy", "subject": "s", "zzzz": "x"}, ConfigError, "Known: file"),
        ({"file": "run1.npy", "subject": "s", "split": "dev"}, ConfigError, "split 'dev'"),
        ({"file": "run1.npy", "subject": "s", "events": "events.tsv"}, ConfigError, "Fill in tr_s"),
        ({"file": "run1.npy", "subject": "s", "events": "events.tsv", "tr_s": "x"}, DataError, "tr_s = 'x'"),
        ({"file": "run1.npy", "subject": "s", "events": "events.tsv", "tr_s": "nan"}, DataError, "tr_s = 'nan'"),
        ({"file": "run1.npy", "subject": "s", "events": "bad.tsv", "tr_s": "2"}, DataError, "no column duration"),
        ({"file": "run1.npy", "subject": "s", "events": "gone.tsv", "tr_s": "2"}, DataError, "no such file"),
        ({"file": "run1.npy", "subject": "s", "attributes": "events.tsv"}, DataError, "4 lines for 12 frames"),
        ({"file": "run2.npz", "subject": "s"}, ConfigError, "needs the column key"),
        ({"file": "run2.npz", "subject": "s", "key": "x"}, DataError, "keys x are missing; it holds bold, other"),
        ({"file": "deep.npy", "subject": "s"}, DataError, r"\(2, 2, 2\), expected numbers"),
        ({"file": "events.tsv", "subject": "s"}, ConfigError, "unknown kind of file"),
        ({"file": "pickled.npy", "subject": "s"}, DataError, "never loaded"),
        ({"file": "gone.npy", "subject": "s"}, DataError, "no such file"),
        ({"file": "gone.npz", "key": "a", "subject": "s"}, DataError, "no such file"),
        ({"file": "run1.npy", "subject": "s", "image": "gone.png"}, DataError, "no such file"),
    ],
)
def test_mistakes_are_named(study, tmp_path, row, error, message):
    (tmp_path / "bad.tsv").write_text("onset\ttrial_type\n1\tface\n")
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(error, match=message):
        pack_table(study(row), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_over_several_rows_are_named(study, tmp_path):
    np.save(tmp_path / "narrow.npy", np.random.default_rng(0).normal(size=(4, 3)))
    rows = [{"file": name, "subject": "s", "run": "1"} for name in ("run1.npy", "narrow.npy")]
    with pytest.raises(DataError, match="different voxel counts"):
        pack_table(study(*rows), tmp_path / "out")
    with pytest.raises(DataError, match="fewer than one window of 13"):
        pack_table(study(rows[0]), tmp_path / "out", window=13)
    with pytest.raises(ConfigError, match="window=0"):
        pack_table(study(rows[0]), tmp_path / "out", window=0)
    with pytest.raises(ConfigError, match="no such table"):
        pack_table(tmp_path / "gone.csv", tmp_path / "out")
    (tmp_path / "study.csv").write_text("file,subject\n")
    with pytest.raises(ConfigError, match="no rows below the columns file, subject"):
        pack_table(tmp_path / "study.csv", tmp_path / "out")
    (tmp_path / "study.csv").write_text("file,subject,file\na,b,c\n")
    with pytest.raises(ConfigError, match="occurs twice"):
        pack_table(tmp_path / "study.csv", tmp_path / "out")
    (tmp_path / "study.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a readable CSV"):
        pack_table(tmp_path / "study.csv", tmp_path / "out")


def test_a_run_in_two_splits_is_refused(study, tmp_path):
    run = {"file": "run1.npy", "subject": "s", "session": "a", "run": "1"}
    other = {**run, "file": "run2.npz", "key": "bold", "split": "test"}
    with pytest.raises(ConfigError, match=r"run a_1 of subject s is in train and in test\..*give a run to one split"):
        pack_table(study(run, other), tmp_path / "out")
    renamed = {**run, "run": "2", "split": "val", "file": "./run1.npy"}
    with pytest.raises(ConfigError, match=r"file .*run1\.npy is in train and in val"):
        pack_table(study(run, renamed), tmp_path / "out")
    whole = {**run, "attributes": "attributes.txt"}
    for chunks, splits in ((("0", "0 1"), ("train", "val")), (("0", ""), ("train", "val"))):
        rows = [{**whole, "chunks": chunk, "split": split} for chunk, split in zip(chunks, splits)]
        with pytest.raises(ConfigError, match="run a_1 of subject s is in train and in val"):
            pack_table(study(*rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    apart = [run, {**other, "run": "2"}, {**other, "run": "2", "subject": "t", "key": "bold2"}]
    np.savez(tmp_path / "run2.npz", bold=np.random.default_rng(1).normal(size=(8, 6)), bold2=np.eye(6))
    assert pack_table(study(*apart), tmp_path / "out")["samples"] == {"train": 12, "val": 0, "test": 14}


def test_a_stimulus_in_two_splits_is_refused(study, tmp_path):
    rows = [{"file": "run1.npy", "subject": "s", "run": "1", "stimulus": "red"}]
    rows.append({"file": "run2.npz", "key": "bold", "subject": "t", "run": "1", "stimulus": "red", "split": "test"})
    with pytest.raises(ConfigError, match=r"run2\.npz: stimulus red is in test and in train"):
        pack_table(study(*rows), tmp_path / "out")
    rows[0] = {"file": "run1.npy", "subject": "s", "run": "1", "events": "events.tsv", "tr_s": "2"}
    rows[1]["stimulus"] = "pics/f.png"
    with pytest.raises(ConfigError, match=r"subject t, run 1: stimulus pics/f\.png is in test and in train"):
        pack_table(study(*rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows[1]["split"] = "train"
    assert pack_table(study(*rows), tmp_path / "out")["stimuli"] == 1


def write_parquet(path, **columns):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'cadiff[table]'")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_parquet_table_packs_as_the_csv_does(study, tmp_path):
    rows = [
        {"file": "run1.npy", "subject": "7", "run": "1", "tr_s": "2.5", "stimulus": "1621127.019020"},
        {"file": "run2.npz", "subject": "7", "run": "2", "tr_s": "2.5", "key": "bold", "split": "val"},
    ]
    pack_table(study(*rows), tmp_path / "csv", lag_s=5.0)
    columns = {"file": ["run1.npy", "run2.npz"], "subject": [7, 7], "run": [1, 2], "tr_s": [2.5, 2.5]}
    columns |= {"stimulus": ["1621127.019020", None], "key": [None, "bold"], "split": [None, "val"]}
    pack_table(write_parquet(tmp_path / "study.parquet", **columns), tmp_path / "parquet", lag_s=5.0)
    one, two = Dataset(tmp_path / "csv"), Dataset(tmp_path / "parquet")
    assert one.stimuli == two.stimuli == ["1621127.019020"] and one.subjects == two.subjects == ["7"]
    assert one.table.split.tolist() == two.table.split.tolist() and one.runs == two.runs
    np.testing.assert_array_equal(one.signals(np.arange(20), 6), two.signals(np.arange(20), 6))
    assert "study.parquet" in {source["name"] for source in two.manifest["sources"]}


def test_names_in_a_parquet_table_are_text_or_whole_numbers(tmp_path):
    import datetime

    path, files = tmp_path / "t.parquet", {"file": ["run1.npy"], "subject": ["s"]}
    for column, value, message in (
        ("stimulus", 1621127.019020, r"column stimulus is double: a number with a point loses digits as a name"),
        ("subject", 1.0, "column subject is double"),
        ("label", 0.5, "column label is double"),
        ("label", True, "column label is bool: it is no text"),
        ("run", datetime.date(2020, 1, 1), "column run is date32.*: it is no text"),
        ("lable", "x", "Did you mean 'label'"),
        ("subject", None, "row 1: columns file and subject must be filled in"),
    ):
        with pytest.raises(ConfigError, match=message):
            pack_table(write_parquet(path, **{**files, column: [value]}), tmp_path / "out")
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        pack_table(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such table"):
        pack_table(tmp_path / "gone.parquet", tmp_path / "out")


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        pack_table(tmp_path / "t.parquet", tmp_path / "out")


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
