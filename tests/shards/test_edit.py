"""Parts of sets: the same values bit for bit, whole runs or stimuli, and nothing from a damaged set."""

import shutil

import numpy as np
import pytest
from edit_world import make, person, samples, signals
from packed_folder import flip

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.edit import cut_by_split, cut_by_subject, keep_fraction, keep_subjects
from cadiff.shards.merge import merge
from cadiff.shards.record import make_records
from cadiff.shards.verify import verify


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
    flip(copy / "fmri-000000.tar", int(Dataset(copy).blocks["offset"][1]) + 5)
    keep_subjects(copy, tmp_path / "b", ["A"])
    with pytest.raises(DataError, match="1 samples of block 1 are damaged"):
        keep_subjects(copy, tmp_path / "a", ["B"])
    with pytest.raises(DataError, match=r"fmri-000000\.tar: its sha256 differs"):
        merge([copy, tmp_path / "b"], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "in"]
