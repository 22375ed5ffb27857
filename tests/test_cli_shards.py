"""``cadiff shards`` from the command line: what it says, its JSON, and its exit codes."""

import json
import shutil

import numpy as np
import pytest

from cadiff.shards.dataset import Dataset


@pytest.fixture
def shards(cadiff):
    """Run one ``cadiff shards`` command in this process; returns exit code, stdout, stderr."""
    return lambda *args: cadiff("shards", *args)


@pytest.fixture
def damaged(tiny_set, tmp_path):
    """A copy of the tiny set with one byte of its first row changed."""
    copy = shutil.copytree(tiny_set, tmp_path / "set")
    with open(copy / "fmri-000000.tar", "rb+") as handle:
        handle.seek(int(Dataset(copy).blocks["offset"][0]))
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 255]))
    return copy


@pytest.mark.parametrize("command", ["info", "verify", "ls", "repair", "merge", "split"])
def test_each_command_explains_itself_and_refuses_what_is_not_a_set(shards, tmp_path, command):
    code, out, _ = shards(command, "--help")
    assert code == 0 and "--json" in out
    words = {"repair": ["--from", tmp_path], "merge": [tmp_path / "b", tmp_path / "c"], "split": ["out", "--into", "2"]}
    code, _, err = shards(command, tmp_path / "none", *words.get(command, []))
    assert code in (2, 3) and err.startswith("cadiff: ") and err.count("\n") == 1 and "none" in err


