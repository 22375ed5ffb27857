"""Tables of a study: every mistake is named, splits that leak are refused, and Parquet packs as CSV does."""

import sys

import numpy as np
import pytest
import table_world

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.table import pack_table


@pytest.fixture
def study(tmp_path):
    return table_world.build(tmp_path)


@pytest.mark.parametrize(
    "row,error,message",
    [
        ({"file": "run1.npy"}, ConfigError, r"study\.csv: no column subject; there are: file\. Add it"),
        ({"subject": "s"}, ConfigError, r"no column file; there are: subject\."),
        ({"file": "run1.npy", "subject": ""}, ConfigError, "line 2: columns file and subject must be filled in"),
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


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder, not a table\. Give the \.csv or \.parquet file in it"):
        pack_table(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("column", ["file", "mask", "events", "attributes", "image"])
def test_every_named_file_is_looked_for_before_packing_starts(study, tmp_path, monkeypatch, column):
    monkeypatch.setattr("cadiff.shards.table.pack_folder", lambda *_, **__: pytest.fail("packing started"))
    row = {"file": "run1.npy", "subject": "s", "run": "1", "tr_s": "2"}
    table = study(row, {**row, "run": "2", "file": "run2.npz", "key": "bold", column: "there/gone.nii"})
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], "", lines[2]]) + "\n")  # lines are counted as an editor does
    told = rf"study\.csv, line 4, column {column}: {tmp_path}/there/gone\.nii: no such file\. Correct the path"
    with pytest.raises(DataError, match=told):
        pack_table(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    with pytest.raises(DataError, match=r"t\.parquet, row 2, column file: .*gone\.npy: no such file"):
        np.save(tmp_path / "run1.npy", np.eye(3))
        pack_table(write_parquet(path, file=["run1.npy", "gone.npy"], subject=["s", "s"]), tmp_path / "out")
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
