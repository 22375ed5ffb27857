"""What mending says of a copy that does not help: another set, or damaged too, and where."""

import shutil

import numpy as np
import pytest
from packed_folder import contents, flip

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards import repair
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.repair import repair_from


def make(folder, seed):
    """A set of one person's 50 rows, about 4 kB, and one picture."""

    def fill(pack):
        pack.split_by = "subject"
        rows = np.random.default_rng(seed).normal(size=(50, 30)).astype(np.float32)
        pack.add(make_records("A", "r1", rows, "train", ["p"] * 50))
        pack.picture("p", encode_png(np.full((8, 8, 3), seed, np.uint8)), "png")

    pack_folder(folder, "hcp", {}, {}, fill, silent)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sound") / "set", 0)


@pytest.fixture
def damaged(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "set")


def test_a_copy_of_another_set_is_named_with_both_hashes(sound, damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    other = make(tmp_path / "other", 1)
    flip(damaged / "fmri-000000.tar", 2000)
    ours, hashes = contents(damaged), [sha256(folder / "manifest.json") for folder in (other, damaged)]
    for name in (other, other.as_uri()):
        first, second, *_ = repair_from(damaged, name)["problems"]
        assert first.startswith(f"{name}: another set, or another version of this one: the sha256 of its manifest.json")
        assert f"is {hashes[0]}, that of {damaged} {hashes[1]}." in first and "fmri-000000.tar: not replaced" in second
    assert f"the file in {other} cannot replace it: " in repair_from(damaged, other)["problems"][1]
    assert contents(damaged) == ours
    (damaged / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"fmri-000000\.tar, .* differ .* so that is another set, or these files are"):
        repair_from(damaged, other)


def test_the_file_that_is_damaged_in_the_copy_is_named(sound, damaged, tmp_path):
    copy, name = shutil.copytree(sound, tmp_path / "copy"), "images-000000.tar"
    flip(damaged / name, 700)
    flip(copy / name, 800)
    start = f"{damaged / name}: not replaced: the file in {copy} is damaged too: "
    assert (
        repair_from(damaged, copy)["problems"][0]
        == f"{start}its sha256 differs from manifest.json; the content has changed."
    )
    (copy / name).unlink()
    size = (sound / name).stat().st_size
    assert repair_from(damaged, copy)["problems"][0] == f"{start}missing, expected {size:,} bytes."
    flip(copy / "manifest.json", 700)
    first, second, *_ = repair_from(damaged, copy)["problems"]
    assert (
        first.startswith(f"{copy / 'manifest.json'}: ") and f"the file in {copy} cannot replace it: missing" in second
    )


def test_a_disk_that_fails_under_a_sound_copy_is_not_the_copys_fault(sound, damaged, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    flip(damaged / "images-000000.tar", 700)
    monkeypatch.setattr(repair, "copy_file", full)
    with pytest.raises(OSError, match="No space left"):
        repair_from(damaged, sound)
