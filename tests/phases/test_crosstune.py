"""Phase 2: the joint step, what it trains, and what it takes over from phase 1 and from a pre-trained ViT-MAE."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pairs import FMRI, IMAGE, SPACE, batch, descend, phase1_job, phase2_job, reached, rows, trained, value

from cadiff.config import ImageModel
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part, save_export
from cadiff.losses import normalised_patches, rebuild_loss
from cadiff.models.image_mae import ImageMae, image_patches, normalise_image
from cadiff.phases import Space, build_phase
from cadiff.phases.crosstune import CrossTune
from cadiff.phases.pretrain import Pretrain


def phase(loss=None, image=None, **sections):
    torch.manual_seed(0)
    return CrossTune(phase2_job(loss, image, **sections), SPACE)


def vit_config(**changes):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_size": 4,
        "image_size": 16,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 3,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    return {**sizes, **changes}


@pytest.fixture
def vit_folder(tmp_path):
    """A pre-trained ViT-MAE as Hugging Face saves it, with more decoder layers than we keep."""
    torch.manual_seed(42)
    model = ImageMae(ImageModel(**{**IMAGE, "decoder_depth": 3}), 16)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(vit_config()))
    return tmp_path


@pytest.fixture
def fmri_export(tmp_path):
    """The export of a phase-1 run with a deeper decoder and a shorter signal."""
    torch.manual_seed(43)
    pretrain = Pretrain(phase1_job(model={**FMRI, "decoder_depth": 3}), Space(voxels=20, classes=0))
    return save_export(tmp_path / "export", {"fmri": pretrain.fmri.state_dict()}, {"phase": "phase1"})


def test_the_registry_builds_it():
    assert isinstance(build_phase(phase2_job(), SPACE), CrossTune)


def test_the_joint_step_rebuilds_each_side_with_the_whole_other_side():
    tiny, tensors = phase({"fmri": 0.3, "image": 0.8}), batch()
    signal, pixels = tensors["signal"], normalise_image(tensors["image"])
    fmri_masking, image_masking = tiny.masks(tensors)
    fmri = tiny.fmri(signal, fmri_masking, tiny.image.vit(pixels))
    image = tiny.image(pixels, image_masking, tiny.fmri.encode(signal))
    expected = {
        "fmri": 0.3 * rebuild_loss(fmri, signal.view(6, 6, 4), fmri_masking.hidden_BL),
        "image": 0.8 * rebuild_loss(image, image_patches(pixels, 4), image_masking.hidden_BL),
    }
    assert value(tiny(tensors)) == pytest.approx(value(expected), rel=1e-5)


def test_pixels_may_be_normalised_within_each_patch():
    tiny, tensors = phase({"norm_pix": True, "fmri": 0.0, "image": 1.0}), batch()
    pixels, masking = normalise_image(tensors["image"]), tiny.masks(tensors)[1]
    target = normalised_patches(image_patches(pixels, 4))
    expected = rebuild_loss(tiny.image(pixels, masking, tiny.fmri.encode(tensors["signal"])), target, masking.hidden_BL)
    assert tiny(tensors)["image"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_terms_without_weight_are_not_computed_and_none_is_refused():
    assert phase({"image": 0.0})(batch()).keys() == {"fmri"}
    assert phase({"fmri": 0.0})(batch()).keys() == {"image"}
    with pytest.raises(ConfigError, match="weight 0"):
        phase({"fmri": 0.0, "image": 0.0})


def test_the_image_term_trains_the_fmri_encoder():
    tiny = phase({"fmri": 0.0})
    tiny(batch())["image"].backward()
    encoder = {name for name in trained(tiny.fmri) if not name.startswith(("decoder", "mask_token", "cross_"))}
    assert reached(tiny.fmri) == encoder


def test_everything_is_trained_when_the_image_encoder_is():
    tiny = phase()
    sum(tiny(batch()).values()).backward()
    assert reached(tiny) == trained(tiny) == {name for name, _ in tiny.named_parameters()}


def test_a_frozen_image_encoder_gets_no_gradient_and_all_the_rest_does(vit_folder):
    tiny = phase(image={"train_encoder": False}, init={"image": str(vit_folder)})
    sum(tiny(batch()).values()).backward()
    frozen = {f"image.{name}" for name, _ in ImageMae(ImageModel(**IMAGE), 16).vit.named_parameters(prefix="vit")}
    assert {name for name, _ in tiny.named_parameters()} - trained(tiny) == frozen
    assert reached(tiny) == trained(tiny)


def test_a_fresh_image_encoder_may_not_stay_frozen():
    with pytest.raises(ConfigError, match="train_encoder = true"):
        phase(image={"train_encoder": False})


def test_masks_belong_to_samples_not_to_places_in_a_batch():
    tiny, tensors = phase(), batch()
    order = torch.tensor([4, 0, 5])
    for some, every in zip(tiny.masks(rows(tensors, order)), tiny.masks(tensors), strict=True):
        assert torch.equal(some.hidden_BL, every.hidden_BL[order])
    later = tiny.masks(batch(epoch=1))
    assert not torch.equal(later[0].hidden_BL, tiny.masks(tensors)[0].hidden_BL)
    fmri, image = tiny.masks(tensors)
    assert fmri.hidden_BL.sum(1).tolist() == [5.0] * 6 and image.hidden_BL.sum(1).tolist() == [8.0] * 6


def test_a_few_steps_lower_the_loss():
    before, after = descend(phase(), batch())
    assert after < 0.9 * before


def test_bfloat16_autocast_gives_float32_terms_near_the_exact_ones():
    tiny, tensors = phase(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = tiny(tensors)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert value(terms) == pytest.approx(value(tiny(tensors)), rel=0.05)
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())


def test_checkpointing_activations_changes_no_gradient():
    plain, saving = phase(), phase(engine={"checkpoint_activations": True})
    assert saving.fmri.checkpoint and saving.image.vit.encoder.checkpoint and saving.image.decoder.checkpoint
    for tiny in (plain, saving):
        sum(tiny(batch()).values()).backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_preview_shows_signals_and_pictures(norm_pix):
    tiny, tensors = phase({"norm_pix": norm_pix}), batch()
    shown = tiny.preview(tensors)
    assert shown.keys() == {"signal", "visible", "prediction", "image", "image_visible", "image_prediction"}
    assert torch.equal(shown["image"], tensors["image"][:4])
    assert shown["image_prediction"].shape == (4, 3, 16, 16) and shown["image_prediction"].dtype == torch.uint8
    hidden = tiny.masks(tensors)[1].hidden_BL[:4].bool()
    visible, original = image_patches(shown["image_visible"], 4), image_patches(tensors["image"][:4], 4)
    assert (visible[hidden] == 128).all() and torch.equal(visible[~hidden], original[~hidden])


def test_phase_1_is_taken_over_by_name(fmri_export):
    tiny = phase(init={"fmri": str(fmri_export)})
    stored = Pretrain(phase1_job(model={**FMRI, "decoder_depth": 3}), Space(voxels=20, classes=0)).fmri.state_dict()
    report = tiny.init_report["fmri"]
    assert set(report["resized"]) == {"pos_embed", "decoder_pos_embed"}
    assert all(name.startswith("cross_") for name in report["missing"]) and report["missing"]
    assert {name.split(".")[1] for name in report["unused"]} == {"1", "2"}
    assert set(report["matched"]) | set(report["unused"]) | set(report["resized"]) == stored.keys()
    torch.testing.assert_close(tiny.fmri.pos_embed, phase().fmri.pos_embed)
    torch.testing.assert_close(
        tiny.fmri.blocks[1].attn.qkv.weight, load_part(fmri_export, "fmri")["blocks.1.attn.qkv.weight"]
    )


@pytest.mark.parametrize(
    "change", [{"depth": 1}, {"depth": 3}, {"decoder_width": 16}, {"decoder_depth": 4}, {"mlp_ratio": 2.0}]
)
def test_a_phase_1_export_of_other_sizes_is_refused(fmri_export, change):
    with pytest.raises(ConfigError, match="tensors differ"):
        phase(init={"fmri": str(fmri_export)}, model={**FMRI, **change})


def test_a_pretrained_vit_is_taken_over_by_name(vit_folder):
    tiny = phase(init={"image": str(vit_folder)})
    report = tiny.init_report["image"]
    assert all("cross" in name for name in report["missing"]) and report["resized"] == []
    assert all(name.startswith(("decoder.decoder_layers.1", "decoder.decoder_layers.2")) for name in report["unused"])
    stored = load_file(vit_folder / "model.safetensors")
    for name in report["matched"]:
        assert torch.equal(tiny.image.state_dict()[name], stored[name])
    assert len(report["matched"]) == len(ImageMae(ImageModel(**IMAGE), 16).state_dict())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": 32}, "image.width is 16"),
        ({"image_size": 32}, "data.image_size is 16"),
        ({"num_attention_heads": 4}, "image.heads is 2"),
        ({"layer_norm_eps": 1e-6}, "eps"),
        ({"decoder_num_hidden_layers": 0}, "decoder_depth is 1"),
    ],
)
def test_a_vit_of_other_sizes_is_refused(vit_folder, change, word):
    (vit_folder / "config.json").write_text(json.dumps(vit_config(**change)))
    with pytest.raises(ConfigError, match=word):
        phase(init={"image": str(vit_folder)})


def test_what_a_vits_config_leaves_out_is_vit_mae_bases(vit_folder):
    config = vit_config()
    del config["hidden_size"]
    (vit_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="hidden_size is 768"):
        phase(init={"image": str(vit_folder)})


def test_damaged_vit_files_are_named(vit_folder):
    weights = vit_folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        phase(init={"image": str(vit_folder)})
    state = ImageMae(ImageModel(**IMAGE), 16).state_dict()
    del state["vit.layernorm.weight"]
    save_file(state, weights)
    with pytest.raises(DataError, match=r"vit\.layernorm\.weight"):
        phase(init={"image": str(vit_folder)})
    weights.unlink()
    with pytest.raises(DataError, match="no such file"):
        phase(init={"image": str(vit_folder)})
    (vit_folder / "config.json").write_text("[]")
    with pytest.raises(DataError, match="not a model's config"):
        phase(init={"image": str(vit_folder)})


def test_it_exports_both_networks():
    tiny = phase()
    assert tiny.parts() == {"fmri": tiny.fmri, "image": tiny.image} and tiny.init_report == {}
