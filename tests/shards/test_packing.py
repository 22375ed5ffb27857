"""A packed folder is whole or absent, reproducible byte for byte, and stays a stock WebDataset."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards import tars
from cadiff.shards.dataset import Dataset
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import check_name, make_records, safe_key, silent
from cadiff.shards.verify import verify

SIGNALS = np.random.default_rng(0).normal(size=(150, 10)).astype(np.float32)


def fill(pack):
    pack.add(make_records("sub.01", "rest/1", SIGNALS, ["train"] * 100 + ["val"] * 50))
    pack.add(make_records("sub-01", "rest-1", SIGNALS[:3, :7], "test", ["a.b", None, "a-b"], ["x", None, "y"]))
    pack.picture("a.b", encode_png(np.full((4, 4, 3), 7, np.uint8)), "png")
    pack.picture("a-b", encode_png(np.full((4, 4, 3), 9, np.uint8)), "png")


def pack(out, options=None, sources=None, how=fill):
    def split_within_runs(pack):
        pack.split_by = "tail"
        how(pack)

    return pack_folder(out, "table", options or {"o": 1}, sources or {}, split_within_runs, silent)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    pack(tmp_path / "one")
    time.sleep(2.1)  # zip and tar keep times to 2 s
    pack(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == ["fmri-000000.tar", "images-000000.tar", "index.npz", "manifest.json"]


def test_packing_again_does_nothing_unless_something_changed(tmp_path):
    source = tmp_path / "in.bin"
    source.write_bytes(b"abc")
    first = pack(tmp_path / "out", sources={"in.bin": source})
    assert not first["already"] and first["samples"] == {"train": 100, "val": 50, "test": 3}

    def never(pack):
        raise AssertionError("packed again")

    again = pack(tmp_path / "out", sources={"in.bin": source}, how=never)
    assert again["already"] and again["hash"] == first["hash"]
    with pytest.raises(ConfigError, match=r"other options \(o\)"):
        pack(tmp_path / "out", {"o": 2}, {"in.bin": source})
    with pytest.raises(ConfigError, match="are gone now"):
        pack(tmp_path / "out")
    source.write_bytes(b"abd")
    with pytest.raises(ConfigError, match="has changed since"):
        pack(tmp_path / "out", sources={"in.bin": source})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    pack(tmp_path / "out")  # an empty folder is filled
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a packed folder"):
        pack(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_failed_pack_leaves_nothing(tmp_path):
    def broken(pack):
        fill(pack)
        raise DataError("the third file is damaged")

    with pytest.raises(DataError):
        pack(tmp_path / "out", how=broken)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="nothing was packed"):
        pack(tmp_path / "out", how=lambda pack: pack.drop("run 1", "too short"))
    with pytest.raises(DataError, match="no such file"):
        pack(tmp_path / "out", sources={"gone": tmp_path / "gone"})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_pack_leaves_nothing_under_the_final_name_and_can_be_started_again(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
import test_packing as t
def slow(pack):
    t.fill(pack)
    print('filled', flush=True)
    time.sleep(60)
t.pack({str(tmp_path / "out")!r}, how=slow)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "filled\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".out.partial-"]
    pack(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and verify(tmp_path / "out") == []


def test_two_packs_at_once_do_not_overwrite_each_other(tmp_path):
    def slow(inner):
        fill(inner)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "first").write_text("x")

    with pytest.raises(ConfigError, match="appeared while packing"):
        pack(tmp_path / "out", how=slow)


def test_the_tars_are_stock_webdataset(tmp_path):
    import webdataset

    pack(tmp_path / "out")
    url = str(tmp_path / "out" / "fmri-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [len(sample["npy"]) for sample in samples] == [64, 64, 22, 3]
    assert len({sample["__key__"] for sample in samples}) == 4
    assert not any("." in sample["__key__"] for sample in samples)
    assert samples[0]["npy"].dtype == np.float16 and samples[3]["json"]["stimulus"] == ["a.b", None, "a-b"]
    np.testing.assert_array_equal(np.concatenate([s["npy"] for s in samples[:3]]), SIGNALS.astype(np.float16))
    pictures = webdataset.WebDataset(str(tmp_path / "out" / "images-000000.tar"), shardshuffle=False).decode("rgb8")
    assert [sample["png"][0, 0, 0] for sample in pictures] == [7, 9]


def test_members_carry_no_time_and_no_owner(tmp_path):
    import tarfile

    pack(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "fmri-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_a_full_shard_is_followed_by_the_next(tmp_path):
    def small(pack):
        pack.tars["fmri"] = tars.Tars(pack.folder, "fmri", pack.shards, 3000)
        fill(pack)

    pack(tmp_path / "out", how=small)
    ds = Dataset(tmp_path / "out")
    assert len(list(ds.folder.glob("fmri-*.tar"))) > 1
    np.testing.assert_array_equal(ds.signals(np.arange(150), 10), SIGNALS.astype(np.float16))
    assert verify(tmp_path / "out") == []


def test_records_must_pair_one_to_one_and_be_finite(tmp_path):
    with pytest.raises(DataError, match="pair one to one"):
        make_records("s", "r", SIGNALS[:2], ["train"])
    with pytest.raises(DataError, match="split 'trian'"):
        make_records("s", "r", SIGNALS[:1], "trian")
    with pytest.raises(DataError, match="finite"):
        make_records("s", "r", np.array([[np.nan]]), "train")
    record = make_records("s", "r", SIGNALS[:2], "val", ["a", None], None, [0, 1])[0]
    assert (record.stimulus, record.split, record.repeat, record.signal.shape) == ("a", "val", 0, (10,))

    def two_widths(pack):
        pack.add(make_records("s", "1", SIGNALS, "train"))
        pack.add(make_records("s", "2", SIGNALS[:, :5], "train"))

    with pytest.raises(DataError, match="5 voxels, but 10"):
        pack(tmp_path / "out", how=two_widths)
    with pytest.raises(DataError, match="beyond float16"):
        pack(tmp_path / "out", how=lambda p: p.add(make_records("s", "1", SIGNALS * 1e6, "train")))


def test_names_are_kept_verbatim_but_keys_are_safe():
    assert safe_key("../../etc/pass.wd") == "etc-pass-wd"
    assert safe_key("...") == "x" and len(safe_key("a" * 500)) == 80
    assert check_name("sub.01/ä", "subject") == "sub.01/ä"
    for bad in ("", "a" * 201, "a\nb"):
        with pytest.raises(DataError, match="1 to 200 printable"):
            check_name(bad, "subject")


def test_the_manifest_lists_what_was_packed(tmp_path):
    pack(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    subjects = [(entry["name"], entry["voxels"], entry["family"]) for entry in manifest["subjects"]]
    assert subjects == [("sub.01", 10, ""), ("sub-01", 7, "")]
    assert manifest["runs"] == ["rest/1", "rest-1"] and manifest["stimuli"] == ["a.b", "a-b"]
    assert manifest["classes"] == ["x", "y"] and manifest["dtype"] == "float16"
