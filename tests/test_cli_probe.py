"""`cadiff probe` from the command line: a table for people, JSON, a page with the plot, and its warnings."""

import json

import pytest
import torch
from report_world import Page

from cadiff.config import FmriModel
from cadiff.exports import save_export
from cadiff.models.fmri_mae import FmriMae
from cadiff.shards.dataset import Dataset
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent

MODEL = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A set of four runs, and an encoder trained on the first two."""
    home = tmp_path_factory.mktemp("cli-probe")
    torch.manual_seed(0)
    pattern = torch.randn(2, 16)

    def fill(pack):
        pack.split_by = "run"
        for run, split in enumerate(("train", "train", "val", "test")):
            signals = pattern[torch.arange(12) % 2] + 0.3 * torch.randn(12, 16)
            pack.add(make_records("A", f"run{run}", signals.numpy(), split, None, ["face", "house"] * 6))

    pack_folder(home / "set", "table", {}, {}, fill, silent)
    dataset = Dataset(home / "set")
    job = {"model": MODEL, "data": {"shards": [str(home / "set")]}}
    card = {"phase": "phase1", "job": job, "space": {"voxels": 16}, "steps": 9, "lineage": {"data": [dataset.hash]}}
    network = FmriMae(FmriModel.model_validate(MODEL), 16)
    save_export(home / "run" / "export", {"fmri": network.state_dict()}, card)
    return home


def test_the_table_names_lineage_methods_and_the_warning(world, cadiff):
    code, out, _ = cadiff("probe", world / "run", "--shards", world / "set")
    assert code == 0
    assert f"encoder trained on {world / 'set'}, 9 steps" in out
    assert "48 samples of 2 classes, 4 folds, each holds out one run; chance 0.500" in out
    assert "of the 2 folds that the encoder had not seen:" in out
    assert out.count("frozen mean") == 2 and out.count("centroid") == 2
    assert "warning: the encoder was trained on runs of 2 of the 4 held-out runs" in out


def test_json_page_and_record_hold_the_same_numbers(world, cadiff, tmp_path):
    page, record = tmp_path / "probe.html", tmp_path / "probe.json"
    code, out, _ = cadiff(
        "probe", world / "run", "--shards", world / "set", "--json", "--report", page, "--out", record
    )
    assert code == 0
    told = json.loads(out)
    assert told == json.loads(record.read_text())
    assert told["methods"]["voxels"]["accuracy"] > 0.9
    text = page.read_text()
    Page(text)
    assert text.count("<svg") == 2 and "Warning: the encoder was trained on" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_mistakes_end_in_one_line(world, cadiff, tmp_path):
    code, _, err = cadiff("probe", world / "run", "--shards", world / "set", "--hold-out", "session")
    assert code == 2 and "one run or one subject" in err
    code, _, err = cadiff("probe", world / "run", "--shards", world / "set", "--hold-out", "subject")
    assert code == 2 and "labelled samples of 1 subjects" in err
    code, _, err = cadiff("probe", tmp_path, "--shards", world / "set")
    assert code == 3 and "no finished export" in err
