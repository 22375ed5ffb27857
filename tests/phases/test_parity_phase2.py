"""Phase 2 gives the numbers of the paper's code: the joint step, its gradients, and nine steps of training."""

from dataclasses import replace

import pytest
import torch
from golden_agree_phase2 import WEIGHTS, agree_on_losses_and_gradients, agree_on_outputs, agree_on_training
from golden_phase2 import TABLE, built, named
from golden_reader import Case, assert_close, cases
from golden_writer import save
from golden_writer_phase2 import README, SMALL, SMALL_IMAGE, ImageSizes, Pair, Sizes, write_pair_case
from golden_writer_phase2 import write_pair_training as write_training

from cadiff.phases import Space
from cadiff.phases.crosstune import CrossTune

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("path", cases("phase2"))
def test_losses_and_gradients_are_the_papers(path):
    agree_on_losses_and_gradients(Case(path))


@pytest.mark.parametrize("path", cases("phase2"))
def test_supports_latents_and_predictions_are_the_papers(path):
    agree_on_outputs(Case(path))


@pytest.mark.parametrize("path", cases("phase2", "phase2_train"))
def test_position_tables_are_the_papers(path):
    case = Case(path)
    phase = built(case)
    fresh = CrossTune(phase.job, Space(phase.fmri.length * phase.fmri.patch, 0))
    assert_close(fresh.fmri.pos_embed, case["fmri.sd.pos_embed"], "fMRI positions", rest=3e-5)
    tables = ["vit.embeddings.position_embeddings"]
    if not case[f"img.sd.{TABLE}"][:, 0].any():  # else it has been trained, or moved: its first row is zero no more
        tables.append(TABLE)
    for name in tables:
        assert_close(fresh.image.state_dict()[name], case[f"img.sd.{name}"], name, rest=3e-5)


@pytest.mark.parametrize("path", cases("phase2_train"))
def test_training_goes_the_papers_way(path):
    agree_on_training(Case(path))


