"""The fMRI conditioner computes what the paper's code computed: values and gradients from stored cases."""

import pytest
import torch
from phases.golden_reader import cases
from shared_files import read_golden

from cadiff.config import ConditionModel, FmriModel
from cadiff.models.condition import FmriConditioner

pytestmark = pytest.mark.parity

RENAMED = {"mae.": "fmri.", "channel_mapper.": "mix.", "dim_mapper.": "project."}


def rename(key: str) -> str:
    theirs = next(prefix for prefix in RENAMED if key.startswith(prefix))
    return RENAMED[theirs] + key.removeprefix(theirs)


def build(meta: dict, tensors: dict) -> FmriConditioner:
    sizes = meta["config"]
    model = FmriModel(
        patch=sizes["patch_size"],
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
    )
    condition = ConditionModel(pool=meta["global_pool"], time=False, drop=0.0)
    conditioner = FmriConditioner(model, condition, meta["num_voxels"], meta["cond_dim"], 8)
    state = {rename(key[3:]): value for key, value in tensors.items() if key.startswith("sd.")}
    del state["fmri.mask_token"]
    fit = conditioner.load_state_dict(state, strict=False)
    assert fit.unexpected_keys == []
    assert fit.missing_keys == ["null_context"]
    return conditioner


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return (ours - theirs).abs().max().item() <= 1e-5 * theirs.abs().max().item()


@pytest.fixture(scope="module", params=cases("phase3_cond"))
def case(request):
    return read_golden(request.param, "pt")


def test_context_is_the_papers(case):
    meta, tensors = case
    context = build(meta, tensors)(tensors["in.fmri"][:, 0]).context_BND
    assert context.shape == tensors["out.cond"].shape
    assert close(context, tensors["out.cond"])


def test_gradients_are_the_papers(case):
    meta, tensors = case
    conditioner = build(meta, tensors)
    (conditioner(tensors["in.fmri"][:, 0]).context_BND * tensors["in.grad_weight"]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in conditioner.named_parameters()}
    stored = {rename(key[5:]): value for key, value in tensors.items() if key.startswith("grad.")}
    compared = 0
    for key, theirs in stored.items():
        ours = gradients[key].view_as(theirs)
        if key.endswith("attn.qkv.bias"):  # the middle third, keys' biases, is rounding noise in both
            third = len(theirs) // 3
            ours, theirs = (torch.cat([values[:third], values[2 * third :]]) for values in (ours, theirs))
        assert close(ours, theirs), key
        compared += 1
    assert compared >= 10 * meta["config"]["depth"]
