"""What holds for every packer's inputs: tables that change while packing are refused, a subject named twice is one."""

import shutil

import bold5000_world
import numpy as np
import pytest
import table_world
from nsd_world import ROI
from PIL import Image

from cadiff.errors import DataError
from cadiff.shards import protocol
from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.dataset import Dataset
from cadiff.shards.god import pack_god
from cadiff.shards.god_stimuli import TABLES
from cadiff.shards.hcp import pack_hcp
from cadiff.shards.images import pack_images
from cadiff.shards.nsd import pack_nsd
from cadiff.shards.nsd_files import DESIGN, TABLE
from cadiff.shards.table import pack_table
from cadiff.shards.things import pack_things


def god(request, home):
    root = shutil.copytree(request.getfixturevalue("god_files"), home / "god")
    return lambda out: pack_god(root, out), [root / name for name in TABLES]


def bold5000(request, home):
    bold5000_world.build(home)
    lists = [next(home.rglob("repeated_stimuli_113_list.txt")), *home.rglob("CSI4_sess02_run01.txt")]
    return lambda out: pack_bold5000(home, out), lists


def nsd(request, home):
    root = shutil.copytree(request.getfixturevalue("nsd_files"), home / "nsd")
    tables = [path for path in (root / DESIGN, root / TABLE) if path.is_file()]
    return lambda out: pack_nsd(root, out), [*tables, root / ROI.format("subj02", "nsdgeneral")]


def things(request, home):
    root = request.getfixturevalue("things_copy")
    return lambda out: pack_things(root, out), [root / "sub-01_StimulusMetadata.csv"]


def images(request, home):
    rng = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(home / f"{name}.png")
    (home / "labels.csv").write_text("file,label\na.png,x\nb.png,y\n")
    return lambda out: pack_images(home, out), [home / "labels.csv"]


def table(request, home):
    rows = {"file": "run1.npy", "subject": "s", "run": "1", "events": "events.tsv", "tr_s": "2"}
    path = table_world.build(home)(rows)
    return lambda out: pack_table(path, out), [path, home / "events.tsv"]


def hcp(request, home):
    release, kin, split = request.getfixturevalue("release"), home / "kin.csv", home / "split.csv"
    kin.write_text("Subject,Family_ID\n100001,5\n100002,6\n")
    split.write_text("subject,split\n100001,train\n100002,val\n")
    how = {"roi": "V1", "runs": "tfMRI*", "subjects": ["100001", "100002"], "scans": False}
    return lambda out: pack_hcp(release, out, families=kin, split=split, **how), [kin, split]


@pytest.mark.parametrize("packer", [god, bold5000, nsd, things, images, table, hcp])
def test_a_table_that_changes_after_it_was_read_is_refused(request, tmp_path, tmp_path_factory, monkeypatch, packer):
    home, join = tmp_path_factory.mktemp("inputs"), protocol.join_parts
    pack, tables = packer(request, home)
    for number, path in enumerate(tables):
        before = path.read_bytes()

        def edited(*arguments, path=path, before=before):
            path.write_bytes(before + b"\n")  # the parts have not begun
            return join(*arguments)

        monkeypatch.setattr(protocol, "join_parts", edited)
        out = tmp_path / f"out{number}"
        with pytest.raises(DataError, match=rf"{path.name}: changed while it was being packed\. Start again"):
            pack(out)
        assert not out.exists()
        monkeypatch.setattr(protocol, "join_parts", join)
        path.write_bytes(before)
        assert not pack(out)["already"] and pack(out)["already"]


@pytest.mark.parametrize(
    ("packer", "files", "names"),
    [
        (pack_god, "god_files", ["sbj_2", "sbj_1"]),
        (pack_nsd, "nsd_files", ["subj02"]),
        (pack_bold5000, None, ["CSI4"]),
    ],
)
def test_a_subject_named_twice_is_packed_once(request, tmp_path, tmp_path_factory, packer, files, names):
    root = tmp_path_factory.mktemp("inputs")
    if files:
        root = request.getfixturevalue(files)
    else:
        bold5000_world.build(root)
    once = packer(root, tmp_path / "once", subjects=names)
    twice = packer(root, tmp_path / "twice", subjects=[*names, *names])
    assert twice["hash"] == once["hash"] and Dataset(tmp_path / "twice").subjects == names
