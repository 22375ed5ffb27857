"""The plain baseline of phase 2 computes what the paper's code does, and its own preprocessing is ours."""

import numpy as np
import pytest
import torch
from golden_phase2 import batches, phase2_job, stored_noise, used
from golden_reader import LOSS, Case, assert_close, assert_gradients, cases, key_bias_free, learning_rate
from golden_writer_phase2 import IMAGE_NAMES, README, SMALL, SMALL_IMAGE, moved_pair
from plain_image import ImageSizes, extract
from plain_phase1 import Sizes, View
from plain_phase2 import ORDER, Pair, PairTrainer, PlainPair, image_correlation

from cadiff.models.image_mae import normalise_image


def plain(case):
    """The baseline with a case's weights; it takes the sizes that ours takes."""
    job, meta = phase2_job(case), used(case)
    sizes = {name: getattr(job.model, name) for name in Sizes.__dataclass_fields__ if name != "voxels"}
    voxels = job.model.patch * (case["fmri.sd.pos_embed"].shape[1] - 1)
    image = {name: meta["image_config"][theirs] for name, theirs in IMAGE_NAMES.items()}
    image |= {"depth": job.image.depth, "decoder_depth": job.image.decoder_depth, "cross_layers": job.cross.layers}
    pair = {name: meta[name] for name in Pair.__dataclass_fields__ if name != "norm_pix_loss"}
    network = PlainPair(
        Sizes(voxels, **sizes), ImageSizes(**image), Pair(**pair, norm_pix_loss=meta["image_config"]["norm_pix_loss"])
    )
    network.fmri.load_state_dict(case.under("fmri.sd."), strict=True)
    network.img.load_state_dict(case.under("img.sd."), strict=True)
    return network


def stored_view(case, view):
    return View(*(case[f"rng.{view}.{part}"] for part in ("ids_keep", "ids_restore", "mask")))


@pytest.mark.parametrize("path", cases("phase2"))
def test_all_that_is_on_the_way_is_the_papers(path):
    case = Case(path)
    network = plain(case)
    told = network(case["in.fmri"], case["in.pixel_values"], {view: stored_view(case, view) for view in ORDER})
    told["loss"].backward()

    for name, value in told.items():
        if value.ndim:
            assert_close(value, case[f"out.{name}"], name)
        else:
            assert abs(value.item() - case[f"out.{name}"].item()) < LOSS, name
    found = image_correlation(told["img_logits"], told["img_target_patches"])
    assert found == pytest.approx(case["out.img_corr_as_reference"].item(), abs=1e-5)
    for part, module in (("fmri", network.fmri), ("img", network.img)):
        stored = case.under(f"grad.{part}.")
        assert set(stored) == {name for name, p in module.named_parameters() if p.grad is not None}
        compared = [name for name, value in stored.items() if key_bias_free(name, value) is not None]
        assert assert_gradients(module, stored, "") == len(compared)
    assert set(case.meta["img_trainable"]) == {name for name, p in network.img.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("path", cases("phase2_train"))
def test_training_goes_the_papers_way(path):
    case = Case(path)
    meta, network, data = case.meta, plain(case), batches(case)
    trainer, noise = PairTrainer(network, weight_decay=meta["weight_decay"], clip=meta["clip_grad"]), stored_noise(case)
    calls = iter({n: View.of_noise(rows[n], network.pair.ratios[n]) for n in ORDER} for rows in noise)
    for epoch in range(meta["num_epoch"]):
        for index, (x_B1V, pixels_BCSS) in enumerate(data):
            rate = learning_rate(meta, epoch + index / len(data))
            told = trainer.step(x_B1V, pixels_BCSS, next(calls), rate)
            for name, stored in (("fmri_loss", "fmri"), ("img_loss", "img"), ("norm", "norm")):
                expected = case[f"traj.{stored}"][epoch * len(data) + index].item()
                assert told[name] == pytest.approx(expected, abs=LOSS, rel=1e-5), name
        with torch.no_grad():
            told = network(*data[0], next(calls))
        assert told["img_loss"].item() == pytest.approx(case["traj.eval_img"][epoch].item(), abs=LOSS)
    assert next(calls, None) is None
    for part, module in (("fmri", network.fmri), ("img", network.img)):
        for name, value in module.state_dict().items():
            expected = key_bias_free(name, case[f"final.{part}.{name}"])
            if expected is not None:
                assert_close(key_bias_free(name, value), expected, f"final {part}.{name}", rest=1e-4)


@pytest.mark.parametrize("side", [16, 40])
def test_pictures_are_normalised_once(side):
    drawn = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    pixels = extract(torch.from_numpy(drawn / 255.0), 16)
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32
    assert (pixels.std(dim=(0, 2, 3)) > 0.1).all()  # divided by 255 twice it would be 0.003
    if side == 16:
        torch.testing.assert_close(pixels, normalise_image(torch.from_numpy(drawn).permute(0, 3, 1, 2)))


def test_a_step_trains_and_correlates_each_sample():
    network = moved_pair(README, SMALL, SMALL_IMAGE, seed=4)
    trainer, x_B1V, views = PairTrainer(network), torch.randn(3, 1, SMALL.voxels), network.drawn(3)
    pixels_BCSS = trainer.pictures(torch.rand(3, 20, 20, 3, dtype=torch.float64))
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        rows_BV = network(x_B1V, pixels_BCSS, views)["fmri_pred"].flatten(1)
    told = trainer.step(x_B1V, pixels_BCSS, views, 1e-3)
    wanted = np.mean([np.corrcoef(row, signal)[0, 1] for row, signal in zip(rows_BV, x_B1V.flatten(1))])
    assert trainer.correlations[0] == pytest.approx(wanted, abs=1e-5)
    assert trainer.step(x_B1V, pixels_BCSS, views, 1e-3)["loss"] < told["loss"]
    assert all(torch.equal(dict(network.named_parameters())[name], value) for name, value in frozen.items())
