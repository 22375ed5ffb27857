"""Phase 1's contrast of a whole batch: learned temperature, both directions, repeats, and micro-batches that add up."""

import math

import pytest
import torch
from tiny_pairs import SPACE, batch, phase1_job, reached, rows, value

from cadiff.accumulate import Forwards
from cadiff.errors import ConfigError
from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import info_nce_reference
from cadiff.phases.pretrain import Pretrain


def phase(loss=None, **sections):
    torch.manual_seed(0)
    return Pretrain(phase1_job(loss, **sections), SPACE)


def seen(count=6):
    """Records of two subjects, some of whom saw the same picture, some none."""
    return {**batch(count), "stimulus": torch.tensor([3, 8, 3, -1, 8, -1, 3, 5, 5, 2, -1, 2])[:count]}


def predicted(tiny, tensors):
    return [tiny.fmri(tensors["signal"], tiny.mask(tensors, view)).flatten(1) for view in (1, 2)]


class Rank:
    """As much of an engine as forwards of micro-batches need."""

    def __init__(self, tiny):
        self.phase = tiny

    def __call__(self, tensors):
        return self.phase(tensors)

    def features(self, tensors):
        return self.phase.features(tensors)

    def taken(self, tensors):
        return tensors


def accumulated(tiny, tensors, parts):
    """Terms of each micro-batch, and the mean over micro-batches of the gradients, as a step takes it."""
    micro = len(tensors["signal"]) // parts
    pieces = [rows(tensors, slice(i * micro, (i + 1) * micro)) for i in range(parts)]
    tiny.zero_grad()
    terms = []
    for _, _, found in Forwards(Rank(tiny), parts).over((0, i, piece) for i, piece in enumerate(pieces)):
        (sum(found.values()) / parts).backward()
        terms.append(value(found))
    return terms, {name: p.grad.clone() for name, p in tiny.named_parameters()}


CONTRASTS = {
    "paper": {},
    "learned": {"learn_temperature": True, "temperature": 0.2},
    "symmetric": {"symmetric": True, "learn_temperature": True, "self_on_both_views": True},
    "repeats": {"repeats": "positive", "negative_subjects": "across", "learn_temperature": True},
    "dropped": {"repeats": "drop", "symmetric": True},
    "rebuild": {"scale": 0.0},
}


@pytest.mark.parametrize("name", CONTRASTS)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole_batch(name, parts):
    """Values and gradients, the temperature's among them; the network is in float64, so that rounding hides little."""
    tiny = phase(CONTRASTS[name], mask={"ratio": 0.5, "voxel_dropout": 0.2}).double()
    tensors = {**seen(12), "signal": batch(12)["signal"].double()}
    whole, wanted = accumulated(tiny, tensors, 1)
    terms, found = accumulated(tiny, tensors, parts)
    for term in whole[0]:
        if term == "rebuild":  # a mean of the samples' own
            assert sum(piece[term] for piece in terms) / parts == pytest.approx(whole[0][term], rel=1e-6)
        else:  # every micro-batch has the whole one's
            assert [piece[term] for piece in terms] == pytest.approx([whole[0][term]] * parts, rel=1e-6)
    assert ("log_temperature" in found) == CONTRASTS[name].get("learn_temperature", False)
    for name_of, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name_of], rtol=1e-5, atol=1e-8, msg=name_of)


def test_micro_batches_alone_would_be_another_loss():
    tiny, tensors = phase({"rebuild": 0.0}), seen(12)
    alone = phase({"rebuild": 0.0, "negatives": "micro"})
    assert tiny.contrasts_whole_batch and not alone.contrasts_whole_batch
    whole = sum(accumulated(tiny, tensors, 3)[0][0].values())
    parts = [sum(terms.values()) for terms in accumulated(alone, tensors, 3)[0]]
    assert max(parts) < 0.8 * whole


def test_a_learned_temperature_begins_where_it_is_told_and_gets_a_gradient():
    fixed, tiny, tensors = phase({"temperature": 0.3}), phase({"temperature": 0.3, "learn_temperature": True}), seen()
    assert value(tiny(tensors)) == pytest.approx(value(fixed(tensors)), rel=1e-6)
    sum(tiny(tensors).values()).backward()
    assert "log_temperature" in reached(tiny) and reached(tiny) == {name for name, _ in tiny.named_parameters()}
    with torch.no_grad():
        moved = []
        for step in (1e-3, -1e-3):
            tiny.log_temperature += step
            moved.append(sum(value(tiny(tensors)).values()))
            tiny.log_temperature -= step
    assert tiny.log_temperature.grad.item() == pytest.approx((moved[0] - moved[1]) / 2e-3, rel=1e-2)
    assert "log_temperature" not in dict(phase().named_parameters())


def test_a_learned_temperature_stays_above_a_hundredth():
    tiny, tensors = phase({"learn_temperature": True}), seen()
    cold = phase({"temperature": 0.01})(tensors)
    with torch.no_grad():
        tiny.log_temperature.fill_(math.log(1e-4))
    terms = tiny(tensors)
    assert value(terms) == pytest.approx(value(cold), rel=1e-5)
    sum(terms.values()).backward()
    assert tiny.log_temperature.grad.item() != 0  # so that it can come back up


def test_a_learned_temperature_does_not_begin_below_its_floor():
    with pytest.raises(ConfigError, match=r"a learned temperature stays at 0.01 or above"):
        phase({"learn_temperature": True, "temperature": 0.005})


def test_a_learned_temperature_is_no_part_of_the_exported_network():
    tiny = phase({"learn_temperature": True})
    assert not any("temperature" in name for name in tiny.parts()["fmri"].state_dict())


def test_a_symmetric_contrast_also_lets_targets_choose():
    tiny, tensors = phase({"symmetric": True}), seen()
    first, second = predicted(tiny, tensors)
    terms = value(tiny(tensors))
    for name, target, weight in (("self", tensors["signal"], 1.0), ("cross", second, 0.5)):
        ways = [info_nce_reference(*pair, 0.1).item() for pair in ((first, target), (target, first))]
        assert terms[name] == pytest.approx(weight * sum(ways) / 2, rel=1e-5)
    assert value(phase()(tensors))["self"] != pytest.approx(terms["self"], rel=1e-3)


@pytest.mark.parametrize("repeats", ["drop", "positive"])
def test_repeats_of_a_picture_may_be_dropped_or_be_positives(repeats):
    tiny, tensors = phase({"repeats": repeats}), seen()
    first, second = predicted(tiny, tensors)
    pairs, terms = Pairs(tensors["stimulus"], repeats), value(tiny(tensors))
    wanted = info_nce_reference(first, tensors["signal"], 0.1, pairs=pairs).item()
    assert terms["self"] == pytest.approx(wanted, rel=1e-5)
    assert terms["cross"] == pytest.approx(0.5 * info_nce_reference(first, second, 0.1, pairs=pairs).item(), rel=1e-5)
    assert value(phase()(tensors))["self"] != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("change", [{"symmetric": True}, {"repeats": "drop"}])
def test_what_chooses_among_targets_does_not_go_with_predictions(change):
    with pytest.raises(ConfigError, match=f"loss.{next(iter(change))}"):
        phase({"negatives": "predictions", **change})
