"""How our phase 2 is compared with a stored case: losses, gradients, all outputs on the way, and trainings."""

import pytest
import torch
from golden_phase2 import batches, built, named, stored_noise, used
from golden_reader import LOSS, adamw, assert_close, assert_gradients, key_bias_free, learning_rate

from cadiff.kernels.mask import Masking
from cadiff.losses import normalised_patches, rebuild_loss
from cadiff.models.image_mae import image_patches

WEIGHTS = {"fmri": "fmri_recon_weight", "image": "img_recon_weight"}
LOSSES = {"fmri": "fmri_loss", "image": "img_loss"}
SHORT = {"fmri": "fmri", "image": "img"}


def fill_gradients(phase):
    """Zeros where none arrived, as in the paper's code, which computes a loss of weight zero, too."""
    for _, parameter in named(phase):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def agree_on_losses_and_gradients(case):
    phase, views = built(case), ("1_fmri_masked", "3_img_masked")
    signal_BV, pixels_BCSS = case["in.fmri"].flatten(1), case["in.pixel_values"]
    terms = phase.terms(signal_BV, pixels_BCSS, *(case.masking(view) for view in views))
    sum(terms.values()).backward()
    # With no image patch hidden, the paper's image loss is 0 / 0, and so is all that it reaches.
    undefined = case["rng.3_img_masked.mask"].sum() == 0

    assert set(terms) == {name for name, key in WEIGHTS.items() if used(case)[key]}
    if undefined:
        assert terms["image"].item() == 0 and case["out.loss"].isnan()
    else:
        assert abs(sum(terms.values()).item() - case["out.loss"].item()) < LOSS
    for name, term in terms.items():
        if not (undefined and name == "image"):
            assert abs((term / phase.weights[name]).item() - case[f"out.{LOSSES[name]}"].item()) < LOSS
    reached = {name for name, p in named(phase) if p.grad is not None and p.grad.any()}
    assert reached <= {name[len("grad.") :] for name in case.tensors if name.startswith("grad.")}
    fill_gradients(phase)
    for part, module in (("fmri", phase.fmri), ("img", phase.image)):
        stored = case.under(f"grad.{part}.")
        if undefined:
            stored = {name: value for name, value in stored.items() if not value.isnan().any()}
        compared = {name for name in stored if key_bias_free(name, stored[name]) is not None}
        assert assert_gradients(module, stored, "") == len(compared)


def outputs(case):
    """What our networks give on the way, under the names of the case."""
    phase, signal_BV, pixels_BCSS = built(case), case["in.fmri"].flatten(1), case["in.pixel_values"]
    fmri_masking, image_masking = case.masking("1_fmri_masked"), case.masking("3_img_masked")
    # The paper's code shuffles tokens even when it hides none; our supports are in order.
    orders = [case.masking(v) if f"rng.{v}.ids_keep" in case else None for v in ("0_img_full", "2_fmri_full")]
    with torch.no_grad():
        told = {"img_support": phase.image.vit(pixels_BCSS, orders[0])}
        told["fmri_support"] = phase.fmri.encode(signal_BV, orders[1])
        told["fmri_latent_cross"] = phase.fmri.encode_with(signal_BV, fmri_masking, phase.image.vit(pixels_BCSS))
        told["fmri_pred"] = phase.fmri.decode(told["fmri_latent_cross"], fmri_masking)
        told["img_latent_cross"] = phase.image.vit(pixels_BCSS, image_masking, phase.fmri.encode(signal_BV))
        told["img_logits"] = phase.image.decoder(told["img_latent_cross"], image_masking)
    told["img_target_patches"] = image_patches(pixels_BCSS, phase.image.patch)
    target = normalised_patches(told["img_target_patches"]) if phase.job.loss.norm_pix else told["img_target_patches"]
    losses = {
        "fmri_loss": rebuild_loss(told["fmri_pred"], signal_BV.view(told["fmri_pred"].shape), fmri_masking.hidden_BL),
        "img_loss": rebuild_loss(told["img_logits"], target, image_masking.hidden_BL),
    }
    return told, losses


def agree_on_outputs(case):
    told, losses = outputs(case)
    assert {"out.fmri_pred", "out.img_logits"} & set(case.tensors)
    for prefix in ("out.", "out64."):
        for name, value in told.items():
            if prefix + name in case:
                assert_close(value, case[prefix + name].float(), prefix + name)
        for name, value in losses.items():
            if prefix + name in case and not (value == 0 and case[prefix + name].isnan()):
                assert abs(value.item() - case[prefix + name].item()) < LOSS, prefix + name


def losses_of(case, phase, batch, noise):
    """The weighted terms, and the two losses without their weights."""
    ratios = used(case)
    fmri_masking = Masking.from_noise(noise["1_fmri_masked"], ratios["mask_ratio"])
    image_masking = Masking.from_noise(noise["3_img_masked"], ratios["img_mask_ratio"])
    terms = phase.terms(batch[0].flatten(1), batch[1], fmri_masking, image_masking)
    return terms, {name: (term / phase.weights[name]).item() for name, term in terms.items()}


def agree_on_training(case):
    phase, meta, data, calls = built(case), case.meta, batches(case), stored_noise(case)
    optimizer, noise = adamw(named(phase), meta), iter(calls)
    evaluated, left = divmod(len(calls) - meta["num_epoch"] * len(data), meta["num_epoch"])
    assert left == 0 and 0 <= evaluated <= len(data)
    for epoch in range(meta["num_epoch"]):
        for index, batch in enumerate(data):
            step = epoch * len(data) + index
            rate = learning_rate(meta, epoch + index / len(data))
            assert rate == pytest.approx(case["traj.lr"][step].item())
            for group in optimizer.param_groups:
                group["lr"] = rate
            terms, raw = losses_of(case, phase, batch, next(noise))
            optimizer.zero_grad()
            sum(terms.values()).backward()
            fill_gradients(phase)  # what has no gradient decays there
            parts = (phase.fmri, phase.image)
            norm = sum(torch.nn.utils.clip_grad_norm_(part.parameters(), meta["clip_grad"]) for part in parts)
            optimizer.step()
            for name, value in raw.items():
                assert value == pytest.approx(case[f"traj.{SHORT[name]}"][step].item(), abs=LOSS)
            assert norm.item() == pytest.approx(case["traj.norm"][step].item(), rel=1e-5)
        with torch.no_grad():
            seen = [losses_of(case, phase, batch, next(noise))[1] for batch in data[:evaluated]]
        for name in seen[0] if seen else ():
            mean = sum(raw[name] for raw in seen) / evaluated
            assert mean == pytest.approx(case[f"traj.eval_{SHORT[name]}"][epoch].item(), abs=LOSS)
    agree_on_final_weights(case, phase)


def agree_on_final_weights(case, phase):
    changing, compared = dict(named(phase)), 0
    for part, module in (("fmri", phase.fmri), ("img", phase.image)):
        for name, value in module.state_dict().items():
            if f"{part}.{name}" not in changing:  # bit for bit, in theirs and in ours
                began = case.under(f"{part}.sd.").get(name, torch.zeros_like(value))
                assert torch.equal(value, began), f"{part}.{name} is not trained, and has changed"
                assert torch.equal(case.under(f"final.{part}.").get(name, began), began)
                continue
            expected = key_bias_free(name, case[f"final.{part}.{name}"])
            if expected is not None:
                assert_close(key_bias_free(name, value), expected, f"final {part}.{name}", rest=1e-4)
                compared += 1
    assert compared