def test_info_says_what_a_set_holds(shards, tiny_set, tmp_path, monkeypatch):
    code, out, _ = shards("info", tiny_set, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["version"] == Dataset(tiny_set).hash
    assert facts["samples"] == {"train": 64, "val": 16, "test": 16} and facts["classes"] == ["red", "green", "blue"]
    assert [(subject["name"], subject["voxels"]) for subject in facts["subjects"]] == [("A", 30), ("B", 27)]
    assert (facts["kind"], facts["dtype"], facts["split_by"]) == ("table", "float16", "stimulus")
    assert (facts["runs"], facts["sessions"], facts["stimuli"], facts["pictures"], facts["shards"]) == (1, 0, 48, 48, 2)
    assert facts["bytes"] == sum(path.stat().st_size for path in tiny_set.iterdir() if path.name != "manifest.json")
    assert facts["dropped"] == {"count": 0, "first": []} and facts["scans"] is None and facts["notes"] == {}
    assert facts["options"] == {"dtype": "float16", "tiny": 1}
    text = shards("info", tiny_set)[1]
    for words in (
        "64 train, 16 val, 16 test",
        "2: A (30 voxels), B (27 voxels)",
        "3: red, green, blue",
        "float16, 2 blocks, 48 pictures, 2 shards",
        "options   dtype=float16, tiny=1\n",
    ):
        assert words in text
    monkeypatch.setenv("CADIFF_CACHE", str(tmp_path / "cache"))
    assert json.loads(shards("info", tiny_set.as_uri(), "--json")[1]) == facts


def test_ls_finds_the_bytes_of_each_sample(shards, tiny_set):
    code, out, _ = shards("ls", tiny_set, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["sample"] for row in rows] == list(range(96))
    assert rows[0]["subject"] == "A" and rows[0]["label"] == "red" and rows[0]["bytes"] == 60
    some = [json.loads(line) for line in shards("ls", tiny_set, "--json", "--stimulus", "s40")[1].splitlines()]
    assert [(row["subject"], row["split"]) for row in some] == [("A", "test"), ("B", "test")]
    lines = shards("ls", tiny_set, "--split", "val", "--subject", "B", "--limit", 3)[1].splitlines()
    assert lines[0].split("\t")[:4] == ["sample", "subject", "session", "run"] and len(lines) == 4
    assert lines[1].split("\t")[:4] == ["80", "B", "-", "run1"]
    for wrong in (["--split", "dev"], ["--subject", "Z"], ["--stimulus", "s99"]):
        assert shards("ls", tiny_set, *wrong)[0] == 2


def test_verify_says_how_much_it_checked_and_exits_3_on_damage(shards, tiny_set, damaged):
    assert "2 blocks of 96 samples, 48 pictures" in shards("verify", tiny_set)[1]
    assert "shards were not" in shards("verify", damaged, "--quick")[1]
    code, out, _ = shards("verify", damaged, "--json")
    told = json.loads(out)
    assert code == 3 and len(told["problems"]) == 2 and told["blocks"] == 2 and not told["quick"]
    code, out, err = shards("verify", damaged)
    assert code == 3 and out == "" and "block 0 at byte" in err
    tar = np.fromfile(damaged / "images-000000.tar", np.uint8)
    tar[np.load(damaged / "index.npz")["image_offset"] + 50] ^= 1
    tar.tofile(damaged / "images-000000.tar")
    _, _, err = shards("verify", damaged)
    assert err.count("\n") == 21 and "... and 31 more: see --json" in err
    (damaged / "images-000000.tar").write_bytes(b"")
    code, out, _ = shards("verify", damaged, "--quick", "--json")
    assert code == 3 and "images-000000.tar: 0 bytes, expected" in json.loads(out)["problems"][0]


def test_repair_from_a_copy_and_without_one(shards, tiny_set, damaged, tmp_path):
    code, out, _ = shards("repair", damaged, "--out", tmp_path / "saved")
    assert code == 0 and "dropped block 0 of fmri-000000.tar, subject A, run run1: damaged: samples 0" in out
    assert "63 train, 16 val, 16 test samples" in out
    told = json.loads(shards("repair", damaged, "--from", tiny_set, "--json")[1])
    assert told["replaced"] == ["fmri-000000.tar"] and told["problems"] == []
    assert "files replaced: 0" in shards("repair", damaged, "--from", tiny_set)[1]
    assert shards("repair", damaged)[0] == 2
    assert shards("repair", damaged, "--out", tmp_path / "more")[0] == 2  # nothing is damaged now


def test_repair_exits_3_if_damage_remains(shards, damaged, tmp_path):
    copy = shutil.copytree(damaged, tmp_path / "copy")
    code, out, _ = shards("repair", damaged, "--from", copy, "--json")
    assert code == 3 and json.loads(out)["replaced"] == [] and len(json.loads(out)["problems"]) == 3
    code, _, err = shards("repair", damaged, "--from", copy)
    assert code == 3 and "not replaced" in err


def test_split_and_merge(shards, tiny_set, tmp_path):
    code, out, _ = shards("split", tiny_set, tmp_path / "cut", "--into", 2, "--json")
    assert code == 0 and [told["subjects"] for told in json.loads(out)["sets"]] == [["A"], ["B"]]
    code, out, _ = shards("merge", tmp_path / "cut" / "set-1", tmp_path / "cut" / "set-0", tmp_path / "all")
    assert code == 0 and "64 train, 16 val, 16 test samples, 2 subjects" in out
    assert Dataset(tmp_path / "all").subjects == ["B", "A"]
    assert "already there" in shards("split", tiny_set, tmp_path / "cut", "--into", 2)[1]
    words = ["--fraction", 0.25, "--by", "stimulus", "--seed", 3, "--json"]
    told = json.loads(shards("split", tiny_set, tmp_path / "few", *words)[1])["sets"][0]
    assert told["samples"] == {"train": 16, "val": 4, "test": 4}
    assert "16 train, 0 val, 0 test" in shards("split", tmp_path / "few", tmp_path / "files", "--split-files")[1]
    assert "32 train" in shards("split", tiny_set, tmp_path / "b", "--subjects", "B")[1]
    code, out, _ = shards("merge", tmp_path / "files" / "train", tmp_path / "files" / "test", tmp_path / "rest")
    assert code == 0 and "in more than one set, taken as one person each: A, B" in out
    for wrong in ([], ["--into", 2, "--split-files"], ["--into", 3], ["--fraction", 2], ["--subjects", "Z"]):
        assert shards("split", tiny_set, tmp_path / "no", *wrong)[0] == 2
    assert shards("merge", tiny_set, tmp_path / "b", tmp_path / "no")[0] == 2  # B's samples are in both
    assert not (tmp_path / "no").exists()


def test_a_folder_that_is_not_there_is_a_mistake_and_verify_wants_a_local_one(shards, tmp_path):
    for command in ("info", "verify", "ls"):
        code, _, err = shards(command, tmp_path / "nothing")
        assert code == 2 and "nothing: no such folder" in err
    code, _, err = shards("verify", "file:///somewhere")
    assert code == 2 and "takes a local folder" in err


def test_a_split_that_fails_leaves_no_empty_folder(shards, damaged, tmp_path):
    code, _, err = shards("split", damaged, tmp_path / "parts", "--split-files")
    assert code == 3 and "damaged" in err and not (tmp_path / "parts").exists()


@pytest.mark.parametrize("place", [0, 5, 400, -400])
def test_a_manifest_with_one_wrong_bit_can_be_mended_and_the_error_says_how(shards, tiny_set, tmp_path, place):
    copy = shutil.copytree(tiny_set, tmp_path / "set")
    manifest = copy / "manifest.json"
    data = bytearray(manifest.read_bytes())
    data[place] ^= 1
    manifest.write_bytes(data)
    remedy = "Mend it with `cadiff shards repair FOLDER --from COPY`, copy the folder again, or pack again.\n"
    for command in ("info", "verify"):
        code, _, err = shards(command, copy)
        assert code == 3 and err.startswith(f"cadiff: {manifest}: ") and err.endswith(remedy)
    assert shards("repair", copy, "--from", tiny_set)[1].startswith("replaced manifest.json\n")
    assert manifest.read_bytes() == (tiny_set / "manifest.json").read_bytes()


def test_a_manifest_of_another_format_names_the_remedy_too(shards, tiny_set, tmp_path):
    manifest = shutil.copytree(tiny_set, tmp_path / "set") / "manifest.json"
    manifest.write_text(manifest.read_text().replace("cadiff-shards/2", "cadiff-shards/3"))
    code, _, err = shards("info", manifest.parent)
    assert code == 3 and "or it is damaged. Mend it with `cadiff shards repair FOLDER --from COPY`" in err


def test_repair_from_another_set_says_so_without_an_errno(shards, damaged, tmp_path):
    (tmp_path / "empty").mkdir()
    for copy in (damaged.parent / "empty", shutil.copytree(damaged, tmp_path / "copy")):
        code, _, err = shards("repair", damaged, "--from", copy)
        assert code == 3 and "Errno" not in err and f"the file in {copy}" in err
