"""An export is complete, checked on reading, and never unpickled."""

import pytest
import torch

from cadiff.errors import DataError
from cadiff.exports import export_hash, find_export, load_into, load_part, read_card, save_export


@pytest.fixture
def exported(tmp_path):
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}
    save_export(tmp_path / "run" / "export", {"net": state}, {"phase": "phase1"})
    return tmp_path / "run"


def test_round_trip_through_the_run_folder(exported):
    assert read_card(exported)["phase"] == "phase1"
    assert find_export(exported) == exported / "export"
    assert torch.equal(load_part(exported, "net")["weight"], torch.arange(6.0).view(2, 3))


def test_some_tensors_of_a_part_can_be_read_alone_and_absent_ones_are_named(exported):
    assert load_part(exported, "net", ["bias"]).keys() == {"bias"}
    assert load_part(exported, "net", []) == {}
    with pytest.raises(DataError, match="no tensor other"):
        load_part(exported, "net", ["bias", "other"])


def test_missing_part_and_missing_export_are_named(exported, tmp_path):
    with pytest.raises(DataError, match="holds net, not 'fmri'"):
        load_part(exported, "fmri")
    with pytest.raises(DataError, match="no finished export"):
        load_part(tmp_path / "elsewhere", "net")


def test_a_cut_file_and_a_changed_byte_are_found(exported):
    path = exported / "export" / "net.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(DataError, match="cut short"):
        load_part(exported, "net")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="hash differs"):
        load_part(exported, "net")


def test_a_card_of_another_format_is_refused(exported):
    (exported / "export" / "card.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not a cadiff-export/1 card"):
        read_card(exported)


def test_same_weights_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_export(tmp_path / name, {"net": {"w": torch.ones(3), "a": torch.zeros(1)}}, {"phase": "x"})
    for file in ("card.json", "net.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_export_is_known_by_what_it_is_not_by_where_it_was_made():
    card = {"phase": "x", "job": {"name": "a", "data": {"shards": ["/a"], "size": 3}, "init": {"fmri": "/a/p1"}}}
    moved = {"phase": "x", "job": {"name": "b", "data": {"shards": ["/b"], "size": 3}, "init": {"fmri": "/b/p1"}}}
    other = {"phase": "x", "job": {"name": "a", "data": {"shards": ["/a"], "size": 4}}}
    assert export_hash(card) == export_hash(moved) != export_hash(other)
    assert len({export_hash(odd) for odd in ({}, {"job": 3}, {"job": {"data": []}})}) == 3  # damaged ones too


@pytest.mark.parametrize("parts", ["{}", '{"net": 3}', "[]"])
def test_a_card_whose_parts_are_no_table_is_refused(exported, parts):
    text = '{"format": "cadiff-export/1"}' if parts == "{}" else f'{{"format": "cadiff-export/1", "parts": {parts}}}'
    (exported / "export" / "card.json").write_text(text)
    with pytest.raises(DataError, match="are not tables"):
        load_part(exported, "net")


def test_load_into_reports_what_fits():
    net = torch.nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(5), "extra": torch.ones(1)}
    report = load_into(net, state, what="x")
    assert report == {"matched": ["weight"], "missing": [], "unused": ["extra"], "resized": ["bias"]}
    assert torch.equal(net.weight, torch.ones(2, 3))
    with pytest.raises(DataError, match="none of its 1 tensors fits"):
        load_into(net, {"other": torch.ones(1)}, what="x")
