"""``cadiff pack`` from the command line: what it says of unusable runs, of a set that is there, of other options."""

import json

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.shards.protocol import OtherOptions, pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.verify import verify


@pytest.fixture(scope="module")
def one_run(write_dtseries, tmp_path_factory):
    """A sound run of 12 frames in a folder of its own."""
    path = tmp_path_factory.mktemp("runs") / "s1_rest_Atlas.dtseries.nii"
    return write_dtseries(path, np.random.default_rng(0).normal(size=(12, 59412)))


@pytest.fixture
def pack(cadiff):
    """Pack V1 of runs; returns exit code, stdout, stderr."""
    return lambda *args: cadiff("-q", "pack", "hcp", "--roi", "V1", "--no-scans", *args)


def test_the_only_run_is_named_with_what_is_wrong_with_it(pack, one_run, tmp_path):
    code, out, err = pack("--skip-bad", "--window", 20, one_run, tmp_path / "out")
    why = "12 frames, fewer than one window of 20. Use a smaller --window."
    assert (code, out) == (3, "")
    assert err == f"cadiff: {one_run}: nothing was packed, as the only run is unusable: {why}\n"
    code, _, err = pack("--window", 20, one_run, tmp_path / "out")
    assert code == 3 and err.endswith(
        "Use a smaller --window, or leave the run out with --runs or --skip-bad if there are others.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_where_all_runs_are_unusable_each_is_told(pack, one_run, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("s2", "s3", "s4", "s5"):
        (raw / f"{name}_rest_Atlas.dtseries.nii").write_bytes(one_run.read_bytes()[:-4])
    code, _, err = pack("--skip-bad", raw, tmp_path / "out")
    assert code == 3 and f"{raw}: nothing was packed, as all 4 runs are unusable (the first 3 of 4): s2_rest" in err
    assert err.count("cut short") == 3 and "s4_rest_Atlas.dtseries.nii: cut short" in err and "s5" not in err
    (raw / one_run.name).write_bytes(one_run.read_bytes())
    code, out, _ = pack("--skip-bad", raw, tmp_path / "out")
    assert code == 0 and out.count("dropped s") == 4


def test_a_sound_file_that_does_not_fit_exits_with_3_and_is_not_called_damaged(pack, write_dtseries, one_run, tmp_path):
    from nibabel.cifti2 import BrainModelAxis

    other_mesh = BrainModelAxis.from_surface(np.arange(50), 59292, "CortexLeft")
    path = write_dtseries(tmp_path / "s_r_Atlas_1.6mm.dtseries.nii", np.zeros((12, 50)), axis=other_mesh)
    for words, told in (((path,), "59k mesh"), (("--window", 20, one_run), "fewer than one window")):
        code, _, err = pack(*words, tmp_path / "out")
        assert code == 3 and told in err and "damaged" not in err and "ownload" not in err


def test_packing_again_says_what_was_looked_at(pack, one_run, tmp_path):
    out = tmp_path / "out"
    assert "looked" not in pack(one_run, out)[1] and "verify" not in pack(one_run, tmp_path / "two")[1]
    told = pack(one_run, out)[1].splitlines()
    assert told[0].startswith(f"{out}: already packed: ") and len(told) == 2
    assert told[1].startswith("Options and hashes of the inputs are as they were. Of the packed files only the sizes")
    assert f"`cadiff shards verify {out}` reads them again." in told[1]
    with open(out / "fmri-000000.tar", "rb+") as handle:  # which is true: damage is not seen by packing again
        handle.seek(1500)
        handle.write(b"x")
    assert pack(one_run, out)[0] == 0 and verify(out) != []
    assert json.loads(pack(one_run, out, "--json")[1])["already"]


def test_other_options_have_the_names_and_values_of_the_command_line(pack, cadiff, one_run, tmp_path):
    assert pack(one_run, tmp_path / "out")[0] == 0
    code, _, err = pack(one_run, tmp_path / "out", "--val", 0.1)
    assert code == 2 and "already packed with other options (--val): --val was 0.05, now 0.1. Remove it" in err
    _, _, err = pack(one_run, tmp_path / "out", "--scans", "--skip-bad", "--runs", "re*,x", "--workers", 2)
    changed = "--runs was not given, now re*,x; --scans was off, now on; --skip-bad was off, now on."
    assert f"(--runs, --scans, --skip-bad): {changed}" in err
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(8, 5)))
    (tmp_path / "t.csv").write_text("file,subject\na.npy,s\n")
    assert cadiff("-q", "pack", "table", tmp_path / "t.csv", tmp_path / "set")[0] == 0
    _, _, err = cadiff("-q", "pack", "table", tmp_path / "t.csv", tmp_path / "set", "--lag", 4, "--drop-unlabelled")
    assert "(--lag, --drop-unlabelled): --lag was 0.0, now 4.0; --drop-unlabelled was keep, now drop." in err


def test_options_from_python_keep_their_names(tmp_path):
    def fill(pack):
        pack.split_by = "tail"
        pack.add(make_records("s", "r", np.ones((2, 3), np.float32), "train"))

    def again(kind, **options):
        pack_folder(tmp_path / "out", kind, options, {}, fill, silent)

    again("table", val_fraction=0.05, of={"a": 1}, names=["a" * 70])
    again("table", val_fraction=0.05, of={"a": 1}, names=["a" * 70])
    with pytest.raises(
        OtherOptions, match=r"options \(names, val_fraction\): names was a{57}\.\.\., now none; val"
    ) as told:
        again("table", val_fraction=0.1, of={"a": 1}, names=[])
    assert told.value.changed["val_fraction"] == (0.05, 0.1) and isinstance(told.value, ConfigError)
    with pytest.raises(OtherOptions, match=r"options \(of\)\. Remove"):  # too much to be shown
        again("table", val_fraction=0.05, of={"a": 2}, names=["a" * 70])
    with pytest.raises(OtherOptions, match=r"options \(kind\): kind was table, now hcp\."):
        again("hcp", val_fraction=0.05)


def test_an_option_that_an_older_set_does_not_know_is_named(tmp_path):
    def fill(pack):
        pack.split_by = "tail"
        pack.add(make_records("s", "r", np.ones((2, 3), np.float32), "train"))

    pack_folder(tmp_path / "out", "table", {}, {}, fill, silent)
    with pytest.raises(OtherOptions, match=r"options \(later\)"):
        pack_folder(tmp_path / "out", "table", {"later": None}, {}, fill, silent)
