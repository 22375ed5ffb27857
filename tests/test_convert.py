"""Foreign checkpoints are read without running anything in them."""

import os
import pickle
import sys
import types

import pytest
import torch

from cadiff.config import FmriModel
from cadiff.convert import convert_fmri, read_checkpoint, revert_fmri
from cadiff.errors import DataError
from cadiff.exports import load_part, read_card, save_export
from cadiff.models.fmri_mae import FmriMae


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


SMALL = {"patch": 4, "width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 4}


def _export(folder, **more):
    model = FmriModel(**SMALL, **more)
    network = FmriMae(model, 24, frames=model.patch_frames)
    save_export(folder, {"fmri": network.state_dict()}, {"phase": "phase1", "job": {"model": model.model_dump()}})
    return network.state_dict()


def test_an_export_goes_back_to_the_papers_layout_and_returns(tmp_path):
    state = _export(tmp_path / "ours", mlp_ratio=2.0)
    revert_fmri(tmp_path / "ours", tmp_path / "theirs.pth")
    content = torch.load(tmp_path / "theirs.pth", weights_only=False)
    assert content["model"].keys() == state.keys()
    config = content["config"]
    assert (config.num_voxels, config.patch_size, config.num_heads, config.decoder_num_heads) == (24, 4, 2, 4)
    assert (config.embed_dim, config.depth, config.decoder_embed_dim, config.decoder_depth) == (16, 2, 8, 1)
    assert config.mlp_ratio == 2.0
    convert_fmri(tmp_path / "theirs.pth", tmp_path / "again")
    loaded = load_part(tmp_path / "again", "fmri")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], value) for key, value in state.items())


def test_the_command_says_what_it_wrote(tmp_path, cadiff):
    _export(tmp_path / "ours")
    code, out, _ = cadiff("revert", tmp_path / "ours", tmp_path / "theirs.pth")
    assert code == 0 and "num_voxels 24" in out
    assert torch.load(tmp_path / "theirs.pth", weights_only=False)["config"].num_voxels == 24


def test_what_the_papers_code_does_not_have_is_not_written(tmp_path):
    _export(tmp_path / "clips", patch_frames=2)
    with pytest.raises(DataError, match="patches span several frames"):
        revert_fmri(tmp_path / "clips", tmp_path / "theirs.pth")
    assert not (tmp_path / "theirs.pth").exists()
