"""Parts of sets, and sets of sets: the same values bit for bit, the same bytes each time, and no leak across sets."""

import shutil

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.edit import cut_by_split, cut_by_subject, keep_fraction, keep_subjects
from cadiff.shards.merge import merge
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.verify import verify

COLUMNS = ("split", "repeat", "start", "frames", "crc32c")


def signals(rows, voxels, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, voxels)).astype(np.float32)


def make(out, *records, kind="table", split_by="run", dtype="float16", more=lambda pack: None):
    """Pack these Records; ``more`` adds what else the set keeps."""

    def fill(pack):
        pack.split_by = split_by
        for part in records:
            pack.add(part)
        more(pack)

    pack_folder(out, kind, {"seed": str(out)}, {}, fill, silent, dtype=dtype)
    return out


def person(name, split="train", run="r1", rows=4, voxels=6, seed=0, **more):
    return make_records(name, run, signals(rows, voxels, seed), split, **more)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(folder):
    """Each sample's names, columns and stored bytes."""
    ds = Dataset(folder)
    found = []
    for sample in range(len(ds)):
        row = ds.describe(sample)
        with open(ds.folder / row["shard"], "rb") as handle:
            handle.seek(row["offset"])
            values = handle.read(row["bytes"])
        scale = float(ds.blocks["scale"][ds.block_of[sample]])
        found.append((*(v for k, v in row.items() if k not in ("sample", "shard", "offset")), values, scale))
    return sorted(found, key=str)


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory):
    """Three people, two runs of 150 windows each in two sessions, kept as int8 with a scale per block."""

    def more(pack):
        pack.families = {"P1": "f1", "P2": "f1"}
        pack.rois("*", {"V1": np.arange(5)})
        pack.attach("P2", "mean", np.arange(9, dtype=np.float32))

    records = [
        make_records(
            f"P{p}",
            f"run{r}",
            signals(150, 9, 10 * p + r) * (1 + np.arange(150)[:, None]),
            "test" if p == 3 else "train",
            [f"s{i % 40}" if p < 3 and i % 3 else None for i in range(150)],
            ["a" if i % 2 else None for i in range(150)],
            session=f"ses{r}",
            start=list(range(0, 1500, 10)),
            frames=10,
        )
        for p in (1, 2, 3)
        for r in (1, 2)
    ]
    out = tmp_path_factory.mktemp("long") / "set"
    return make(out, *records, split_by="subject", dtype="int8", more=more)


def test_a_subjects_part_keeps_values_pictures_and_numbers(tiny_set, tmp_path):
    told = keep_subjects(tiny_set, tmp_path / "out", ["B"])
    whole, part = Dataset(tiny_set), Dataset(tmp_path / "out")
    assert told["samples"] == {"train": 32, "val": 8, "test": 8} and part.subjects == ["B"]
    assert part.classes == whole.classes and verify(part.folder) == []
    ids = np.flatnonzero(whole.table.subject == 1)
    np.testing.assert_array_equal(part.signals(np.arange(48), 27), whole.signals(ids, 27))
    np.testing.assert_array_equal(part.images(np.arange(48), 16), whole.images(np.arange(48), 16))
    assert [row[:-2] for row in samples(part.folder)] == [row[:-2] for row in samples(tiny_set) if row[1] == "B"]
    assert part.manifest["notes"]["sets"][0]["version"] == whole.hash
    assert keep_subjects(tiny_set, tmp_path / "out", ["B"])["already"]
    with pytest.raises(ConfigError, match="no subject 'C' here; there are A, B"):
        keep_subjects(tiny_set, tmp_path / "other", ["C"])


def test_whole_numbers_keep_their_scales_and_thin_parts_have_no_block_per_row(long_runs, tmp_path):
    whole = samples(long_runs)
    told = keep_fraction(long_runs, tmp_path / "thin", 0.2, "stimulus", seed=4)
    thin = samples(tmp_path / "thin")
    assert 0 < told["samples"]["train"] < 100 and set(thin) < set(whole)
    # 64, 64 and 22 rows of a run have three scales, so each of the four runs gives at most three blocks.
    assert len(Dataset(tmp_path / "thin").blocks["rows"]) <= 12
    assert verify(tmp_path / "thin") == []
    assert keep_subjects(long_runs, tmp_path / "all", ["P3", "P1", "P2"])["stimuli"] == 40
    assert samples(tmp_path / "all") == whole
    one, other = Dataset(long_runs), Dataset(tmp_path / "all")
    assert other.blocks["rows"].tolist() == one.blocks["rows"].tolist() == [64, 64, 22] * 6
    assert [s["family"] for s in other.manifest["subjects"]] == ["f1", "f1", ""] and other.array("P2", "mean")[8] == 8
    assert (tmp_path / "all" / "fmri-000000.tar").read_bytes() == (long_runs / "fmri-000000.tar").read_bytes()


