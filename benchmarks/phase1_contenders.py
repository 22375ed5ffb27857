"""Who takes part in bench_phase1.py: the plain baseline, our phase by itself, and our phase in the engine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from plain_phase1 import PlainMae, Sizes, Terms, View
from plain_trainer import Trainer
from torch import Tensor

from cadiff.config import Phase1Job
from cadiff.distributed import Place
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain

RATIO, LR = 0.75, 2.5e-4
WEIGHTS = Terms(True, True, True, mask_loss_weight=1.0, contrastive_loss_weight=1.0, self_contrast_loss_weight=1.0)
HALF = {"fp32": None, "bf16": torch.bfloat16}


def job_of(sizes: Sizes, batch: int) -> Phase1Job:
    model = {name: value for name, value in vars(sizes).items() if name != "voxels"}
    return Phase1Job.model_validate(
        {
            "phase": "phase1", "name": "bench", "data": {"shards": ["generated"]}, "model": model,
            "train": {"steps": 1, "batch": batch}, "engine": {"zero": 0}, "optim": {"lr": LR},
            "loss": {"rebuild": 1.0, "self_contrast": 1.0, "cross_contrast": 0.5},
        }
    )  # fmt: skip


class Clock:
    """Time of named parts, each without the parts inside it."""

    def __init__(self) -> None:
        self.spent_s, self._inside = Counter(), []

    def wrap(self, owner: object, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._inside.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                whole_s = time.perf_counter() - began
                self.spent_s[name] += whole_s - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole_s

        setattr(owner, method, timed)


class Plain:
    """The baseline and its trainer."""

    def __init__(self, sizes: Sizes, batch: int, precision: str) -> None:
        self.network = PlainMae(sizes, WEIGHTS)
        self.trainer = Trainer(self.network, half=HALF[precision])
        self.batch, self.length = batch, sizes.voxels // sizes.patch

    def drawn(self) -> list[View]:
        return [View.drawn(self.batch, self.length, RATIO) for _ in range(2)]

    def step(self, signal_BV: Tensor, number: int) -> None:
        self.trainer.step(signal_BV[:, None], self.drawn(), LR)

    def part_steps(self, clock: Clock) -> Callable[[Tensor, int], None]:
        clock.wrap(self, "drawn", "masking")
        clock.wrap(self.network.patch_embed, "forward", "embedding")
        for owner, method, name in (
            (self.network, "encode", "encoder"), (self.network, "decode", "decoder"),
            (self.trainer, "forward", "losses"), (self.trainer, "backward", "backward"),
            (self.trainer, "update", "update"), (self.trainer, "copied", "copies"),
        ):  # fmt: skip
            clock.wrap(owner, method, name)
        return self.step


class Ours:
    """Our phase with torch's fused AdamW."""

    def __init__(self, sizes: Sizes, batch: int, precision: str) -> None:
        job = job_of(sizes, batch)
        self.phase = Pretrain(job, Space(sizes.voxels, classes=0)).train()
        named = list(self.phase.named_parameters())
        flat = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
        rest = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
        groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
        self.half, self.number_B = HALF[precision], torch.arange(batch)

    def step(self, signal_BV: Tensor, number: int) -> None:
        self.optimizer.zero_grad()
        self.backward(self.forward(signal_BV, number))
        self.update()

    def forward(self, signal_BV: Tensor, number: int) -> Tensor:
        batch = {name: self.number_B for name in ("sample_id", "stimulus", "subject")}
        batch |= {"signal": signal_BV, "epoch": torch.full_like(self.number_B, number)}
        with torch.autocast("cpu", dtype=self.half, enabled=self.half is not None):
            return torch.stack(list(self.phase(batch).values())).sum()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.phase.parameters(), 0.8, foreach=True)
        self.optimizer.step()

    def part_steps(self, clock: Clock) -> Callable[[Tensor, int], None]:
        for owner, method, name in (
            (self.phase._views, "mask", "masking"), (self.phase.fmri, "embed", "embedding"),
            (self.phase.fmri, "encode", "encoder"), (self.phase.fmri, "decode", "decoder"),
            (self, "forward", "losses"), (self, "backward", "backward"), (self, "update", "update"),
        ):  # fmt: skip
            clock.wrap(owner, method, name)
        return self.step


class InEngine(Ours):
    """Our phase as a job trains it: in DeepSpeed, with the guard against bad steps."""

    def __init__(self, sizes: Sizes, batch: int, precision: str) -> None:
        from cadiff.engine import Engine, start_processes
        from cadiff.launch.start import free_port

        threads, place, job = torch.get_num_threads(), Place(0, 0, 1), job_of(sizes, batch)
        os.environ["MASTER_PORT"] = str(free_port())
        start_processes(place)
        torch.set_num_threads(threads)
        self.engine = Engine(Pretrain(job, Space(sizes.voxels, classes=0)), job, place, batch, 1, precision)
        self.phase, self.number_B = self.engine.phase.train(), torch.arange(batch)

    def step(self, signal_BV: Tensor, number: int) -> None:
        self.number = number
        self.backward(self.forward(signal_BV, number))

    def forward(self, signal_BV: Tensor, number: int) -> Tensor:
        batch = {name: self.number_B for name in ("sample_id", "stimulus", "subject")}
        batch |= {"signal": signal_BV, "epoch": torch.full_like(self.number_B, number)}
        return torch.stack(list(self.engine(batch).values())).sum()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward_and_step(loss, self.number)

    def update(self) -> None:
        """A part of ``backward`` here."""


KINDS = {"plain": Plain, "ours": Ours, "engine": InEngine}
