"""Phase 1: which terms exist, how they are weighted, and that both views go through the network together."""

import pytest
import torch
from tiny_pairs import SPACE, batch, descend, phase1_job, reached, rows, trained, value

from cadiff.errors import ConfigError
from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import info_nce_reference
from cadiff.losses import contrast_among_anchors, rebuild_loss
from cadiff.phases import Space, build_phase
from cadiff.phases.pretrain import Pretrain


def phase(loss=None, **sections):
    torch.manual_seed(0)
    return Pretrain(phase1_job(loss, **sections), SPACE)


def test_the_registry_builds_it():
    assert isinstance(build_phase(phase1_job(), SPACE), Pretrain)


@pytest.mark.parametrize(
    ("loss", "names", "views"),
    [
        ({}, {"rebuild", "self", "cross"}, 2),
        ({"cross_contrast": 0.0}, {"rebuild", "self"}, 1),
        ({"cross_contrast": 0.0, "self_on_both_views": True}, {"rebuild", "self"}, 2),
        ({"self_contrast": 0.0, "cross_contrast": 0.0, "self_on_both_views": True}, {"rebuild"}, 1),
        ({"scale": 0.0}, {"rebuild"}, 1),
        ({"rebuild": 0.0}, {"self", "cross"}, 2),
    ],
)
def test_terms_without_weight_are_not_computed(loss, names, views):
    tiny = phase(loss)
    widths = []
    tiny.fmri.register_forward_hook(lambda module, inputs, output: widths.append(len(inputs[0])))
    assert tiny(batch()).keys() == names
    assert widths == [6 * views]


@pytest.mark.parametrize(
    "loss", [{"rebuild": 0.0, "scale": 0.0}, dict.fromkeys(("rebuild", "self_contrast", "cross_contrast"), 0.0)]
)
def test_no_weight_at_all_is_refused(loss):
    with pytest.raises(ConfigError, match="nothing to train on"):
        phase(loss)


def test_the_doubled_batch_is_two_separate_views():
    tiny, tensors = phase({"rebuild": 0.7, "self_contrast": 0.3, "cross_contrast": 0.2, "scale": 2.0}), batch()
    signal = tensors["signal"]
    masks = [tiny.mask(tensors, view) for view in (1, 2)]
    first, second = (tiny.fmri(signal, mask) for mask in masks)
    expected = {
        "rebuild": 0.7 * rebuild_loss(first, signal.view(6, 6, 4), masks[0].hidden_BL),
        "self": 2 * 0.3 * info_nce_reference(first.flatten(1), signal, 0.1),
        "cross": 2 * 0.2 * info_nce_reference(first.flatten(1), second.flatten(1), 0.1),
    }
    assert value(tiny(tensors)) == pytest.approx(value(expected), rel=1e-5)


def test_self_contrast_may_tie_both_views_to_the_input():
    tiny, tensors = phase({"self_on_both_views": True}), batch()
    both = sum(
        info_nce_reference(tiny.fmri(tensors["signal"], tiny.mask(tensors, view)).flatten(1), tensors["signal"], 0.1)
        for view in (1, 2)
    )
    assert tiny(tensors)["self"].item() == pytest.approx(both.item(), rel=1e-5)


@pytest.mark.parametrize("policy", ["within", "across"])
def test_negatives_may_be_of_the_anchors_own_subject_only_or_of_others_only(policy):
    tensors = batch()
    tiny = phase({"rebuild": 0.0, "cross_contrast": 0.0, "negative_subjects": policy})
    prediction = tiny.fmri(tensors["signal"], tiny.mask(tensors, 1)).flatten(1)
    pairs = Pairs(subject_B=tensors["subject"], subjects=policy)
    wanted = info_nce_reference(prediction, tensors["signal"], 0.1, pairs=pairs).item()
    assert tiny(tensors)["self"].item() == pytest.approx(wanted, rel=1e-5)
    assert wanted < 0.9 * info_nce_reference(prediction, tensors["signal"], 0.1).item()
    with pytest.raises(ConfigError, match="negatives are none"):
        phase({"negatives": "predictions", "negative_subjects": policy})


