"""Damaged folders are mended from a copy, file by file, or what is sound of them is saved; nothing is guessed."""

import json
import shutil

import numpy as np
import pytest
from packed_folder import contents, flip, reindex, reseal

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.repair import repair_from
from cadiff.shards.salvage import salvage
from cadiff.shards.verify import examine, glance, verify
from cadiff.shards.zarr_store import SCANS, ScanWriter


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two people with 100 windows each in blocks of 64 and 36, whole scans beside them, and two pictures."""
    out = tmp_path_factory.mktemp("sound") / "set"
    rng = np.random.default_rng(0)

    def fill(pack):
        pack.split_by = "subject"
        scans = ScanWriter(pack.folder / SCANS)
        for name, split in (("A", "train"), ("B", "test")):
            names = [f"{split}-picture" if i % 50 == 0 else None for i in range(100)]
            pack.add(make_records(name, "r1", rng.normal(size=(100, 30)).astype(np.float32), split, names))
            pack.picture(f"{split}-picture", encode_png(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)), "png")
            scans.add(name, "r1", rng.normal(size=(300, 30)), {})
        pack.scans = scans.describe()

    pack_folder(out, "hcp", {}, {}, fill, silent, dtype="int16")
    return out


@pytest.fixture
def damaged(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "set")


def rows_of(folder, block, row):
    """The byte where a row of a block begins."""
    return int(Dataset(folder).blocks["offset"][block]) + row * 60


def test_a_check_says_what_it_looked_at(sound):
    checked, files = examine(sound), len(json.loads((sound / "manifest.json").read_text())["files"])
    assert checked.problems == [] and checked.files == files + 1
    assert (checked.blocks, checked.rows, checked.pictures) == (4, 200, 2)
    assert checked.bytes == sum(path.stat().st_size for path in sound.rglob("*") if path.is_file())
    assert glance(sound).problems == [] and glance(sound).blocks == 0


def test_a_quick_check_finds_sizes_and_the_index_only(damaged):
    flip(damaged / "fmri-000000.tar", 5000)
    assert glance(damaged).problems == [] and len(verify(damaged)) == 2
    next((damaged / SCANS).rglob("c/0/0")).write_bytes(b"short")
    (damaged / "images-000000.tar").write_bytes(b"short")
    problems = "\n".join(glance(damaged).problems)
    assert "images-000000.tar: 5 bytes, expected" in problems and "scans.zarr" in problems
    flip(damaged / "index.npz", 300)
    assert any("hash differs" in problem for problem in glance(damaged).problems)


def test_a_wrong_row_checksum_in_the_index_is_found(damaged):
    reindex(damaged, lambda arrays: arrays["sample_crc32c"].put(70, 5))
    assert [problem.split(": ", 1)[1] for problem in verify(damaged)] == [
        f"block 1 at byte {rows_of(damaged, 1, 0):,}: the index has other checksums for its rows."
    ]


def test_damaged_and_missing_files_are_replaced_by_a_copys(sound, damaged):
    before = contents(sound)
    flip(damaged / "fmri-000000.tar", 5000)
    (damaged / "images-000000.tar").unlink()
    (damaged / "index.npz").write_bytes(b"")
    told = repair_from(damaged, sound)
    assert sorted(told["replaced"]) == ["fmri-000000.tar", "images-000000.tar", "index.npz"]
    assert told["problems"] == [] and told["blocks"] == 4
    assert contents(damaged) == before == contents(sound)
    assert repair_from(damaged, sound)["replaced"] == []


def test_a_copy_that_is_damaged_too_helps_as_far_as_it_is_sound(sound, damaged, tmp_path):
    copy = shutil.copytree(sound, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    flip(copy / "fmri-000000.tar", 9000)
    flip(damaged / "fmri-000000.tar", 5000)
    flip(damaged / "images-000000.tar", 700)
    ours = (damaged / "fmri-000000.tar").read_bytes()
    told = repair_from(damaged, copy)
    assert told["replaced"] == ["images-000000.tar"]
    assert any("fmri-000000.tar: not replaced: the file in" in problem for problem in told["problems"])
    assert (damaged / "fmri-000000.tar").read_bytes() == ours  # not by another damaged one
    assert sorted(path.name for path in damaged.iterdir()) == sorted(path.name for path in sound.iterdir())


def test_scans_are_mended_file_by_file(sound, damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    chunk = next((damaged / SCANS / "B").rglob("c/1/0"))
    flip(chunk, 3)
    shutil.rmtree(damaged / SCANS / "A")
    told = repair_from(damaged, sound)
    assert told["problems"] == [] and contents(damaged) == contents(sound)
    assert chunk.relative_to(damaged).as_posix() in told["replaced"] and len(told["replaced"]) < 8
    (damaged / SCANS / "extra").write_text("x")
    told = repair_from(damaged, sound)
    assert "extra: is not in the copy. Remove it." in told["problems"][0] and told["replaced"] == []
    assert "scans is not fetched from a URL" in repair_from(damaged, sound.as_uri())["problems"][0]


def test_a_lost_manifest_is_restored_only_if_everything_else_agrees(sound, damaged):
    (damaged / "manifest.json").unlink()
    assert repair_from(damaged, sound)["replaced"] == ["manifest.json"] and contents(damaged) == contents(sound)
    (damaged / "manifest.json").write_bytes(b"\0" * 100)
    flip(damaged / "fmri-000000.tar", 5000)
    with pytest.raises(DataError, match=r"not restored.*fmri-000000\.tar differ"):
        repair_from(damaged, sound)
    assert (damaged / "manifest.json").read_bytes() == b"\0" * 100
    with pytest.raises(DataError, match="no such file"):
        repair_from(damaged, damaged.parent)


def test_a_manifest_that_reads_well_but_lists_a_wrong_hash_is_restored(sound, damaged):
    reseal(damaged, lambda manifest: manifest["files"][0].update(sha256=manifest["files"][0]["sha256"][::-1]))
    assert any("sha256" in problem for problem in verify(damaged))
    told = repair_from(damaged, sound)
    assert told["replaced"] == ["manifest.json"] and contents(damaged) == contents(sound)


def test_a_copy_behind_a_url(sound, damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    flip(damaged / "fmri-000000.tar", 5000)
    told = repair_from(damaged, sound.as_uri())
    assert told["replaced"] == ["fmri-000000.tar"] and told["problems"] == []
    assert contents(damaged) == contents(sound)


def test_no_copy_is_a_mistake_of_the_user(damaged, tmp_path):
    for folder, copy, match in (
        (tmp_path / "no", damaged, "no such folder"),
        (damaged, tmp_path / "no", "no such folder"),
        (damaged, damaged, "is the folder to be mended itself"),
    ):
        with pytest.raises(ConfigError, match=match):
            repair_from(folder, copy)


def test_without_a_copy_single_rows_are_left_out(sound, damaged, tmp_path):
    tar = damaged / "fmri-000000.tar"
    flip(tar, *(rows_of(sound, block, row) for block, row in ((0, 3), (2, 5), (2, 6), (2, 9))))
    before = contents(damaged)
    told = salvage(damaged, tmp_path / "new")
    assert contents(damaged) == before
    assert told["dropped"] == [
        {"what": "block 0 of fmri-000000.tar, subject A, run r1", "why": "damaged: samples 3"},
        {"what": "block 2 of fmri-000000.tar, subject B, run r1", "why": "damaged: samples 105-106, 109"},
    ]
    new, old = Dataset(tmp_path / "new"), Dataset(sound)
    kept = np.delete(np.arange(200), [3, 105, 106, 109])
    np.testing.assert_array_equal(new.signals(np.arange(196), 30), old.signals(kept, 30))
    assert new.table.crc32c.tolist() == old.table.crc32c[kept].tolist() and new.has_picture.all()
    assert new.kind == "hcp" and new.manifest["scans"] == old.manifest["scans"] and verify(new.folder) == []
    assert salvage(damaged, tmp_path / "new")["already"]
    flip(tar, rows_of(sound, 0, 0))
    with pytest.raises(ConfigError, match=r"other options \(salvage\)"):
        salvage(damaged, tmp_path / "new")


def test_files_cut_short_or_gone_lose_what_was_in_them(sound, damaged, tmp_path):
    with open(damaged / "fmri-000000.tar", "rb+") as handle:
        handle.truncate(rows_of(sound, 3, 10) + 7)
    (damaged / "images-000000.tar").unlink()
    flip(next((damaged / SCANS).rglob("c/0/0")), 1)
    told = salvage(damaged, tmp_path / "new")
    assert told["samples"] == {"train": 100, "val": 0, "test": 74}
    assert [entry["why"] for entry in told["dropped"]] == [
        "damaged: samples 0, 50 kept without a picture",
        "damaged: samples 100, 150 kept without a picture",
        "damaged: samples 174-199",
        "damaged",
    ]
    assert not (tmp_path / "new" / SCANS).exists() and verify(tmp_path / "new") == []


def test_only_a_damaged_set_with_a_sound_index_is_saved(sound, damaged, tmp_path):
    with pytest.raises(ConfigError, match="nothing is damaged"):
        salvage(damaged, tmp_path / "new")
    with pytest.raises(ConfigError, match="lies inside"):
        salvage(damaged, damaged / "new")
    flip(damaged / "index.npz", 300)
    with pytest.raises(DataError, match="mend the folder with --from"):
        salvage(damaged, tmp_path / "new")
    (damaged / "index.npz").unlink()
    with pytest.raises(DataError, match="mend the folder with --from"):
        salvage(damaged, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_damage_between_the_rows_loses_nothing(sound, damaged, tmp_path):
    flip(damaged / "fmri-000000.tar", 3)  # in the first tar header
    told = salvage(damaged, tmp_path / "new")
    assert told["dropped"] == [] and sum(told["samples"].values()) == 200
    assert (tmp_path / "new" / "fmri-000000.tar").read_bytes() == (sound / "fmri-000000.tar").read_bytes()


def test_a_set_of_pictures_loses_the_sample_with_the_picture(tmp_path):
    def fill(pack):
        for number, name in enumerate("abc"):
            pack.add(make_records("", "", np.empty((1, 0), np.float32), "train", [name]))
            pack.picture(name, encode_png(np.full((4, 4, 3), number, np.uint8)), "png")

    pack_folder(tmp_path / "set", "images", {}, {}, fill, silent)
    index = np.load(tmp_path / "set" / "index.npz")
    flip(tmp_path / "set" / "images-000000.tar", int(index["image_offset"][1]) + 40)
    told = salvage(tmp_path / "set", tmp_path / "new")
    assert told["dropped"] == [
        {"what": "picture of stimulus b, in images-000000.tar", "why": "damaged: samples 1 left out"}
    ]
    ds = Dataset(tmp_path / "new")
    assert len(ds) == 2 and ds.images(ds.table.stimulus, 4)[:, 0, 0, 0].tolist() == [0, 2]