OTHER = ImageSizes(24, 4, 32, 3, 4, 40, 16, 3, 4, 20, 3, 1e-6)
WRITTEN = {  # what could be stored and is not: computed by the plain baseline
    "readme": {},
    "defaults": {"pair": Pair()},
    "no_residual": {"pair": replace(README, do_cross_residual=False)},
    "norm_pix": {"pair": replace(README, norm_pix_loss=True)},
    "other_masks": {"pair": Pair(0.7, 0.3, 0.4, 0.8)},
    "fmri_alone": {"pair": Pair(0.5, 0.0, 0.75, 0.5)},
    "image_alone": {"pair": Pair(0.0, 2.0, 0.75, 0.5)},
    "no_voxel_hidden": {"pair": replace(README, mask_ratio=0.0)},
    "no_pixel_hidden": {"pair": replace(README, img_mask_ratio=0.0)},
    "other_decoders": {"sizes": replace(SMALL, decoder_depth=3), "image": replace(SMALL_IMAGE, decoder_depth=1)},
    "one_cross_layer": {"image": replace(SMALL_IMAGE, cross_layers=1)},
    "four_cross_layers": {"image": replace(SMALL_IMAGE, cross_layers=4)},
    "other_sizes": {"sizes": Sizes(120, 4, 36, 3, 2, 24, 2, 4, 2.5), "image": OTHER, "batch": 2},
    "one_sample": {"batch": 1},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_cases_that_are_not_stored_agree_too(name, tmp_path):
    case = Case(write_pair_case(tmp_path / f"{name}.safetensors", **WRITTEN[name]))
    agree_on_losses_and_gradients(case)
    agree_on_outputs(case)


def test_a_case_may_say_and_store_less(tmp_path):
    case = Case(write_pair_case(tmp_path / "c.safetensors", Pair()))
    for key in ("img_trainable", "do_cross_residual", "mask_ratio", "img_mask_ratio", *WEIGHTS.values()):
        del case.meta[key]
    for key in ("norm_pix_loss", "layer_norm_eps", "hidden_size", "image_size", "decoder_num_hidden_layers"):
        del case.meta["image_config"][key]
    for name in ("out.img_support", "out.fmri_support", "out.img_target_patches"):
        del case.tensors[name]
    for name in [name for name in case.tensors if "full" in name]:
        del case.tensors[name]
    agree_on_losses_and_gradients(case)
    agree_on_outputs(case)


def test_attention_may_have_no_biases(tmp_path):
    """Only their names are taken out here, so they must have been zero."""
    biases = ("query.bias", "key.bias", "value.bias")
    case = Case(write_pair_case(tmp_path / "c.safetensors"))
    case.meta["image_config"]["qkv_bias"] = False
    case.meta["img_trainable"] = [name for name in case.meta["img_trainable"] if not name.endswith(biases)]
    case.tensors = {name: value for name, value in case.tensors.items() if not name.endswith(biases)}
    phase = built(case)
    assert not any(name.endswith(biases) for name, _ in named(phase))
    assert not any(p.any() for name, p in phase.named_parameters() if name.endswith(biases))


TRAININGS = {
    "readme": {},
    "switched": {"pair": Pair(1.0, 0.5, 0.5, 0.75, False, True), "epochs": 3, "evaluated": 0},
    "image_alone": {"pair": Pair(0.0, 1.0, 0.75, 0.5), "batches": 3, "evaluated": 2},
    "other_sizes": {"sizes": Sizes(128, 8, 24, 1, 3, 16, 1, 2, 2.0), "image": OTHER},
    "sixteen_patches_each": {"sizes": replace(SMALL, voxels=128), "epochs": 1, "batches": 4},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_that_are_not_stored_agree_too(name, tmp_path):
    agree_on_training(Case(write_training(tmp_path / "t.safetensors", **TRAININGS[name])))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Paths of a case and of a training; each test reads them anew before it changes something."""
    folder = tmp_path_factory.mktemp("stored")
    return {
        "case": write_pair_case(folder / "c.safetensors"),
        "training": write_training(folder / "t.safetensors", epochs=2, batches=1),
    }


@pytest.mark.parametrize("weight", WEIGHTS.values())
def test_another_weight_is_noticed(weight, stored):
    case = Case(stored["case"])
    case.meta[weight] *= 1.001
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize(
    "change",
    [
        {"do_cross_residual": False},
        {"img_recon_weight": 0.0},
        {"num_cross_encoder_layers": 3},
        {"image_config": {"norm_pix_loss": True}},
        {"image_config": {"num_attention_heads": 4}},
        {"image_config": {"decoder_num_attention_heads": 4}},
        {"image_config": {"layer_norm_eps": 1e-2}},
        {"image_config": {"hidden_act": "relu"}},
        {"fmri_config": {"num_heads": 6}},
    ],
    ids=str,
)
def test_another_loss_or_network_is_noticed(change, stored):
    case = Case(stored["case"])
    for key, value in change.items():
        case.meta[key] = {**case.meta[key], **value} if isinstance(value, dict) else value
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize(
    "name", [f"img.{TABLE}", "img.decoder.mask_token", "img.vit.encoder.cross_map_in.bias", "+img.vit.layernorm.bias"]
)
def test_another_set_of_trained_tensors_is_noticed(name, stored):
    case = Case(stored["case"])
    change = case.meta["img_trainable"].append if name[0] == "+" else case.meta["img_trainable"].remove
    change(name.removeprefix("+").removeprefix("img."))
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize(
    "name",
    [
        "in.fmri",
        "in.pixel_values",
        "fmri.sd.cross_map_in.weight",
        "img.sd.vit.encoder.layer.0.output.dense.weight",
        f"img.sd.{TABLE}",
        "grad.fmri.cls_token",
        "grad.fmri.cross_blocks.1.cross_attention.attention.value.bias",
        "grad.img.vit.encoder.cross_map_in.weight",
        f"grad.img.{TABLE}",
        "out.fmri_loss",
        "out.img_loss",
        "rng.1_fmri_masked.ids_keep",
        "rng.3_img_masked.ids_restore",
    ],
)
def test_another_tensor_is_noticed(name, stored):
    case = Case(stored["case"])
    case.tensors[name] = case[name].flip(0) if case[name].dtype == torch.int64 else case[name] * 1.001
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize("name", ["grad.fmri.norm.weight", "grad.img.decoder.decoder_pred.bias"])
def test_a_gradient_that_is_not_stored_is_noticed(name, stored):
    case = Case(stored["case"])
    del case.tensors[name]
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


OUTPUTS = "img_support fmri_support fmri_latent_cross fmri_pred img_latent_cross img_logits img_target_patches"


@pytest.mark.parametrize("name", [*OUTPUTS.split(), "fmri_loss", "img_loss"])
def test_another_output_is_noticed(name, stored):
    case = Case(stored["case"])
    case.tensors[f"out.{name}"] = case[f"out.{name}"] + 1e-3
    with pytest.raises(AssertionError):
        agree_on_outputs(case)


@pytest.mark.parametrize(
    "name",
    [
        *(f"traj.{name}" for name in ("fmri", "img", "norm", "lr", "eval_fmri", "eval_img")),
        "final.fmri.cross_map_out.weight",
        f"final.img.{TABLE}",
        "rng.1_fmri_masked.noise",
        "in.batch0.pixel_values",
    ],
)
def test_another_training_is_noticed(name, stored):
    case = Case(stored["training"])
    case.tensors[name] = case[name].flip(0) if name.startswith("rng") else case[name] * 1.001
    with pytest.raises(AssertionError):
        agree_on_training(case)


@pytest.mark.parametrize("change", [{"clip_grad": 0.1}, {"weight_decay": 0.5}, {"betas": [0.9, 0.999]}], ids=str)
def test_other_settings_of_a_training_are_noticed(change, stored):
    case = Case(stored["training"])
    case.meta |= change
    with pytest.raises(AssertionError):
        agree_on_training(case)


def test_a_frozen_weight_that_moves_by_one_bit_is_noticed(stored):
    case = Case(stored["training"])
    moved = case["final.img.vit.encoder.layer.1.attention.output.dense.weight"]
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9.0))
    with pytest.raises(AssertionError):
        agree_on_training(case)


def test_files_are_chosen_by_what_they_say(stored, tmp_path, monkeypatch):
    for kind, name in (("case", "anything at all"), ("training", "p2_named_like_the_other")):
        (tmp_path / f"{name}.safetensors").write_bytes(stored[kind].read_bytes())
    save(tmp_path / "p2_of_tomorrow.safetensors", {"kind": "phase9"}, {"x": torch.ones(1)})
    monkeypatch.setattr("shared_files.GOLDEN", tmp_path)
    assert [case.id for case in cases("phase2")] == ["anything at all"]
    assert [case.id for case in cases("phase2_train")] == ["p2_named_like_the_other"]
