"""What ``cadiff pack`` tells a newcomer: volumes without a mask, samples without a label or picture, unknown names."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cadiff.launch.packed import report
from cadiff.shards import table as packer
from cadiff.shards.dataset import Dataset
from cadiff.shards.hcp_runs import find_runs
from cadiff.shards.table import pack_table


def write_volume(path, frames_TV, shape):
    import nibabel as nib

    nib.save(nib.Nifti1Image(frames_TV.T.reshape(*shape, -1).astype(np.float32), np.eye(4)), path)


@pytest.fixture
def volumes(tmp_path):
    """Two runs of 10 x 10 x 8 voxels, of which 270 are constant in both and 30 more in the first; a mask; a table."""
    rng = np.random.default_rng(0)
    for run, constant in ((1, 300), (2, 270)):
        frames_TV = rng.normal(size=(6, 800))
        frames_TV[:, :constant] = run
        write_volume(tmp_path / f"{run}.nii.gz", frames_TV, (10, 10, 8))
    write_volume(tmp_path / "mask.nii", (np.arange(800) >= 400)[None], (10, 10, 8))
    path = tmp_path / "study.csv"
    path.write_text("file,subject,run,mask\n1.nii.gz,X,1,\n2.nii.gz,X,2,\n1.nii.gz,Y,1,mask.nii\n")
    return path


def test_a_volume_without_a_mask_is_told(volumes, tmp_path, cadiff):
    code, out, _ = cadiff("-q", "pack", "table", volumes, tmp_path / "out")
    line = "no mask: all 800 voxels of subject X are taken, 270 of them constant or not finite"
    assert code == 0 and line in out.splitlines() and "subject Y" not in out
    told = pack_table(volumes, tmp_path / "as-is", normalise="none", workers=2)
    assert told["notes"] == {"no_mask": {"X": {"voxels": 800, "constant": 270}}}
    volumes.write_text("file,subject,run,mask\n1.nii.gz,Y,1,mask.nii\n")
    assert "no mask" not in cadiff("-q", "pack", "table", volumes, tmp_path / "masked")[1]


def test_an_array_has_no_mask_and_needs_none(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4, 5)))
    (tmp_path / "t.csv").write_text("file,subject\na.npy,s\n")
    assert pack_table(tmp_path / "t.csv", tmp_path / "out")["notes"] == {}


def test_samples_without_a_label_or_a_picture_are_counted(tmp_path, cadiff):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(6, 5)))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    rows = ["a.npy,s,1,cat,red.png", "a.npy,s,2,,", "a.npy,s,3,dog,unseen"]
    (tmp_path / "t.csv").write_text("\n".join(["file,subject,run,label,stimulus", *rows]) + "\n")
    code, out, _ = cadiff("-q", "pack", "table", tmp_path / "t.csv", tmp_path / "out")
    lines = out.splitlines()
    assert code == 0 and "12 of 18 samples have a label, 6 have none (--drop-unlabelled leaves them out)" in lines
    assert "12 of 18 samples have a stimulus, 6 have none" in lines
    assert "6 of 18 samples have a picture, 12 have none" in lines
    told = json.loads(cadiff("-q", "pack", "table", tmp_path / "t.csv", tmp_path / "out", "--json")[1])
    assert (told["labelled"], told["with_stimulus"], told["with_picture"]) == (12, 12, 6)
    out = cadiff("-q", "pack", "table", tmp_path / "t.csv", tmp_path / "few", "--drop-unlabelled")[1]
    assert "have a label" not in out and "a stimulus" not in out and "6 of 12 samples have a picture" in out


def test_what_all_or_none_have_is_not_told_and_only_tables_drop_the_unlabelled():
    told = {"dropped": [], "samples": {"train": 1000, "val": 452}, "already": False, "seconds": 1.0, "bytes": 1}
    told |= {"folder": "out", "subjects": ["s"], "notes": {}, "kind": "god"}
    for labelled, pictures in ((1452, 0), (0, 1452)):
        assert len(list(report(told | {"labelled": labelled, "with_stimulus": 1452, "with_picture": pictures}))) == 1
    lines = list(report(told | {"labelled": 864, "with_stimulus": 9, "with_picture": 9}))[1:]
    assert lines == [
        "864 of 1,452 samples have a label, 588 have none",
        "9 of 1,452 samples have a picture, 1,443 have none",
    ]
    many = {f"s{number}": {"voxels": 8, "constant": 0} for number in range(9)}
    lines = list(report(told | {"labelled": 0, "with_stimulus": 0, "with_picture": 0, "notes": {"no_mask": many}}))[1:]
    assert len(lines) == 6 and lines[-1].startswith("no mask: 4 more subjects")


def test_a_picture_given_for_its_folder_is_called_a_file(tmp_path, cadiff):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    code, _, err = cadiff("-q", "pack", "images", tmp_path / "red.png", tmp_path / "out")
    assert (code, err) == (2, f"cadiff: {tmp_path}/red.png: is a file. Give the folder it is in.\n")
    assert "gone: no such folder" in cadiff("-q", "pack", "images", tmp_path / "gone", tmp_path / "out")[2]


def test_an_unknown_subject_is_named_with_those_that_are_there(tmp_path, cadiff):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("sub-MSC01_rest", "geometry91282_rest"):
        (raw / f"{name}.dtseries.nii").write_bytes(b"")
    there = "here; there are geometry91282, sub-MSC01. Correct --subjects"
    for words in (["MSC01"], ["MSC01", "--skip-bad"], ["sub-MSC01,MSC01"]):
        code, _, err = cadiff("-q", "pack", "hcp", raw, tmp_path / "out", "--subjects", *words)
        assert code == 2 and f"{raw}: no subject 'MSC01' {there}" in err
    study = find_runs(raw, ["sub-MSC01", "MSC01"], skip_absent=True)
    assert [run.subject for run in study.runs] == ["sub-MSC01"]
    assert study.dropped == [("MSC01", "no run of this subject is there")]
    code, _, err = cadiff("-q", "pack", "hcp", raw, tmp_path / "out", "--subjects", "sub-MSC01", "--runs", "task*")
    assert code == 2 and "no run matches" in err
    for number in range(1200):
        (raw / f"{number:04d}_rest.dtseries.nii").write_bytes(b"")
    _, _, err = cadiff("-q", "pack", "hcp", raw, tmp_path / "out", "--subjects", "MSC01,MSC02")
    assert "no subject 'MSC01' here, nor 1 others of those asked for; there are 0000, 0001, 0002, 0003, 0004" in err
    assert " and 1,197 more (1,202 in all). Correct" in err


STOPPING = """
import sys, time
from pathlib import Path
from cadiff.launch.cli import main
from cadiff.shards import table

