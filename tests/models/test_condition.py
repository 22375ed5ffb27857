"""Conditioners: tokens, time vector, and what stands for nothing known."""

import pytest
import torch

from cadiff.config import ConditionModel, FmriModel
from cadiff.models.condition import ClassConditioner, FmriConditioner

FMRI = FmriModel(patch=4, width=16, depth=1, heads=2)


def build(**condition) -> FmriConditioner:
    torch.manual_seed(0)
    return FmriConditioner(FMRI, ConditionModel(**condition), voxels=32, context_width=12, time_width=20)


@pytest.mark.parametrize(("condition", "tokens"), [({"tokens": 7}, 7), ({"tokens": 1}, 1), ({"pool": True}, 1)])
def test_signals_become_tokens_and_a_time_vector(condition, tokens):
    context, time = build(**condition)(torch.randn(3, 32))
    assert context.shape == (3, tokens, 12)
    assert time.shape == (3, 20)
    assert time.abs().sum() > 0


def test_without_time_conditioning_the_time_vector_is_zero():
    conditioner = build(tokens=7, time=False)
    assert conditioner(torch.randn(3, 32)).time_BE.count_nonzero() == 0
    assert not any(name.startswith("time.") for name in conditioner.state_dict())


def test_a_dropped_sample_is_conditioned_on_nothing():
    conditioner = build(tokens=7)
    signal = torch.randn(3, 32)
    kept, mixed = conditioner(signal), conditioner(signal, torch.tensor([True, False, True]))
    nothing = conditioner.null(1)
    for part, kept_part, null_part in zip(mixed, kept, nothing):
        assert torch.allclose(part[1], kept_part[1])
        assert torch.allclose(part[0], null_part[0], atol=1e-6)
        assert torch.allclose(part[2], null_part[0], atol=1e-6)


def test_the_null_context_is_learned_from_dropped_samples_alone():
    conditioner = build(tokens=7)
    for drop, learned in (([False, False], False), ([True, False], True)):
        conditioner.zero_grad()
        context, time = conditioner(torch.randn(2, 32), torch.tensor(drop))
        (context.square().sum() + time.square().sum()).backward()
        assert bool(conditioner.null_context.grad.abs().sum() > 0) is learned


def test_every_parameter_but_the_class_token_gets_a_gradient():
    conditioner = build(tokens=7)
    context, time = conditioner(torch.randn(2, 32), torch.tensor([True, False]))
    (context.square().sum() + time.square().sum()).backward()
    silent = [name for name, parameter in conditioner.named_parameters() if parameter.grad is None]
    assert silent == ["fmri.cls_token"]


def test_labels_pick_rows_and_minus_one_means_no_class():
    conditioner = ClassConditioner(3, 12, 20)
    context, time = conditioner(torch.tensor([2, -1, 0]))
    assert context.shape == (3, 1, 12)
    assert torch.equal(context[0, 0], conditioner.embedding.weight[2])
    assert torch.equal(context[1, 0], conditioner.embedding.weight[3])
    assert time.shape == (3, 20) and time.count_nonzero() == 0  # until training says otherwise


def test_a_dropped_label_is_no_class():
    conditioner = ClassConditioner(3, 12, 20)
    dropped = conditioner(torch.tensor([2, 1]), torch.tensor([True, False])).context_BND
    assert torch.equal(dropped, conditioner(torch.tensor([-1, 1])).context_BND)
