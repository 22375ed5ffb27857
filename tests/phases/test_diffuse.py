"""Phase 3: exactly the paper's parameters are trained, everything else is the prior's."""

import torch
from diffusion_world import FMRI, SPACE, tiny_batch, tiny_job

from cadiff.config import FmriModel
from cadiff.exports import load_part, save_export
from cadiff.models.fmri_mae import FmriMae
from cadiff.phases import build_phase


def build(chain, fmri: str = "", **condition):
    torch.manual_seed(0)
    job = tiny_job(
        "phase3",
        model=FMRI,
        condition={"tokens": 6, **condition},
        init={"prior": str(chain / "prior"), "fmri": fmri},
    )
    return build_phase(job, SPACE)


def test_the_trained_set_is_exact_and_each_parameter_is_in_it_once(chain):
    phase = build(chain)
    trained = [name for name, parameter in phase.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(set(trained))
    unet = [name for name in trained if name.startswith("diffusion.")]
    # Three transformers (down, two up) and the middle one, each with q, k, v, out weight, out bias and a norm's two.
    assert len(unet) == 4 * 7
    assert all(".transformer_blocks.0." in name and (".attn2." in name or ".norm2." in name) for name in unet)
    conditioner = {f"conditioner.{name}" for name, _ in phase.conditioner.named_parameters()}
    assert set(trained) - set(unet) == conditioner - {"conditioner.fmri.cls_token"}


def test_every_trained_parameter_gets_a_gradient_and_no_other_does(chain):
    phase = build(chain, drop=0.5)
    phase(tiny_batch(8))["noise"].backward()
    for name, parameter in phase.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name


def test_unet_and_first_stage_are_the_priors(chain):
    phase = build(chain)
    for part, module in (("unet", phase.diffusion.unet), ("first_stage", phase.codec.vq)):
        stored = load_part(chain / "prior", part)
        assert all(torch.equal(value, stored[key]) for key, value in module.state_dict().items())


def test_the_fmri_encoder_comes_from_an_earlier_phase(chain, tmp_path):
    mae = FmriMae(FmriModel.model_validate({**FMRI, "decoder_width": 8, "decoder_heads": 2}), SPACE.voxels)
    save_export(tmp_path / "phase1", {"fmri": mae.state_dict()}, {"phase": "phase1"})
    phase = build(chain, fmri=str(tmp_path / "phase1"))
    assert torch.equal(phase.conditioner.fmri.blocks[0].attn.qkv.weight, mae.blocks[0].attn.qkv.weight)
    report = phase.init_report[f"{tmp_path / 'phase1'}: fmri"]
    assert report["missing"] == []
    assert any(name.startswith("decoder_") for name in report["unused"])


def test_the_signal_matters(chain):
    phase, batch = build(chain, drop=0.0), tiny_batch()
    other = {**batch, "signal": batch["signal"].flip(0)}
    assert phase(batch)["noise"].item() != phase(other)["noise"].item()


def test_noise_is_keyed_apart_from_the_priors(chain):
    phase, batch = build(chain), tiny_batch()
    assert phase(batch)["noise"].item() == phase(batch)["noise"].item()
    assert phase(batch)["noise"].item() != phase({**batch, "sample_id": batch["sample_id"] + 1})["noise"].item()


def test_preview_and_parts_are_what_sampling_needs(chain):
    phase = build(chain)
    assert set(phase.parts()) == {"unet", "first_stage", "conditioner"}
    assert phase.preview(tiny_batch())["denoised"].shape == (4, 3, 16, 16)


def test_recomputed_activations_change_no_gradient(chain):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        job = tiny_job(
            "phase3",
            model=FMRI,
            condition={"tokens": 6},
            init={"prior": str(chain / "prior")},
            engine={"checkpoint_activations": recompute},
        )
        phase = build_phase(job, SPACE).train()
        phase(tiny_batch())["noise"].backward()
        gradients.append(phase.conditioner.fmri.patch_embed.proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)
