"""The prior: it trains the UNet and the class rows only, and its noise depends on sample and epoch alone."""

import json

import pytest
import torch
from diffusion_world import SPACE, UNET, awaken, tiny_batch, tiny_job

from cadiff.errors import DataError
from cadiff.exports import load_part
from cadiff.phases import build_phase


def build(chain, **model):
    torch.manual_seed(0)
    job = tiny_job("prior", model={**UNET, **model}, init={"first_stage": str(chain / "first_stage")})
    return build_phase(job, SPACE)


def test_an_untrained_prior_errs_by_about_the_noise(chain):
    terms = build(chain)(tiny_batch())
    assert list(terms) == ["noise"]
    assert 0.5 < terms["noise"].item() < 3


def test_the_first_stage_is_the_exported_one_and_frozen(chain):
    phase = build(chain)
    stored = load_part(chain / "first_stage", "first_stage")
    assert all(torch.equal(value, stored[key]) for key, value in phase.codec.vq.state_dict().items())
    assert not any(parameter.requires_grad for parameter in phase.codec.parameters())
    report = phase.init_report[str(chain / "first_stage")]
    assert report["missing"] == report["unused"] == report["resized"] == []


def test_unet_and_classes_learn(chain):
    phase = build(chain)
    phase(tiny_batch())["noise"].backward()
    learning = {name.split(".")[0] for name, parameter in phase.named_parameters() if parameter.grad is not None}
    assert learning == {"diffusion", "classes"}


def test_the_loss_repeats_for_a_sample_and_changes_with_the_epoch(chain):
    phase, batch = build(chain), tiny_batch()
    first = phase(batch)["noise"].item()
    assert phase(batch)["noise"].item() == first
    assert phase({**batch, "epoch": batch["epoch"] + 1})["noise"].item() != first


def test_the_loss_of_a_batch_is_the_mean_over_its_samples(chain):
    phase, batch = build(chain), tiny_batch()
    single = [phase({key: value[i : i + 1] for key, value in batch.items()})["noise"].item() for i in range(4)]
    assert phase(batch)["noise"].item() == pytest.approx(sum(single) / 4, rel=1e-5)


def test_labels_matter_unless_all_are_dropped(chain):
    batch = tiny_batch(16)
    other = {**batch, "label": (batch["label"] + 2) % 3}
    for drop, same in ((0.0, False), (0.999, True)):
        phase = build(chain, drop=drop)
        awaken(phase)
        assert (phase(batch)["noise"].item() == phase(other)["noise"].item()) is same


def test_preview_shows_what_one_look_restores(chain):
    preview = build(chain).preview(tiny_batch())
    assert preview["denoised"].shape == (4, 3, 16, 16)
    assert preview["denoised"].dtype == torch.uint8


def test_an_export_that_describes_no_first_stage_is_refused(chain, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    card = json.loads((chain / "first_stage" / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "architecture": {}}))
    with pytest.raises(DataError, match="describes no first stage"):
        build_phase(tiny_job("prior", model=UNET, init={"first_stage": str(folder)}), SPACE)
