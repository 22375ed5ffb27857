"""The learning rate of every step follows the paper's formula."""

import math

import pytest

from cadiff.config import Optim, Train
from cadiff.schedule import job_steps, lr_at


def test_warm_up_is_linear_from_zero_and_the_cosine_ends_at_min_lr():
    optim = Optim(lr=1.0, warmup_steps=10, min_lr=0.1)
    rates = [lr_at(step, optim, 110, 1000) for step in range(111)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_papers_rate_in_fractions_of_an_epoch():
    optim = Optim(lr=2.5e-4, warmup_epochs=40.0)
    per_epoch = 535
    step = 90 * per_epoch
    expected = 2.5e-4 * 0.5 * (1 + math.cos(math.pi * (90 - 40) / (140 - 40)))
    assert lr_at(step, optim, 140 * per_epoch, per_epoch) == pytest.approx(expected)


def test_schedule_length_is_separate_from_the_stop():
    optim = Optim(lr=1.0, schedule_steps=100)
    assert lr_at(30, optim, 40, 10) == lr_at(30, optim, 100, 10)


def test_constant_schedule_and_job_length():
    assert lr_at(7, Optim(lr=0.3, schedule="constant"), 10, 10) == 0.3
    assert job_steps(Train(steps=7, batch=1), 99) == 7
    assert job_steps(Train(epochs=3, batch=1), 99) == 297