def test_negatives_may_be_predictions():
    tiny, tensors = phase({"negatives": "predictions"}), batch()
    first, second = (tiny.fmri(tensors["signal"], tiny.mask(tensors, view)).flatten(1) for view in (1, 2))
    terms = tiny(tensors)
    assert terms["self"].item() == pytest.approx(contrast_among_anchors(first, tensors["signal"], 0.1).item(), rel=1e-5)
    assert terms["cross"].item() == pytest.approx(0.5 * info_nce_reference(first, second, 0.1).item(), rel=1e-5)


def test_views_are_masked_differently_and_anew_each_epoch():
    tiny = phase()
    first = tiny.mask(batch(), 1).hidden_BL
    assert not torch.equal(first, tiny.mask(batch(), 2).hidden_BL)
    assert not torch.equal(first, tiny.mask(batch(epoch=1), 1).hidden_BL)
    assert torch.equal(first, tiny.mask(batch(), 1).hidden_BL)


def test_masks_belong_to_samples_not_to_places_in_a_batch():
    tiny, tensors = phase(), batch()
    order = torch.tensor([4, 0, 5])
    assert torch.equal(tiny.mask(rows(tensors, order), 1).hidden_BL, tiny.mask(tensors, 1).hidden_BL[order])


def test_the_loss_does_not_depend_on_the_order_of_a_batch():
    tiny, tensors = phase(), batch()
    assert value(tiny(rows(tensors, torch.randperm(6)))) == pytest.approx(value(tiny(tensors)), rel=1e-5)


def test_a_focus_region_is_hidden_more_often():
    tiny = phase(mask={"ratio": 0.5, "focus_range": [0, 8], "focus_rate": 0.9})
    often = tiny.mask(batch(400), 1).hidden_BL.mean(0)
    assert often[:2].min() > 0.8 and often[2:].max() < 0.5


@pytest.mark.parametrize("region", [[3], [0, 100], [8, 8]])
def test_a_focus_region_outside_the_signal_is_refused(region):
    with pytest.raises(ValueError if len(region) == 1 else ConfigError, match="focus_range"):
        phase(mask={"focus_range": region})


def test_every_parameter_is_trained():
    tiny = phase()
    sum(tiny(batch()).values()).backward()
    assert trained(tiny) == reached(tiny) == {name for name, _ in tiny.named_parameters()}


def test_a_few_steps_lower_the_loss():
    before, after = descend(phase(), batch())
    assert after < 0.8 * before


def test_one_record_alone_has_only_its_reconstruction():
    terms = phase()(batch(1))
    assert terms["self"].item() == terms["cross"].item() == 0 < terms["rebuild"].item()


def test_bfloat16_autocast_gives_float32_terms_near_the_exact_ones():
    tiny, tensors = phase(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = tiny(tensors)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert value(terms) == pytest.approx(value(tiny(tensors)), rel=0.05)
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())


def test_checkpointing_activations_changes_no_loss_and_no_gradient():
    plain, saving = phase(), phase(engine={"checkpoint_activations": True})
    assert not plain.fmri.checkpoint and saving.fmri.checkpoint
    for tiny in (plain, saving):
        sum(tiny(batch()).values()).backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_preview_shows_a_few_records_with_hidden_patches_blank():
    tiny, tensors = phase(), batch()
    shown = tiny.preview(tensors)
    hidden = tiny.mask(tensors, 1).hidden_BL[:4].bool().repeat_interleave(4, dim=1)
    assert {name: array.shape for name, array in shown.items()} == dict.fromkeys(
        ("signal", "visible", "prediction"), (4, 24)
    )
    assert torch.equal(shown["visible"].isnan(), hidden)
    assert torch.equal(shown["visible"][~hidden], tensors["signal"][:4][~hidden])
    assert torch.equal(shown["signal"], tensors["signal"][:4])
    assert not shown["prediction"].requires_grad and shown["prediction"].isfinite().all()


def test_it_exports_the_whole_network():
    tiny = phase()
    assert tiny.parts() == {"fmri": tiny.fmri} and tiny.init_report == {}


def test_a_signal_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(ConfigError, match="patches of 4"):
        Pretrain(phase1_job(), Space(voxels=26, classes=0))
