"""NSD in parts: the same bytes for any number of processes, and what is made anew after an interruption."""

import errno
import os
from collections import Counter

import h5py
import numpy as np
import pytest
from nsd_world import BETAS, ROI, shown
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards import nsd, nsd_pictures
from cadiff.shards.dataset import Dataset
from cadiff.shards.nsd import pack_nsd
from cadiff.shards.nsd_betas import VolumeBetas
from cadiff.shards.nsd_files import STIMULI, TABLE, stimulus_id
from cadiff.shards.verify import verify


def change_session(root):
    """Other betas of subj02's second session."""
    with h5py.File(root / BETAS.format("subj02", 2), "r+") as handle:
        handle["betas"][:100] += 7


def change_picture(root, number=None):
    """Another pixel in a picture, one that subj01 saw."""
    number = shown(root, "subj01")[0] if number is None else number
    with h5py.File(root / STIMULI, "r+") as handle:
        handle["imgBrick"][number, 0, 0] ^= 255


def change_table(root):
    """The same shared pictures in other words."""
    text = (root / TABLE).read_text()
    (root / TABLE).write_text(text.replace("True", "TRUE"))


def change_roi(root):
    """The same volume of subj01 with another time stamp of gzip."""
    path = root / ROI.format("subj01", "floc-faces")
    path.write_bytes(path.read_bytes()[:4] + b"\1" + path.read_bytes()[5:])


def test_neither_processes_nor_parts_change_what_is_packed(nsd_files, nsd_set, tmp_path, monkeypatch):
    monkeypatch.setattr(nsd, "PICTURES", 30)
    for workers in (1, 2):
        pack_nsd(nsd_files, tmp_path / str(workers), test="averaged+trials", val_fraction=0.1, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and verify(tmp_path / "2") == []
    ds = Dataset(tmp_path / "2")
    assert len(list(ds.folder.glob("images-*.tar"))) == 3 and ds.stimuli == nsd_set.stimuli == sorted(ds.stimuli)
    assert ds.pictures.digest.tolist() == nsd_set.pictures.digest.tolist()
    assert (ds.table.crc32c == nsd_set.table.crc32c).all() and (ds.table.stimulus == nsd_set.table.stimulus).all()


@pytest.mark.parametrize(
    "change,again",
    [
        (lambda root: None, {"picture": 58}),
        (change_session, {"subj02": 3, "picture": 58}),
        (change_roi, {"subj01": 3, "picture": 58}),
        (change_table, {"subj01": 3, "subj02": 3, "picture": 58}),
        (change_picture, {"subj01": 3, "subj02": 3, "picture": 88}),
    ],
)
def test_finished_parts_survive_unless_what_they_depend_on_changes(nsd_copy, tmp_path, monkeypatch, change, again):
    seen, read, jpeg = [], VolumeBetas.read, nsd_pictures._jpeg

    def fill_the_disk(*picture):
        if seen.count("picture") == 40:
            raise OSError("disk full")
        return seen.append("picture") or jpeg(*picture)

    monkeypatch.setattr(nsd, "PICTURES", 30)
    monkeypatch.setattr(VolumeBetas, "read", lambda self, s: seen.append(self.files[s].parts[-4]) or read(self, s))
    monkeypatch.setattr(nsd_pictures, "_jpeg", fill_the_disk)
    with pytest.raises(ConfigError, match="disk full"):
        pack_nsd(nsd_copy, tmp_path / "x")
    assert Counter(seen) == {"subj01": 3, "subj02": 3, "picture": 40} and not (tmp_path / "x").exists()
    sizes = {path: path.stat().st_size for path in nsd_copy.rglob("*")}
    change(nsd_copy)
    assert sizes == {path: path.stat().st_size for path in nsd_copy.rglob("*")}
    seen.clear()
    monkeypatch.setattr(nsd_pictures, "_jpeg", lambda *picture: seen.append("picture") or jpeg(*picture))
    pack_nsd(nsd_copy, tmp_path / "x")
    assert Counter(seen) == again and sorted(path.name for path in tmp_path.iterdir()) == ["raw", "x"]
    pack_nsd(nsd_copy, tmp_path / "y")
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_a_picture_that_changes_while_packing_is_noticed(nsd_copy, tmp_path):
    number = int(shown(nsd_copy, "subj01").max())

    def meddle(label, done, total):
        if (label, done) == ("packing", 1):
            change_picture(nsd_copy, number)

    with pytest.raises(DataError, match=f"{stimulus_id(number)} has changed since packing began"):
        pack_nsd(nsd_copy, tmp_path / "x", progress=meddle)


def test_pictures_that_are_not_used_do_not_matter(nsd_copy, tmp_path):
    pack_nsd(nsd_copy, tmp_path / "x", subjects=["subj01"])
    unseen = np.setdiff1d(shown(nsd_copy, "subj02"), shown(nsd_copy, "subj01"))
    change_picture(nsd_copy, unseen[0])
    assert pack_nsd(nsd_copy, tmp_path / "x", subjects=["subj01"])["already"]
    change_picture(nsd_copy)
    with pytest.raises(ConfigError, match=r"nsd_stimuli\.hdf5 has changed since"):
        pack_nsd(nsd_copy, tmp_path / "x", subjects=["subj01"])


def test_the_file_of_means_has_its_space_before_it_is_mapped(nsd_files, tmp_path, monkeypatch):
    mapped, memmap = [], np.memmap

    def noting(file, dtype, mode, shape):
        told = os.fstat(file.fileno())
        mapped.append((told.st_size, told.st_blocks * 512 >= told.st_size, mode))
        return memmap(file, dtype, mode, shape=shape)

    monkeypatch.setattr(np, "memmap", noting)
    pack_nsd(nsd_files, tmp_path / "x", subjects=["subj01"])
    assert mapped == [(8 * 60 * 4, True, "r+")]  # the shared pictures


def test_a_disk_without_room_for_the_means_is_an_error(nsd_files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError, match=os.strerror(errno.ENOSPC)):
        pack_nsd(nsd_files, tmp_path / "x", subjects=["subj01"])
    assert not list(tmp_path.iterdir())
