"""Foreign checkpoints are read without running anything in them."""

import os
import pickle
import sys
import types

import pytest
import torch

from cadiff.convert import convert_fmri, read_checkpoint
from cadiff.errors import DataError
from cadiff.exports import load_part, read_card


class Trap:
    """Creates a file when an ordinary unpickler meets it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _state(depth=2, width=8, patch=4, length=5):
    state = {
        "patch_embed.proj.weight": torch.randn(width, 1, patch),
        "pos_embed": torch.zeros(1, length + 1, width),
        "decoder_blocks.0.norm1.weight": torch.ones(4),
    }
    for block in range(depth):
        state[f"blocks.{block}.attn.qkv.weight"] = torch.randn(3 * width, width)
    return state


def test_the_papers_layout_becomes_an_export(tmp_path, monkeypatch):
    module = types.ModuleType("their_config")
    module.Config = type("Config", (), {"__module__": "their_config"})
    monkeypatch.setitem(sys.modules, "their_config", module)
    config = module.Config()
    config.seed = 2022
    state = _state()
    torch.save({"model": state, "config": config, "epoch": 3}, tmp_path / "p1.pth")
    found = convert_fmri(tmp_path / "p1.pth", tmp_path / "out")
    assert found == {
        "phase": "phase1", "patch": 4, "width": 8, "voxels": 20, "depth": 2, "decoder_depth": 1, "tensors": 5,
    }  # fmt: skip
    assert read_card(tmp_path / "out")["job"]["model"]["depth"] == 2
    loaded = load_part(tmp_path / "out", "fmri")
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_views_keep_their_strides_and_offsets(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    torch.save({"model": {"t": base.t()[1:3], "half": base[:2].half(), "p": torch.nn.Parameter(base)}}, tmp_path / "v")
    model = read_checkpoint(tmp_path / "v")["model"]
    assert torch.equal(model["t"], base.t()[1:3])
    assert torch.equal(model["half"], base[:2].half())
    assert torch.equal(model["p"], base)


def test_nothing_in_the_file_is_executed(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "config": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    content = read_checkpoint(tmp_path / "evil.pth")
    assert torch.equal(content["model"]["w"], torch.ones(2))
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.pth", weights_only=True)


def test_damaged_and_foreign_files_are_named(tmp_path):
    torch.save({"model": {"w": torch.ones(1000)}}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut.pth: not a readable torch checkpoint"):
        read_checkpoint(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"model": 3}, tmp_path / "number.pth")
    with pytest.raises(DataError, match="no dictionary 'model'"):
        convert_fmri(tmp_path / "number.pth", tmp_path / "out")
    flat = {"patch_embed.proj.weight": torch.ones(4, 2), "pos_embed": torch.ones(1, 3, 4)}
    torch.save({"model": {**flat, "blocks.0.attn.qkv.weight": torch.ones(12, 4)}}, tmp_path / "flat.pth")
    with pytest.raises(DataError, match="not one-dimensional"):
        convert_fmri(tmp_path / "flat.pth", tmp_path / "out")
    with pytest.raises(DataError, match=r"patch_embed.proj.weight is missing"):
        convert_fmri(tmp_path / "whole.pth", tmp_path / "out")
