"""The plain baseline of phase 1 computes what the paper's code does, and what ours does."""

import numpy as np
import pytest
import torch
from phases.golden_reader import LOSS, PHASE1_DEFAULTS, Case, assert_close, assert_gradients, cases, key_bias_free
from phases.golden_reader import learning_rate as paper_rate
from shared_files import benchmarks_importable

from cadiff.config import Phase1Job
from cadiff.kernels.mask import random_mask
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain

benchmarks_importable()
from plain_phase1 import PlainMae, Sizes, Terms, View  # noqa: E402
from plain_trainer import Trainer  # noqa: E402


def plain(meta, state):
    used = {**PHASE1_DEFAULTS, **meta["config"], **meta["effective"]}
    theirs = {
        "voxels": "num_voxels",
        "patch": "patch_size",
        "width": "embed_dim",
        "heads": "num_heads",
        "decoder_width": "decoder_embed_dim",
        "decoder_heads": "decoder_num_heads",
    }
    sizes = {
        name: used[theirs.get(name, name)] for name in Sizes.__dataclass_fields__ if theirs.get(name, name) in used
    }
    network = PlainMae(Sizes(**sizes), Terms(**{name: used[name] for name in PHASE1_DEFAULTS}))
    network.load_state_dict(state, strict=True)
    return network


def stored_view(case, view):
    return View(*(case[f"rng.{view}.{part}"] for part in ("ids_keep", "ids_restore", "mask")))


@pytest.mark.parametrize("path", cases("phase1"))
def test_losses_and_gradients_are_the_papers(path):
    case = Case(path)
    network = plain(case.meta, case.under("sd."))
    views = [stored_view(case, view) for view in ("view0", "view1") if f"rng.{view}.mask" in case]

    losses, prediction = network(case["in.fmri"], views)
    losses["loss"].backward()

    assert_close(prediction, case["out.view0.pred"], "prediction")
    stored = {"loss": "loss", "contrast": "contrast_loss", "mask": "view0.recon_raw"}
    stored |= {"self": "self_contrast_raw", "self_view1": "self_contrast_view1_raw", "cross": "cross_contrast_raw"}
    for name, value in losses.items():
        assert abs(value.item() - case[f"out.{stored[name]}"].item()) < LOSS, name
    assert assert_gradients(network, case.tensors, "grad.") == len(case.under("grad."))


@pytest.mark.parametrize("path", cases("phase1_train"))
def test_training_goes_the_papers_way(path):
    case = Case(path)
    meta, network = case.meta, plain(case.meta, case.under("sd."))
    trainer = Trainer(network, weight_decay=meta["weight_decay"], clip=meta["clip_grad"])
    batches = [case[f"in.batch{i}"] for i in range(len(case.under("in.batch")))]
    correlations = []
    for step, noise in enumerate(case["rng.noise"]):
        views = [View.of_noise(rows, meta["mask_ratio"]) for rows in noise]
        told = trainer.step(batches[step % len(batches)], views, paper_rate(meta, step / len(batches)))
        correlations.append(trainer.correlation)
        for name, stored in (("loss", "loss"), ("contrast", "con"), ("mask", "mask")):
            assert told[name] == pytest.approx(case[f"traj.{stored}"][step].item(), abs=1e-5), name
        assert told["norm"] == pytest.approx(case["traj.norm"][step].item(), rel=1e-5)
    by_epoch = np.array(correlations).reshape(-1, len(batches)).mean(axis=1)
    np.testing.assert_allclose(by_epoch, case["out.epoch_cor"].numpy(), atol=1e-5)
    for name, value in network.state_dict().items():
        expected = key_bias_free(name, case[f"final.{name}"])
        assert_close(key_bias_free(name, value), expected, f"final {name}", rest=1e-4)


TINY = Sizes(voxels=96, patch=8, width=24, depth=2, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2)
BATCH = 4


def ours_like(network, terms, **loss):
    """Our phase with the baseline's weights."""
    sizes = {name: value for name, value in vars(network.sizes).items() if name != "voxels"}
    job = Phase1Job.model_validate(
        {
            "phase": "phase1",
            "name": "same",
            "data": {"shards": ["unused"]},
            "train": {"steps": 1, "batch": BATCH},
            "model": sizes,
            "loss": {
                "rebuild": terms.mask_loss_weight * terms.do_mask_loss,
                "self_contrast": terms.self_contrast_loss_weight * terms.do_self_contrast,
                "cross_contrast": terms.cross_contrast_loss_weight * terms.do_cross_contrast,
                "scale": terms.contrastive_loss_weight,
                **loss,
            },
        }
    )
    phase = Pretrain(job, Space(network.sizes.voxels, classes=0))
    phase.fmri.load_state_dict(network.state_dict(), strict=True)
    return phase


@pytest.mark.parametrize(
    ("terms", "loss"),
    [
        (Terms(do_mask_loss=True), {}),
        (Terms(True, True, True, self_contrast_loss_weight=0.8), {}),
        (Terms(True, True, True, sep_loss=True), {"self_on_both_views": True}),
        (Terms(True, True, True, negative_mode="paired"), {"negatives": "predictions"}),
    ],
    ids=["rebuild", "both contrasts", "self on both views", "paired"],
)
def test_our_phase_and_the_baseline_agree(terms, loss):
    torch.manual_seed(0)
    network = PlainMae(TINY, terms)
    phase = ours_like(network, terms, **loss)
    signal_BV, number_B = torch.randn(BATCH, TINY.voxels), torch.arange(BATCH)
    maskings = [random_mask(1, f"view{i}", number_B * 0, number_B, 12, 0.75) for i in range(phase.views)]
    views = [View(masking.keep_BK, masking.restore_BL, masking.hidden_BL) for masking in maskings]

    told, prediction_BLP = network(signal_BV[:, None], views)
    told["loss"].backward()
    found = sum(phase.terms(signal_BV, maskings).values())
    found.backward()

    assert found.item() == pytest.approx(told["loss"].item(), abs=LOSS)
    assert_close(phase.fmri(signal_BV, maskings[0]), prediction_BLP, "prediction")
    stored = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert assert_gradients(phase.fmri, stored, "") == len(dict(phase.fmri.named_parameters())) == len(stored)


def test_a_step_trains_and_correlates_each_sample():
    torch.manual_seed(0)
    network = PlainMae(TINY, Terms(do_mask_loss=True))
    trainer, signal_B1V = Trainer(network), torch.randn(BATCH, 1, TINY.voxels)
    views = [View.drawn(BATCH, 12, 0.75)]
    with torch.no_grad():
        rows_BV = network.predict(signal_B1V, views[0]).flatten(1)
    told = trainer.step(signal_B1V, views, 1e-3)
    pairs = zip(rows_BV.double(), signal_B1V.flatten(1).double())
    wanted = np.mean([torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs])
    assert trainer.correlation == pytest.approx(wanted, abs=1e-5)
    assert trainer.step(signal_B1V, views, 1e-3)["loss"] < told["loss"]


def test_autocast_changes_the_numbers_a_little_only():
    torch.manual_seed(0)
    network = PlainMae(TINY, Terms(True, True, True))
    signal_B1V, views = torch.randn(BATCH, 1, TINY.voxels), [View.drawn(BATCH, 12, 0.75) for _ in range(2)]
    exact, rough = (Trainer(network, half=half).step(signal_B1V, views, 0.0) for half in (None, torch.bfloat16))
    assert rough["loss"] != exact["loss"]
    assert rough["loss"] == pytest.approx(exact["loss"], rel=2e-2)