def test_half_precision_rows_of_several_blocks_are_joined(tmp_path):
    values = signals(200, 8)
    values[3, 3], values[4, 4] = -0.0, 6e-8  # a sign and a subnormal that rounding twice could lose
    make(tmp_path / "in", make_records("A", "r", values, "train", [f"s{i % 2}" for i in range(200)]))
    keep_fraction(tmp_path / "in", tmp_path / "out", 0.5, "stimulus")
    part = Dataset(tmp_path / "out")
    assert part.blocks["rows"].tolist() == [64, 36]
    assert set(samples(tmp_path / "out")) < set(samples(tmp_path / "in"))


def test_a_fraction_keeps_whole_runs_of_every_split_and_a_larger_one_contains_it(long_runs, tmp_path):
    for fraction in (0.3, 0.6):
        keep_fraction(long_runs, tmp_path / str(fraction), fraction, "run", seed=1)
    small, large = samples(tmp_path / "0.3"), samples(tmp_path / "0.6")
    assert set(small) < set(large) < set(samples(long_runs))
    ds = Dataset(tmp_path / "0.3")
    assert len(ds) == 2 * 150 and len(ds.ids("train")) == len(ds.ids("test")) == 150  # one run of 4, one of 2
    keep_fraction(long_runs, tmp_path / "people", 0.5, "subject")
    assert len(Dataset(tmp_path / "people").subjects) == 2  # one of two in train; in test the only one
    for fraction, by, match in ((0, "run", "above 0"), (1, "run", "below 1"), (0.5, "voxel", "one of subject")):
        with pytest.raises(ConfigError, match=match):
            keep_fraction(long_runs, tmp_path / "no", fraction, by)
    make(tmp_path / "rest", person("A"))
    with pytest.raises(ConfigError, match="no sample has a stimulus"):
        keep_fraction(tmp_path / "rest", tmp_path / "no", 0.5, "stimulus")


def test_cutting_by_split_and_merging_again_gives_the_same_samples(tiny_set, tmp_path):
    made = cut_by_split(tiny_set, tmp_path / "cut")
    assert [sum(told["samples"].values()) for told in made] == [64, 16, 16]
    assert not set(Dataset(tmp_path / "cut" / "train").stimuli) & set(Dataset(tmp_path / "cut" / "test").stimuli)
    told = merge([tmp_path / "cut" / name for name in ("train", "val", "test")], tmp_path / "again")
    assert told["kind"] == "table" and told["shared_subjects"] == ["A", "B"]
    assert samples(tmp_path / "again") == samples(tiny_set) and verify(tmp_path / "again") == []
    with pytest.raises(ConfigError, match="is a packed folder itself"):
        cut_by_split(tiny_set, tmp_path / "again")


def test_cutting_into_equal_numbers_of_subjects(long_runs, tmp_path):
    made = cut_by_subject(long_runs, tmp_path / "cut", 2)
    assert [told["subjects"] for told in made] == [["P1", "P2"], ["P3"]]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["set-0", "set-1"]
    assert Dataset(tmp_path / "cut" / "set-1").rois["*"]["V1"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="from 2 to 3"):
        cut_by_subject(long_runs, tmp_path / "no", 4)
    with pytest.raises(ConfigError, match="lies inside"):
        cut_by_subject(long_runs, long_runs / "parts", 2)


def test_a_part_of_a_damaged_set_is_not_made(tiny_set, tmp_path):
    copy = shutil.copytree(tiny_set, tmp_path / "in")
    ds = Dataset(copy)
    with open(copy / "fmri-000000.tar", "rb+") as handle:
        handle.seek(int(ds.blocks["offset"][1]) + 5)
        handle.write(b"\xff")
    keep_subjects(copy, tmp_path / "b", ["A"])
    with pytest.raises(DataError, match="1 samples of block 1 are damaged"):
        keep_subjects(copy, tmp_path / "a", ["B"])
    with pytest.raises(DataError, match=r"fmri-000000\.tar: its sha256 differs"):
        merge([copy, tmp_path / "b"], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "in"]


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