def slow(root, options, runs, pack, pack_runs=table.pack_runs):
    if runs[0][0] == "b":
        Path(sys.argv[3]).touch()
        time.sleep(120)
    pack_runs(root, options, runs, pack)

table.pack_runs = slow
main(["-q", "pack", "table", sys.argv[1], sys.argv[2]])
"""


def test_a_terminated_pack_keeps_its_finished_parts_and_can_go_on(tmp_path, monkeypatch, cadiff):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).normal(size=(6, 5)))
    table, out, mark = tmp_path / "t.csv", tmp_path / "out", tmp_path / "mark"
    table.write_text("file,subject\na.npy,a\nb.npy,b\nc.npy,c\n")
    process = subprocess.Popen([sys.executable, "-c", STOPPING, table, out, mark], env=os.environ)
    while not mark.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and not out.exists()
    begun, pack_runs = [], packer.pack_runs

    def noted(root, options, runs, pack):
        begun.append(runs[0][0])
        pack_runs(root, options, runs, pack)

    monkeypatch.setattr(packer, "pack_runs", noted)
    before = signal.getsignal(signal.SIGTERM)
    assert cadiff("-q", "pack", "table", table, out)[0] == 0 and begun == ["b", "c"]
    assert signal.getsignal(signal.SIGTERM) is before and Dataset(out).subjects == ["a", "b", "c"]
    assert pack_table(table, tmp_path / "whole")["hash"] == pack_table(table, out)["hash"]
