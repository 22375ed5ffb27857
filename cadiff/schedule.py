"""Learning rate and job length: how many steps a job has, and the rate of each of them."""

from __future__ import annotations

import math

from cadiff.config import Optim, Train


def job_steps(train: Train, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole job."""
    return train.steps or train.epochs * steps_per_epoch


def lr_at(step: int, optim: Optim, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) in a job of ``steps``.

    Linear warm-up from 0, then a half cosine down to ``min_lr`` (the paper's phase-1 schedule, there per iteration in
    fractions of an epoch), or constant. The cosine's length is ``optim.schedule_steps`` when that is given, so a job
    can be stopped early without changing the rates it saw.
    """
    warm = optim.warmup_steps + optim.warmup_epochs * steps_per_epoch
    if step < warm:
        return optim.lr * step / warm
    if optim.schedule == "constant":
        return optim.lr
    length = optim.schedule_steps or steps
    done = min(1.0, (step - warm) / max(1.0, length - warm))
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
