"""Sets of sets: the same bytes each time, what holds for all of them, and no leak across sets."""

import shutil

import numpy as np
import pytest
from edit_world import make, person
from packed_folder import contents

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.edit import keep_fraction
from cadiff.shards.merge import merge
from cadiff.shards.pictures import encode_png
from cadiff.shards.record import make_records
from cadiff.shards.verify import verify


def test_pictures_alone_are_split_and_merged(tmp_path):
    def some(names, split):
        def more(pack):
            for number, name in enumerate(names):
                pack.add(make_records("", "", np.empty((1, 0), np.float32), split, [name], ["c"]))
                pack.picture(name, encode_png(np.full((4, 4, 3), number + 10 * len(names), np.uint8)), "png")

        return more

    one = make(tmp_path / "one", kind="images", split_by="stimulus", more=some([f"a{i}" for i in range(6)], "train"))
    two = make(tmp_path / "two", kind="images", split_by="stimulus", more=some(["b"], "test"))
    told = merge([one, two], tmp_path / "both")
    assert told["kind"] == "images" and told["samples"] == {"train": 6, "val": 0, "test": 1}
    keep_fraction(tmp_path / "both", tmp_path / "half", 0.5, "stimulus")
    half = Dataset(tmp_path / "half")
    assert len(half) == 4 and half.has_picture.all() and half.classes == ["c"] and verify(half.folder) == []
    with pytest.raises(ConfigError, match="7 samples are in both, such as stimulus"):
        merge([one, two, tmp_path / "both"], tmp_path / "no")
    with pytest.raises(ConfigError, match="pictures only, the other fMRI"):
        merge([one, make(tmp_path / "fmri", person("A"))], tmp_path / "no")


def test_merging_is_reproducible_and_done_once(tiny_set, tmp_path):
    other = make(tmp_path / "other", person("C", stimulus=list("wxyz"), label=["blue", "grey", "blue", None]))
    first = merge([tiny_set, other], tmp_path / "one")
    moved = shutil.copytree(other, tmp_path / "moved")
    merge([tiny_set, moved], tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert merge([tiny_set, other], tmp_path / "one")["already"] and not first["already"]
    ds = Dataset(tmp_path / "one")
    assert ds.classes == ["red", "green", "blue", "grey"] and ds.subjects == ["A", "B", "C"]
    assert ds.kind == "table" and ds.manifest["split_by"] == "stimulus"
    assert [note["version"] for note in ds.manifest["notes"]["sets"]] == ds.manifest["options"]["merge"]
    with pytest.raises(ConfigError, match="already packed with other options"):
        merge([other, tiny_set], tmp_path / "one")


@pytest.mark.parametrize(
    ("one", "two", "found"),
    [
        ((person("A"), "table", "run"), (person("B", "test"), "table", "run"), ("table", "run")),
        ((person("A"), "hcp", "subject"), (person("B", "test"), "table", "run"), ("merged", "subject")),
        ((person("A"), "table", "run"), (person("A", "test", "r2"), "god", "stimulus"), ("merged", "run")),
        (
            (person("A", ["train"] * 3 + ["val"]), "hcp", "tail"),
            (person("B", stimulus=list("abcd")), "god", "stimulus"),
            ("merged", "tail"),
        ),
        (
            (person("A", ["train"] * 3 + ["val"], stimulus=list("abcd")), "god", "stimulus"),
            (person("B", "test"), "table", "run"),
            ("merged", "stimulus"),
        ),
    ],
)
def test_kind_and_rule_of_a_merged_set(tmp_path, one, two, found):
    sets = [
        make(tmp_path / f"{number}", records, kind=kind, split_by=rule)
        for number, (records, kind, rule) in enumerate((one, two))
    ]
    merge(sets, tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    assert (ds.kind, ds.manifest["split_by"]) == found and verify(ds.folder) == []


def test_leaks_across_sets_are_refused(tmp_path):
    train = make(tmp_path / "train", person("A", stimulus=list("abcd")), split_by="subject")
    shown = make(tmp_path / "shown", person("B", "test", stimulus=list("xyzd")), split_by="subject")
    with pytest.raises(DataError, match="stimulus d is in train and test"):
        merge([train, shown], tmp_path / "out")
    same_person = make(tmp_path / "person", person("A", "test", "r2", seed=1), split_by="subject")
    with pytest.raises(DataError, match="subject A is in train and test"):
        merge([train, same_person], tmp_path / "out")
    by_run = make(tmp_path / "by_run", person("A", "test", "r2", seed=1), split_by="run")
    with pytest.raises(DataError, match="kept apart by subject, but another set"):
        merge([train, by_run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_one_set_is_refused(tmp_path):
    one = make(tmp_path / "one", person("A"))
    copy = shutil.copytree(one, tmp_path / "copy")
    wide = make(tmp_path / "wide", person("A", run="r2", voxels=7))
    single = make(tmp_path / "single", person("B"), dtype="float32")
    twice = make(tmp_path / "twice", person("A"), person("B"))
    for sets, error, match in (
        ([one], ConfigError, "name two or more"),
        ([one, copy], ConfigError, "the same data as"),
        ([one, wide], DataError, "has 7 voxels here and 6"),
        ([one, single], ConfigError, "stored as float32"),
        ([one, twice], ConfigError, "4 samples are in both, such as subject A, run r1"),
        ([one, tmp_path / "none"], ConfigError, "no such folder"),
    ):
        with pytest.raises(error, match=match):
            merge(sets, tmp_path / "out")


def test_a_stimulus_with_two_pictures_is_refused(tmp_path):
    def set_of(name, grey):
        def more(pack):
            pack.picture("s", encode_png(np.full((4, 4, 3), grey, np.uint8)), "png")

        return make(tmp_path / name, person(name, rows=1, stimulus=["s"]), more=more)

    one, two = set_of("one", 1), set_of("two", 2)
    with pytest.raises(DataError, match="stimulus s is another picture here"):
        merge([one, two], tmp_path / "out")
    merge([one, set_of("three", 1)], tmp_path / "out")
    assert Dataset(tmp_path / "out").has_picture.tolist() == [True]


def test_what_one_set_keeps_for_all_is_not_said_of_the_others(tmp_path):
    def areas(**columns):
        return lambda pack: pack.rois("*", columns)

    one = make(tmp_path / "one", person("A"), person("B"), more=areas(V1=[0, 1], V2=[2]))
    same = make(tmp_path / "same", person("C"), more=areas(V1=[0, 1], V2=[2]))
    other = make(tmp_path / "other", person("D", voxels=3), more=areas(V1=[2]))
    none = make(tmp_path / "none", person("E"), more=lambda pack: pack.rois("E", {"V4": [5]}))
    merge([one, same], tmp_path / "alike")
    assert {k: sorted(v) for k, v in Dataset(tmp_path / "alike").rois.items()} == {"*": ["V1", "V2"]}
    merge([one, same, other, none], tmp_path / "all")
    found = {who: {k: v.tolist() for k, v in rois.items()} for who, rois in Dataset(tmp_path / "all").rois.items()}
    first = {"V1": [0, 1], "V2": [2]}
    assert found == {"A": first, "B": first, "C": first, "D": {"V1": [2]}, "E": {"V4": [5]}}
    clash = make(tmp_path / "clash", person("A", run="r2"), more=areas(V1=[3]))
    with pytest.raises(DataError, match="roi V1 of subject A differs"):
        merge([one, clash], tmp_path / "no")
