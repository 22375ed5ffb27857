"""A whole study of HCP runs: splits by family, the paper's recipe, parts and processes, interruptions, the command."""

import json
import os
import shutil

import numpy as np
import pytest
from hcp_world import CLEAN, V1, frames_of
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards import hcp
from cadiff.shards.cifti import read_header
from cadiff.shards.dataset import Dataset
from cadiff.shards.hcp import pack_hcp
from cadiff.shards.hcp_runs import find_runs
from cadiff.shards.mmp import roi_columns
from cadiff.shards.verify import verify
from cadiff.shards.voxels import padded_width


def test_one_subject_is_split_at_the_end_of_each_run(release, tmp_path):
    pack_hcp(release, tmp_path / "out", roi=["V1"], window=5, subjects=["100001"], val_fraction=0.25)
    ds = Dataset(tmp_path / "out")
    assert ds.table.split.tolist() == [0] * 7 + [1] * 2 + [0] * 4 + [1] * 2 and ds.manifest["split_by"] == "tail"
    assert ds.table.run.tolist() == [0] * 9 + [1] * 6
    train = ds.signals(ds.ids("train"), 1618)
    assert abs(train.mean()) < 1e-3 and train.std() == pytest.approx(1, abs=1e-3)  # of training windows only


def test_families_stay_on_one_side(release, tmp_path):
    (tmp_path / "kin.csv").write_text("Subject,Family_ID\n100001,5_8\n100003,5_8\n100002,6_9\n")
    summary = pack_hcp(
        release, tmp_path / "out", roi="V1", val_fraction=0.3, families=tmp_path / "kin.csv", scans=False
    )
    ds = Dataset(tmp_path / "out")
    assert [s["family"] for s in ds.manifest["subjects"]] == ["100001", "100002", "100001"]
    sides = [{int(split) for split in ds.table.split[ds.table.subject == number]} for number in range(3)]
    assert sides[0] == sides[2] != sides[1] and summary["samples"]["val"] in (7, 14)
    assert summary["notes"]["families"] == {"families": 2, "subjects": 3, "subjects_not_in_the_table": 0}
    assert {source["name"] for source in ds.manifest["sources"]} > {"families:kin.csv"}


def test_a_split_that_is_given_is_taken_unless_it_divides_a_family(release, tmp_path):
    (tmp_path / "split.csv").write_text("subject,split\n100001,test\n100002,train\n100003,val\n")
    (tmp_path / "kin.csv").write_text("Subject,Mother_ID\n100001,5\n100003,5\n")
    summary = pack_hcp(release, tmp_path / "out", roi="V1", split=tmp_path / "split.csv", scans=False)
    assert summary["samples"] == {"train": 7, "val": 7, "test": 7}
    assert Dataset(tmp_path / "out").table.split.tolist() == [2] * 7 + [0] * 7 + [1] * 7
    with pytest.raises(ConfigError, match=r"100001 \(test\) and 100003 \(val\) are one family"):
        pack_hcp(release, tmp_path / "no", split=tmp_path / "split.csv", families=tmp_path / "kin.csv")


def test_only_the_bytes_that_were_read_decide_whether_it_is_packed_already(release, tmp_path):
    root = shutil.copytree(release, tmp_path / "raw")
    how = {"roi": "V1", "runs": "tfMRI*", "scans": False}
    first = pack_hcp(root, tmp_path / "out", **how)
    run = find_runs(root, ["100002"], "tfMRI*").runs[0]
    header = read_header(run.path)
    row = header.layout.place_C
    outside = np.setdiff1d(np.arange(59412), row[V1])[0]
    for column, changed in ((outside, False), (row[V1[7]], True)):
        with open(run.path, "rb+") as handle:
            handle.seek(header.offset + int(column) * header.frames * 4)
            handle.write(np.float32(5).tobytes())
        if changed:
            with pytest.raises(ConfigError, match=r"100002.*has changed since"):
                pack_hcp(root, tmp_path / "out", **how)
        else:
            again = pack_hcp(root, tmp_path / "out", **how)
            assert again["already"] and again["hash"] == first["hash"]


