"""Phase 1 gives the numbers of the paper's code: losses, predictions, gradients, and a dozen steps of training."""

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
    phase1_job,
)

from cadiff.kernels.mask import Masking
from cadiff.losses import rebuild_loss
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain

pytestmark = pytest.mark.parity


def built(path):
    case = Case(path)
    phase = Pretrain(phase1_job(case.meta), Space(voxels=case.meta["config"]["num_voxels"], classes=0))
    load_all(phase.fmri, case.under("sd."))
    return case, phase


@pytest.mark.parametrize("path", cases("phase1"))
def test_losses_and_gradients_are_the_papers(path):
    case, phase = built(path)
    views = [view for view in ("view0", "view1") if f"rng.{view}.mask" in case]
    assert len(views) == phase.views

    terms = phase.terms(case["in.fmri"].flatten(1), [case.masking(view) for view in views])
    sum(terms.values()).backward()

    contrast = sum((term for name, term in terms.items() if name != "rebuild"), torch.zeros(()))
    assert abs(sum(terms.values()).item() - case["out.loss"].item()) < LOSS
    assert abs(contrast.item() / phase.job.loss.scale - case["out.contrast_loss"].item()) < LOSS
    if "cross" in terms:
        assert abs((terms["cross"] / phase.weights["cross"]).item() - case["out.cross_contrast_raw"].item()) < LOSS
    if "self" in terms and "out.self_contrast_raw" in case and not phase.self_on_both:
        assert abs((terms["self"] / phase.weights["self"]).item() - case["out.self_contrast_raw"].item()) < LOSS
    assert assert_gradients(phase.fmri, case.tensors, "grad.") == len(case.under("grad."))


@pytest.mark.parametrize("path", cases("phase1"))
def test_latents_and_predictions_are_the_papers(path):
    case, phase = built(path)
    signal_BV = case["in.fmri"].flatten(1)
    for view in ("view0", "view1"):
        if f"out.{view}.pred" not in case:
            continue
        masking = case.masking(view)
        with torch.no_grad():
            latent, prediction = phase.fmri.encode(signal_BV, masking), phase.fmri(signal_BV, masking)
        assert_close(latent, case[f"out.{view}.latent"], "latent")
        assert_close(prediction, case[f"out.{view}.pred"], "prediction")
        rebuilt = rebuild_loss(prediction, signal_BV.view(prediction.shape), masking.hidden_BL)
        assert abs(rebuilt.item() - case[f"out.{view}.recon_raw"].item()) < LOSS


@pytest.mark.parametrize("path", cases("phase1", "phase1_train"))
def test_position_tables_are_the_papers(path):
    case, phase = built(path)
    fresh = Pretrain(phase.job, Space(phase.fmri.length * phase.fmri.patch, 0)).fmri
    # The paper's code takes frequencies in float32, which moves the table by up to 3e-5.
    torch.testing.assert_close(fresh.pos_embed, case["sd.pos_embed"], rtol=0, atol=3e-5)
    torch.testing.assert_close(fresh.decoder_pos_embed, case["sd.decoder_pos_embed"], rtol=0, atol=3e-5)


@pytest.mark.parametrize("path", cases("phase1_train"))
def test_training_goes_the_papers_way(path):
    case, phase = built(path)
    meta = case.meta
    named = [(name, p) for name, p in phase.fmri.named_parameters()]
    optimizer = adamw(named, meta)
    batches = [value.flatten(1) for _, value in sorted(case.under("in.batch").items())]
    for step, noise in enumerate(case["rng.noise"]):
        rate = learning_rate(meta, step / len(batches))
        assert rate == pytest.approx(case["traj.lr"][step].item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        maskings = [Masking.from_noise(noise[view], meta["mask_ratio"]) for view in range(phase.views)]
        terms = phase.terms(batches[step % len(batches)], maskings)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(phase.fmri.parameters(), meta["clip_grad"])
        optimizer.step()
        # As far as the paper's code in float32 is from itself in float64, and some more.
        assert sum(terms.values()).item() == pytest.approx(case["traj.loss"][step].item(), abs=1e-5)
        assert norm.item() == pytest.approx(case["traj.norm"][step].item(), rel=1e-5)
    for name, value in phase.fmri.state_dict().items():
        expected = key_bias_free(name, case[f"final.{name}"])
        assert_close(key_bias_free(name, value), expected, f"final {name}", rest=1e-4)
