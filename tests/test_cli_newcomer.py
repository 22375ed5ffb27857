"""What a newcomer asks first: where pictures lie, how a set was packed, what one fault cost, a part without --by."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.launch import loader_bench
from cadiff.shards.dataset import Dataset
from cadiff.shards.encoding import crc32c
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.verify import examine, glance, verify

ROOT = Path(__file__).resolve().parent.parent


def signals(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)


def pack(out, fill, kind="table", **options):
    pack_folder(out, kind, options, {}, fill, silent)
    return out


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Three pictures and no signals."""

    def fill(pack):
        for number, name in enumerate("abc"):
            pack.add(make_records("", "", np.empty((1, 0), np.float32), "train", [name]))
            pack.picture(name, encode_png(np.full((4 + number, 4, 3), number, np.uint8)), "png")
        pack.notes = {"duplicates": {f"picture {i}": "a" for i in range(40)}, "of": "a camera", "size": 3}

    return pack(tmp_path_factory.mktemp("album") / "set", fill, "images", val_fraction=0.1, names=list(range(90)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Signals of four samples: two of a picture, one of a stimulus without one, one of none."""

    def fill(pack):
        pack.add(make_records("A", "r", signals(4), "train", ["p", "q", None, "p"]))
        pack.picture("p", encode_png(np.full((4, 4, 3), 7, np.uint8)), "png")

    return pack(tmp_path_factory.mktemp("mixed") / "set", fill)


def stored(folder, row, prefix=""):
    """The bytes that a row of ``ls`` names."""
    start = row[f"{prefix}offset"]
    return (folder / row[f"{prefix}shard"]).read_bytes()[start : start + row[f"{prefix}bytes"]]


def test_in_a_set_of_pictures_ls_says_where_each_picture_lies(cadiff, album):
    rows = [json.loads(line) for line in cadiff("shards", "ls", album, "--json")[1].splitlines()]
    assert [row["stimulus"] for row in rows] == ["a", "b", "c"] and "picture_shard" not in rows[0]
    ds = Dataset(album)
    for number, row in enumerate(rows):
        data = stored(album, row)
        assert data == ds.pictures.encoded(number) and data[1:4] == b"PNG" and crc32c(data) == row["crc32c"] > 0


def test_a_sample_of_both_has_its_signals_place_and_its_pictures(cadiff, mixed):
    rows = [json.loads(line) for line in cadiff("shards", "ls", mixed, "--json")[1].splitlines()]
    for row in (rows[0], rows[3]):
        assert row["shard"] == "fmri-000000.tar" and crc32c(stored(mixed, row)) == row["crc32c"]
        assert row["picture_shard"] == "images-000000.tar"
        assert crc32c(stored(mixed, row, "picture_")) == row["picture_crc32c"]
    for row in rows[1:3]:
        assert [row[f"picture_{name}"] for name in ("shard", "offset", "bytes", "crc32c")] == [None] * 4
    lines = cadiff("shards", "ls", mixed)[1].splitlines()
    assert {line.count("\t") for line in lines} == {17} and lines[2].endswith("\t-\t-\t-\t-")


def test_info_speaks_of_pictures_where_there_are_no_signals(cadiff, album):
    text = cadiff("shards", "info", album)[1]
    assert "stored    3 pictures, 1 shards, " in text and "blocks" not in text
    assert json.loads(cadiff("shards", "info", album, "--json")[1])["dtype"] is None


def test_info_shows_the_options_and_counts_long_notes(cadiff, album):
    text = cadiff("shards", "info", album)[1]
    assert "options   dtype=float16, names=(90 entries), val_fraction=0.1\n" in text
    assert "notes     duplicates (40 entries), of a camera, size 3\n" in text
    told = json.loads(cadiff("shards", "info", album, "--json")[1])
    assert told["options"] == {"dtype": "float16", "names": list(range(90)), "val_fraction": 0.1}
    assert told["notes"]["duplicates"]["picture 39"] == "a" and told["notes"]["of"] == "a camera"


@pytest.mark.parametrize(("jpeg", "words"), [(True, "100 JPEGs, 2 cores"), (False, "100 pictures, not all JPEG")])
def test_bench_speaks_of_pictures_where_there_are_no_signals(cadiff, album, monkeypatch, jpeg, words):
    told = {"samples": 100, "voxels": 0, "pictures": 100, "jpeg": jpeg, "dtype": "float16"}
    told |= {"shards": str(album), "machine": {"cores": 2}, "contenders": []}
    monkeypatch.setattr(loader_bench, "measure", lambda *_: dict(told))
    code, out, _ = cadiff("bench", "loader", album)
    assert code == 0 and out.startswith(words) and "voxels" not in out and "float16" not in out
    monkeypatch.setattr(loader_bench, "measure", lambda *_: {**told, "voxels": 6})
    assert cadiff("bench", "loader", album)[1] == "100 samples of 6 voxels, float16, 2 cores\n"


def test_an_unknown_subject_has_no_regions(mixed):
    assert Dataset(mixed).regions("A") == {}
    with pytest.raises(ConfigError, match="no subject 'nobody' here; there are A"):
        Dataset(mixed).regions("nobody")


def test_pictures_that_are_not_there_are_refused_in_plain_words(mixed, tmp_path):
    with pytest.raises(ConfigError, match="a sample without a stimulus has no picture"):
        Dataset(mixed).images(Dataset(mixed).table.stimulus, 8)
    with pytest.raises(DataError, match=r"stimulus q has no picture\. Pack again"):
        Dataset(mixed).images([1], 8)
    with pytest.raises(ConfigError, match=r"stimulus 0\.\.2 is not within 0\.\.1"):
        Dataset(mixed).images([0, 2], 8)
    rest = Dataset(pack(tmp_path / "rest", lambda pack: pack.add(make_records("A", "r", signals(3), "train"))))
    with pytest.raises(ConfigError, match="rest: holds no pictures"):
        rest.images(rest.table.stimulus, 8)
    named = Dataset(pack(tmp_path / "named", lambda p: p.add(make_records("A", "r", signals(1), "train", ["s"]))))
    with pytest.raises(DataError, match="stimulus s has no picture, as the set holds none"):
        named.images([0], 8)


@pytest.fixture
def copy(tiny_set, tmp_path):
    return shutil.copytree(tiny_set, tmp_path / "set")


def test_a_file_cut_short_is_one_problem_that_counts_what_is_lost(cadiff, copy):
    ds, tar = Dataset(copy), copy / "images-000000.tar"
    size, keep = tar.stat().st_size, ds.describe(10)["picture_offset"] + 5
    with open(tar, "rb+") as handle:
        handle.truncate(keep)
    wanted = (
        f"{tar}: {keep:,} bytes, expected {size:,}. Lost: 38 of its 48 pictures. Mend it with `cadiff shards repair`."
    )
    assert verify(copy) == glance(copy).problems == [wanted]
    assert examine(copy).pictures == 10 and examine(copy).blocks == 2
    code, _, err = cadiff("shards", "verify", copy)
    assert code == 3 and err.count("\n") == 1 and "cadiff shards repair" in err
    (copy / "fmri-000000.tar").unlink()
    assert any("missing" in problem and "Lost: 2 of its 2 blocks. " in problem for problem in verify(copy))


def test_damage_before_the_cut_is_still_found(copy):
    tar, offset = copy / "fmri-000000.tar", Dataset(copy).blocks["offset"]
    with open(tar, "rb+") as handle:
        handle.seek(int(offset[0]))
        handle.write(b"\xff\xff\xff")
        handle.truncate(int(offset[1]) + 9)
    cut, damaged = verify(copy)
    assert "Lost: 1 of its 2 blocks." in cut and damaged == f"{tar}: block 0 at byte {offset[0]:,} fails its crc32c."


def test_a_file_that_grew_has_lost_nothing(copy):
    with open(copy / "fmri-000000.tar", "ab") as handle:
        handle.write(b"more")
    (problem,) = verify(copy)
    assert "bytes, expected" in problem and "Lost" not in problem and "repair" in problem


@pytest.mark.parametrize(
    ("rule", "by"), [("subject", "subject"), ("run", "run"), ("stimulus", "stimulus"), ("tail", "run")]
)
def test_a_fraction_counts_what_the_set_is_split_by(cadiff, tmp_path, rule, by):
    def fill(pack):
        pack.split_by = rule
        for number in range(16):
            names = [f"{number}-{row}" for row in range(4)]
            pack.add(make_records(f"P{number // 4}", f"r{number}", signals(4, number), "train", names))

    pack(tmp_path / "set", fill)
    command = ("shards", "split", tmp_path / "set")
    assert cadiff(*command, tmp_path / "default", "--fraction", 0.5)[0] == 0
    assert cadiff(*command, tmp_path / "said", "--fraction", 0.5, "--by", by)[0] == 0
    assert Dataset(tmp_path / "default").hash == Dataset(tmp_path / "said").hash
    assert Dataset(tmp_path / "default").manifest["options"]["split"]["by"] == by


def test_the_readme_says_how_to_install_without_the_demo_and_make_knows_that_target():
    target = re.search(r"^make (\S+) +# the set-up alone", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    makefile = (ROOT / "Makefile").read_text()
    named = dict(re.findall(r"^(\w+) \??= (.*)$", makefile, re.MULTILINE))
    assert target == named["READY"].replace("$(VENV)", named["VENV"])
    assert "--editable" in makefile.partition("$(READY): setup.py")[2].partition("touch $(READY)")[0]
