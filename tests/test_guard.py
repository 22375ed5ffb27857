"""A bad step leaves weights and moments as they are, and is known afterwards."""

import math

import pytest
import torch
from torch import nn

from cadiff.guard import WARM, BadStep, Guard
from cadiff.precision import LossScale


class World:
    """A linear layer, fused AdamW and a guard; ``step`` trains once with gradients of one value."""

    def __init__(self, spike=0.0):
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.1, fused=True)
        self.guard = Guard(self.optimizer, self._norm, spike, torch.device("cpu"))
        self.count = 0

    def step(self, value):
        for p in self.layer.parameters():
            p.grad = torch.full_like(p, value)
        self.guard.begin(self.count)
        self.optimizer.step()
        assert self.guard.end()
        self.count += 1

    def everything(self):
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value.clone() for value in [*self.layer.parameters(), *states]]

    def _norm(self):
        return torch.nn.utils.get_total_norm([p.grad for p in self.layer.parameters()])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing_and_is_told_once(value):
    world = World()
    world.step(1.0)
    before = world.everything()
    world.step(value)
    assert all(torch.equal(a, b) for a, b in zip(before, world.everything()))
    assert world.guard.applied == 0
    (bad,) = world.guard.take()
    assert bad.step == 1 and not math.isfinite(bad.norm) and "gradient norm of" in bad.why
    assert world.guard.take() == []
    world.step(1.0)
    assert not torch.equal(before[0], world.everything()[0])
    assert world.guard.take() == [] and world.guard.applied == 1


def test_a_bad_step_leaves_no_trace_in_later_ones():
    calm, met = World(), World()
    for value in (1.0, 2.0, 3.0):
        calm.step(value)
    for value in (1.0, math.nan, 2.0, 3.0):
        met.step(value)
    assert all(torch.equal(a, b) for a, b in zip(calm.everything(), met.everything()))


def test_a_spike_is_judged_by_the_good_steps_before_it():
    world = World(spike=5.0)
    for _ in range(WARM):
        world.step(1.0)
    world.step(4.9)
    before = world.everything()
    world.step(20.0)
    assert all(torch.equal(a, b) for a, b in zip(before, world.everything()))
    assert [bad.step for bad in world.guard.take()] == [WARM + 1]
    world.step(1.0)
    assert world.guard.take() == []


def test_early_steps_are_no_spikes_and_without_the_option_none_is():
    early, off = World(spike=2.0), World()
    for value in (1.0, 100.0):
        early.step(value)
    for value in [1.0] * (WARM + 1) + [1000.0]:
        off.step(value)
    assert early.guard.take() == [] and off.guard.take() == []


def test_a_resumed_guard_judges_alike():
    world, again = World(spike=5.0), World(spike=5.0)
    for _ in range(WARM):
        world.step(1.0)
    again.guard.load(world.guard.state())
    again.step(20.0)
    assert [bad.step for bad in again.guard.take()] == [0]


def test_a_step_that_never_reached_the_optimizer_is_bad():
    world = World()
    world.guard.begin(7)
    assert not world.guard.end()
    assert world.guard.applied == 0
    assert world.guard.take() == [BadStep(7, math.inf)]


def test_the_loss_scale_halves_after_an_overflow_and_recovers():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), fused=True)
    scale = LossScale(optimizer, torch.device("cpu"))
    first = scale.value
    scale.learn(True)
    assert scale.value == first / 2 == optimizer.grad_scale.item()
    for _ in range(LossScale.PATIENCE):
        scale.learn(False)
    assert scale.value == first == optimizer.grad_scale.item()
    other = LossScale(torch.optim.AdamW(nn.Linear(2, 2).parameters(), fused=True), torch.device("cpu"))
    scale.learn(True)
    other.load(scale.state())
    assert other.value == first / 2


def test_a_scaled_gradient_trains_what_a_plain_one_does():
    plain, scaled = World(), World()
    scale = LossScale(scaled.optimizer, torch.device("cpu"))
    scaled.guard._norm_of = lambda: World._norm(scaled) / scale.value
    for value in (1.0, -2.0, 0.5):
        plain.step(value)
        scaled.step(value * scale.value)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(plain.layer.parameters(), scaled.layer.parameters()))
    assert scaled.guard.norm.item() == pytest.approx(plain.guard.norm.item())
