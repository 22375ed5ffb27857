"""Phase 2 gives the numbers of the paper's code: the joint step, its gradients, and nine steps of training."""

import pytest
import torch
from golden_reader import (
    LOSS,
    Case,
    adamw,
    assert_close,
    assert_gradients,
    cases,
    key_bias_free,
    learning_rate,
    load_all,
    phase2_job,
)

from cadiff.kernels.mask import Masking
from cadiff.models.image_mae import image_patches
from cadiff.phases import Space
from cadiff.phases.crosstune import CrossTune

pytestmark = pytest.mark.parity


def built(path):
    case = Case(path)
    phase = CrossTune(phase2_job(case.meta), Space(voxels=case.meta["fmri_config"]["num_voxels"], classes=0))
    load_all(phase.fmri, case.under("fmri.sd."))
    load_all(phase.image, case.under("img.sd."))
    phase.image.freeze_encoder()
    return case, phase


@pytest.mark.parametrize("path", cases("phase2"))
def test_losses_and_gradients_are_the_papers(path):
    case, phase = built(path)

    terms = phase.terms(
        case["in.fmri"].flatten(1), case["in.pixel_values"], case.masking("1_fmri_masked"), case.masking("3_img_masked")
    )
    sum(terms.values()).backward()

    assert abs(sum(terms.values()).item() - case["out.loss"].item()) < LOSS
    for name, stored in (("fmri", "out.fmri_loss"), ("image", "out.img_loss")):
        if name in terms:
            assert abs((terms[name] / phase.weights[name]).item() - case[stored].item()) < LOSS
    assert_gradients(phase.fmri, case.tensors, "grad.fmri.")
    assert_gradients(phase.image, case.tensors, "grad.img.")
    # The image decoder's position table is trained by the paper's code, by accident; here it is fixed.
    stored = {name for name in case.under("grad.img.") if name != "decoder.decoder_pos_embed"}
    assert stored == {name for name, p in phase.image.named_parameters() if p.grad is not None}
    assert set(case.under("grad.fmri.")) == {name for name, p in phase.fmri.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", cases("phase2"))
def test_supports_latents_and_predictions_are_the_papers(path):
    case, phase = built(path)
    signal_BV, pixels_BCSS = case["in.fmri"].flatten(1), case["in.pixel_values"]
    fmri_masking, image_masking = case.masking("1_fmri_masked"), case.masking("3_img_masked")

    with torch.no_grad():
        # The paper's code shuffles tokens even when it hides none; our supports are in order.
        image_support = phase.image.vit(pixels_BCSS, case.masking("0_img_full"))
        fmri_support = phase.fmri.encode(signal_BV, case.masking("2_fmri_full"))
        assert_close(image_support, case["out.img_support"], "image support")
        assert_close(fmri_support, case["out.fmri_support"], "fMRI support")
        latent = phase.fmri.encode_with(signal_BV, fmri_masking, phase.image.vit(pixels_BCSS))
        assert_close(latent, case["out.fmri_latent_cross"], "fMRI latent")
        assert_close(phase.fmri.decode(latent, fmri_masking), case["out.fmri_pred"], "fMRI prediction")
        latent = phase.image.vit(pixels_BCSS, image_masking, phase.fmri.encode(signal_BV))
        assert_close(latent, case["out.img_latent_cross"], "image latent")
        assert_close(phase.image.decoder(latent, image_masking), case["out.img_logits"], "image prediction")
    if "out.img_target_patches" in case and not phase.job.loss.norm_pix:
        assert_close(image_patches(pixels_BCSS, phase.image.patch), case["out.img_target_patches"], "target")


@pytest.mark.parametrize("path", cases("phase2", "phase2_train"))
def test_position_tables_are_the_papers(path):
    case, phase = built(path)
    fresh = CrossTune(phase.job, Space(phase.fmri.length * phase.fmri.patch, 0))
    assert_close(fresh.fmri.pos_embed, case["fmri.sd.pos_embed"], "fMRI positions", rest=3e-5)
    name = "vit.embeddings.position_embeddings"
    assert_close(fresh.image.state_dict()[name], case[f"img.sd.{name}"], "image positions", rest=3e-5)
    name = "decoder.decoder_pos_embed"
    assert_close(fresh.image.state_dict()[name], case[f"img.sd.{name}"], "image decoder positions", rest=3e-5)


def train_positions_too(image):
    """Do what the paper's code does by accident: let the image decoder's position table be trained."""
    table = image.decoder.decoder_pos_embed
    del image.decoder.decoder_pos_embed
    image.decoder.decoder_pos_embed = torch.nn.Parameter(table)


def losses(case, phase, batch, noise):
    """The two unweighted losses; noise is in the order whole image, masked fMRI, whole fMRI, masked image."""
    fmri_masking = Masking.from_noise(noise[1], case.meta["mask_ratio"])
    image_masking = Masking.from_noise(noise[3], case.meta["img_mask_ratio"])
    terms = phase.terms(
        case[f"in.batch{batch}.fmri"].flatten(1), case[f"in.batch{batch}.pixel_values"], fmri_masking, image_masking
    )
    return terms, {name: (term / phase.weights[name]).item() for name, term in terms.items()}


@pytest.mark.parametrize("path", cases("phase2_train"))
def test_training_goes_the_papers_way(path):
    case, phase = built(path)
    meta, parts = case.meta, {"fmri": phase.fmri, "img": phase.image}
    train_positions_too(phase.image)
    named = [(f"{part}.{name}", p) for part in parts for name, p in parts[part].named_parameters() if p.requires_grad]
    optimizer = adamw(named, meta)
    batches = sum(name.endswith(".fmri") for name in case.under("in.batch"))
    steps = iter(case["rng.noise"])
    for epoch in range(meta["num_epoch"]):
        for index in range(batches):
            step = epoch * batches + index
            rate = learning_rate(meta, epoch + index / batches)
            assert rate == pytest.approx(case["traj.lr"][step].item())
            for group in optimizer.param_groups:
                group["lr"] = rate
            terms, raw = losses(case, phase, index, next(steps))
            optimizer.zero_grad()
            sum(terms.values()).backward()
            norm = sum(torch.nn.utils.clip_grad_norm_(part.parameters(), meta["clip_grad"]) for part in parts.values())
            optimizer.step()
            assert raw["fmri"] == pytest.approx(case["traj.fmri"][step].item(), abs=LOSS)
            assert raw["image"] == pytest.approx(case["traj.img"][step].item(), abs=LOSS)
            assert norm.item() == pytest.approx(case["traj.norm"][step].item(), rel=1e-5)
        with torch.no_grad():
            _, raw = losses(case, phase, 0, next(steps))
        assert raw["fmri"] == pytest.approx(case["traj.eval_fmri"][epoch].item(), abs=LOSS)
        assert raw["image"] == pytest.approx(case["traj.eval_img"][epoch].item(), abs=LOSS)
    for part, module in parts.items():
        for name, value in module.state_dict().items():
            expected = key_bias_free(name, case[f"final.{part}.{name}"])
            if expected is not None:
                assert_close(key_bias_free(name, value), expected, f"final {part}.{name}", rest=1e-4)
