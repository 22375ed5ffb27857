"""THINGS-fMRI in parts: the same bytes for any number of processes, and what is made anew after an interruption."""

import errno
import os
import shutil
from collections import Counter

import h5py
import pytest
from packed_folder import contents
from things_world import rewrite

from cadiff.errors import ConfigError
from cadiff.shards import things, things_subject
from cadiff.shards.dataset import Dataset
from cadiff.shards.things import pack_things
from cadiff.shards.verify import verify


def test_neither_processes_nor_parts_change_what_is_packed(things_files, things_set, tmp_path, monkeypatch):
    root = things_files[0]
    monkeypatch.setattr(things, "PICTURES", 6)
    for workers in (1, 2):
        options = {"images": root / "object_images", "val_fraction": 0.2, "test": "averaged+trials", "workers": workers}
        pack_things(root, tmp_path / str(workers), **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and verify(tmp_path / "2") == []
    ds = Dataset(tmp_path / "2")
    assert len(list(ds.folder.glob("images-*.tar"))) == 4 and ds.classes == things_set.classes
    assert ds.stimuli == things_set.stimuli == sorted(ds.stimuli)
    assert ds.pictures.digest.tolist() == things_set.pictures.digest.tolist()
    for column in ("crc32c", "stimulus", "label", "split"):
        assert (getattr(ds.table, column) == getattr(things_set.table, column)).all()


def swap_stimuli(root):
    """Two training trials of sub-02 change places."""

    def swap(rows):
        first, second = [row for row in rows if row["trial_type"] == "train"][:2]
        for name in ("stimulus", "concept"):
            first[name], second[name] = second[name], first[name]

    rewrite(root / "betas_csv/sub-02_StimulusMetadata.csv", swap)


def change_ceiling(root):
    """The last digit of one voxel's ceiling of sub-01."""

    def change(rows):
        text = rows[0]["nc_testset"]
        rows[0]["nc_testset"] = text[:-1] + ("1" if text[-1] == "2" else "2")

    rewrite(root / "betas_csv/sub-01_VoxelMetadata.csv", change)


def change_betas(root):
    with h5py.File(root / "betas_csv/sub-02_ResponseData.h5", "r+") as file:
        file["ResponseData/block0_values"][3, 4] += 1


def change_picture(root):
    """Its density in dots per inch: the byte after the name and version of JFIF."""
    with open(root / "object_images/thing0/thing0_01s.jpg", "r+b") as file:
        file.seek(17)
        file.write(b"\7")


@pytest.mark.parametrize(
    "change,again",
    [
        (lambda root: None, {"picture": 15}),
        (change_betas, {"sub-02": 1, "picture": 15}),
        (change_ceiling, {"sub-01": 1, "picture": 15}),
        (swap_stimuli, {"sub-01": 1, "sub-02": 1, "picture": 15}),  # every table decides what is held out
        (change_picture, {"picture": 21}),
    ],
)
def test_finished_parts_survive_unless_what_they_depend_on_changes(things_files, tmp_path, monkeypatch, change, again):
    root, seen = shutil.copytree(things_files[0], tmp_path / "raw"), []
    voxels, picture = things_subject.read_voxels, things.read_picture

    def note_subject(path, *how):
        return seen.append(path.name[:6]) or voxels(path, *how)

    def fill_the_disk(*given):
        if seen.count("picture") == 8:
            raise OSError("disk full")
        return seen.append("picture") or picture(*given)

    def pack(out):
        return pack_things(root, out, images=root / "object_images")

    monkeypatch.setattr(things, "PICTURES", 6)
    monkeypatch.setattr(things_subject, "read_voxels", note_subject)
    monkeypatch.setattr(things, "read_picture", fill_the_disk)
    with pytest.raises(ConfigError, match="disk full"):
        pack(tmp_path / "x")
    assert Counter(seen) == {"sub-01": 1, "sub-02": 1, "picture": 8} and not (tmp_path / "x").exists()
    sizes = {path: path.stat().st_size for path in root.rglob("*")}
    change(root)
    assert sizes == {path: path.stat().st_size for path in root.rglob("*")}
    seen.clear()
    monkeypatch.setattr(things, "read_picture", lambda *given: seen.append("picture") or picture(*given))
    pack(tmp_path / "x")
    assert Counter(seen) == again and sorted(path.name for path in tmp_path.iterdir()) == ["raw", "x"]
    pack(tmp_path / "y")
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_a_disk_that_takes_only_a_part_of_the_scratch_file_changes_nothing_or_stops(things_copy, tmp_path, monkeypatch):
    def pack(out):
        return pack_things(things_copy, tmp_path / out, roi="all")

    whole, write = pack("whole"), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[: len(data) // 2 or 1], at))
    assert pack("short")["hash"] == whole["hash"]
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: 0)
    with pytest.raises(ConfigError, match=os.strerror(errno.ENOSPC)):
        pack("full")
    assert not list(tmp_path.glob("*full*"))