def test_parts_and_processes_change_nothing(release, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(hcp, "_LEAST_BYTES", 1)
    runs = find_runs(release).runs
    parts = hcp.group_runs(runs, 1618, 10, "float16")
    assert [sorted({run.subject for run in part}) for part in parts] == [["100001"], ["100002"], ["100003"]]
    for name, workers in (("one", 1), ("two", 2)):
        pack_hcp(release, tmp_path / name, roi="V1", val_fraction=0.3, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    ds = Dataset(tmp_path / "one")
    np.testing.assert_array_equal(ds.signals(np.arange(21), 1618), packed[1].signals(np.arange(21), 1618))
    assert ds.array("100002", "flat", "tfMRI_WM_RL").tolist() == [3] and verify(tmp_path / "one") == []


def test_an_interrupted_pack_goes_on_unless_the_study_has_changed(release, tmp_path, monkeypatch):
    monkeypatch.setattr(hcp, "_LEAST_BYTES", 1)
    root = shutil.copytree(release, tmp_path / "raw")
    last = find_runs(root, ["100003"], "tfMRI*").runs[0].path
    whole = last.read_bytes()
    with open(last, "rb+") as handle:
        handle.truncate(len(whole) - 1)
    packs = []
    real = hcp.pack_subjects

    def counted(recipe, runs, pack):
        packs.append(runs[0].subject)
        real(recipe, runs, pack)

    monkeypatch.setattr(hcp, "pack_subjects", counted)
    with pytest.raises(DataError, match="cut short"):
        pack_hcp(root, tmp_path / "out", roi="V1")
    (partial,) = tmp_path.glob(".out.partial-*")
    dead = partial.with_name(partial.name.removesuffix(str(os.getpid())) + "999999999")
    partial.rename(dead)  # as if the process had ended
    last.write_bytes(whole)
    packs.clear()
    pack_hcp(root, tmp_path / "out", roi="V1")
    assert packs == ["100001", "100002", "100003"]  # a file of another size: who is in which part may have changed
    shutil.move(tmp_path / "out", tmp_path / "first")
    monkeypatch.setattr(hcp, "pack_subjects", lambda *a: (counted(*a), a[1][0].subject == "100003" and 1 / 0))
    with pytest.raises(ZeroDivisionError):
        pack_hcp(root, tmp_path / "out", roi="V1")
    (partial,) = tmp_path.glob(".out.partial-*")
    partial.rename(dead)
    monkeypatch.setattr(hcp, "pack_subjects", counted)
    packs.clear()
    pack_hcp(root, tmp_path / "out", roi="V1")
    assert packs == ["100003"] and contents(tmp_path / "out") == contents(tmp_path / "first")


def test_the_papers_recipe_is_the_specifications(tmp_path, write_dtseries):
    """Against sections 1.1 and 1.2 of the specification of the paper's code, written out in plain NumPy."""
    rng, areas = np.random.default_rng(1), [roi_columns(name) for name in ("V1", "V2", "V3", "V4")]
    for subject, frames in (("100206", 47), ("100307", 60)):
        values = (1e4 + 80 * rng.normal(size=(frames, 59412))).astype(np.float32)
        values[:, areas[1][4]] = 8000
        write_dtseries(tmp_path / "raw" / f"{subject}_rfMRI_REST1_LR{CLEAN}.dtseries.nii", values)
    other = tmp_path / "raw" / f"100307_rfMRI_REST2_LR{CLEAN}.dtseries.nii"
    other.write_bytes(b"not asked for")
    (tmp_path / "raw" / "100408_rfMRI_REST1_LR_Atlas_MSMAll.dtseries.nii").write_bytes(b"not cleaned")
    summary = pack_hcp(tmp_path / "raw", tmp_path / "out", preset="paper", val_fraction=0)
    assert summary["dropped"] == [
        {
            "what": "100408/rfMRI_REST1_LR",
            "why": f"no version {CLEAN} of this run, only _Atlas_MSMAll",
        }
    ]
    ds = Dataset(tmp_path / "out")
    assert ds.manifest["options"]["legacy_pad"] and ds.manifest["options"]["patch"] == 16
    width = padded_width(4183, 16, legacy_pad=True)
    for run in find_runs(tmp_path / "raw", None, "rfMRI_REST1_LR", "*clean").runs:
        whole = frames_of(run, np.arange(59412))
        with np.errstate(invalid="ignore"):
            whole = (whole - whole.mean(0)) / whole.std(0)
        voxels = np.nan_to_num(np.concatenate([whole[:, area] for area in areas], axis=1))
        chunks = np.array_split(voxels, int(len(voxels) / 10.0), axis=0)
        rows = np.stack([chunk.mean(0) for chunk in chunks])
        rows = np.pad(rows, ((0, 0), (0, 16 - rows.shape[1] % 16)), "wrap")
        rows = (rows - rows.mean()) / rows.std()
        ids = np.flatnonzero(ds.table.subject == ds.subjects.index(run.subject))
        np.testing.assert_allclose(ds.signals(ids, width), rows, atol=2e-3)
        sizes = [len(chunk) for chunk in chunks]
        assert ds.table.frames[ids].tolist() == sizes
        assert ds.table.start[ids].tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
    np.testing.assert_array_equal(ds.array("*", "ids"), np.concatenate(areas))
    np.testing.assert_array_equal(ds.rois["*"]["V2"], np.arange(1618, 1618 + 1220))
    with pytest.raises(ConfigError, match="Leave those options out"):
        pack_hcp(tmp_path / "raw", tmp_path / "no", preset="paper", window=5)
    with pytest.raises(ConfigError, match="the only one is paper"):
        pack_hcp(tmp_path / "raw", tmp_path / "no", preset="hcp")


def test_names_that_become_one_in_the_archive_are_refused(tmp_path, write_dtseries):
    values = np.random.default_rng(0).normal(size=(10, 59412))
    for name in ("sub-a_task-x.1", "sub-a_task-x-1"):
        write_dtseries(tmp_path / "raw" / f"{name}.dtseries.nii", values)
    with pytest.raises(ConfigError, match=r"would have one name in scans\.zarr"):
        pack_hcp(tmp_path / "raw", tmp_path / "out", roi="L_V4")
    assert (
        pack_hcp(tmp_path / "raw", tmp_path / "out", roi="L_V4", scans=False, val_fraction=0)["samples"]["train"] == 2
    )


def test_the_command_line_names_every_option(cadiff, release, tmp_path):
    (tmp_path / "ids").write_text("PRE 100001/\n       PRE 100002/\n")
    order = ["pack", "hcp", release, tmp_path / "out", "--subjects", tmp_path / "ids", "--roi", "V1", "--window", "1"]
    order += ["--runs", "rfMRI*", "--version", "_Atlas_*clean", "--dtype", "int8", "--no-scans", "--workers", "1"]
    code, text, _ = cadiff(*order, "--json")
    assert code == 0 and json.loads(text)["samples"] == {"train": 45, "val": 45, "test": 0}
    assert "already packed" in cadiff(*order)[1]
    code, _, told = cadiff("pack", "hcp", release, tmp_path / "no", "--split", tmp_path / "ids")
    assert code == 2 and "expected" in told
