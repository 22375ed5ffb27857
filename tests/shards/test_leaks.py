"""A split that leaks is refused when it is packed, and again when it is read."""

import json
from functools import partial

import numpy as np
import pytest
from packed_folder import reseal

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.leaks import refuse_leaks_between
from cadiff.shards.merge import merge
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream
from cadiff.shards.verify import verify

SIGNALS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def pack(out, parts, *, kind="hcp", split_by=None, families=None, pictures=()):
    """Parts are (subject, run, split or splits, stimuli)."""

    def fill(pack):
        pack.split_by = split_by or pack.split_by
        pack.families = families or {}
        for subject, run, split, stimuli in parts:
            pack.add(make_records(subject, run, SIGNALS, split, stimuli))
        for name, value in pictures:
            pack.picture(name, encode_png(np.full((8, 8, 3), value, np.uint8)), "png")

    return pack_folder(out, kind, {}, {}, fill, silent)


def two(first, second, stimuli=(None, None)):
    return [("a", "r1", first, stimuli[0]), ("b", "r1", second, stimuli[1])]


def test_a_subject_on_two_sides_is_refused(tmp_path):
    pack(tmp_path / "fine", two("train", "val"))
    with pytest.raises(DataError, match="subject a is in train and test"):
        pack(tmp_path / "bad", [("a", "r1", "train", None), ("a", "r2", "test", None)])
    assert not list(tmp_path.glob("*bad*")) and not list(tmp_path.glob(".*"))


def test_a_family_on_two_sides_is_refused(tmp_path):
    pack(tmp_path / "fine", two("train", "val"), families={"a": "F1", "b": "F2"})
    with pytest.raises(DataError, match="family of subjects a, b is in train and val"):
        pack(tmp_path / "bad", two("train", "val"), families={"a": "F1", "b": "F1"})
    pack(tmp_path / "together", two("val", "val"), families={"a": "F1", "b": "F1"})
    assert json.loads((tmp_path / "together" / "manifest.json").read_text())["subjects"][1]["family"] == "F1"


def test_a_run_on_two_sides_is_refused_where_runs_are_the_split(tmp_path):
    mixed = [("a", "r1", ["train", "train", "val", "val"], None)]
    with pytest.raises(DataError, match="run r1 of subject a is in train and val"):
        pack(tmp_path / "bad", mixed, kind="table")
    pack(tmp_path / "tail", mixed, kind="table", split_by="tail")
    pack(tmp_path / "runs", [("a", "r1", "train", None), ("a", "r2", "test", None)], kind="table")


def test_a_stimulus_or_a_picture_on_two_sides_is_refused_always(tmp_path):
    shown = (["p", "q", "q", None], ["x", "p", "x", "x"])
    with pytest.raises(DataError, match="stimulus p is in train and test"):
        pack(tmp_path / "bad", two("train", "test", shown), kind="god")
    shown = (["p", "q", "q", None], ["x", "y", "x", "x"])
    same = [("p", 5), ("q", 6), ("x", 7), ("y", 5)]
    with pytest.raises(DataError, match="stimuli p and y are one picture, in train and test"):
        pack(tmp_path / "bad", two("train", "test", shown), kind="god", pictures=same)
    pack(tmp_path / "fine", two("train", "test", shown), kind="god", pictures=[*same[:3], ("y", 8)])
    pack(tmp_path / "one-side", two("train", "train", shown), kind="god", pictures=same)


def test_a_leak_that_was_made_afterwards_is_refused_when_read(tmp_path):
    pack(tmp_path / "set", two("train", "val"))

    def join_families(manifest):
        for subject in manifest["subjects"]:
            subject["family"] = "F1"

    reseal(tmp_path / "set", join_families)
    with pytest.raises(DataError, match=r"family of subjects a, b is in train and val"):
        Dataset(tmp_path / "set")
    assert any("family" in problem for problem in verify(tmp_path / "set"))


def streams(*folders):
    options = {"split": "train", "batch": 2, "micro_batch": 2, "width": 16}
    return Stream([Dataset(folder) for folder in folders], **options)


def test_sets_that_leak_into_each_other_are_refused_together(tmp_path):
    pack(tmp_path / "a", two("train", "val"))
    with pytest.raises(ConfigError, match="is listed twice"):
        streams(tmp_path / "a", tmp_path / "a")
    pack(tmp_path / "b", [("a", "r9", "test", None), ("c", "r1", "train", None)])
    with pytest.raises(DataError, match="subject a is in train of one and in test of the other"):
        streams(tmp_path / "a", tmp_path / "b")
    pack(tmp_path / "c", [("c", "r1", "train", None), ("d", "r1", "val", None)])
    assert len(streams(tmp_path / "a", tmp_path / "c")) == 8


def test_one_stimulus_id_of_two_sets_is_one_stimulus_unless_the_pictures_differ(tmp_path):
    pack(tmp_path / "a", [("a", "r", "train", ["p", "q", "q", "q"])], kind="god", pictures=[("p", 1), ("q", 2)])
    pack(tmp_path / "b", [("b", "r", ["test", "train"] * 2, ["p", "z"] * 2)], kind="god", pictures=[("p", 9)])
    assert len(streams(tmp_path / "a", tmp_path / "b")) == 6
    pack(tmp_path / "c", [("b", "r", ["test", "train"] * 2, ["p", "z"] * 2)], kind="god")
    with pytest.raises(DataError, match="stimulus p is in train of one and in test of the other"):
        streams(tmp_path / "a", tmp_path / "c")
    pack(tmp_path / "d", [("b", "r", ["test", "train"] * 2, ["x", "z"] * 2)], kind="god", pictures=[("x", 1)])
    with pytest.raises(DataError, match="picture"):
        streams(tmp_path / "a", tmp_path / "d")


def test_the_same_recordings_under_other_names_leak(tmp_path):
    signals = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)

    def fill(subject, split, pack):
        pack.add(make_records(subject, "r", signals, split))
        pack.add(make_records(f"{subject}-more", "r", signals[::-1] + 1, "train"))

    for name, split in (("a", "train"), ("b", "test"), ("c", "train")):
        pack_folder(tmp_path / name, "hcp", {}, {}, partial(fill, name, split), silent)
    a, b, c = (Dataset(tmp_path / name) for name in "abc")
    refuse_leaks_between([a, c])
    with pytest.raises(DataError, match="60 of 60 rows of test are in train too: the same recordings twice"):
        refuse_leaks_between([a, b])
    with pytest.raises(DataError, match="the same recordings twice"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
