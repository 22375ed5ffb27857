"""The one door to DeepSpeed: a phase goes in, and forward, backward, step, save and load come out."""

from __future__ import annotations

import logging
import os
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import Job
from cadiff.devices import device_of, keep_freed_memory
from cadiff.distributed import Place
from cadiff.ema import ShardedMean
from cadiff.engine_json import deepspeed_json, parameter_groups
from cadiff.errors import ConfigError
from cadiff.guard import Guard
from cadiff.layers import Block, VitLayer
from cadiff.precision import LossScale

# What phases read on the host, once a step; copied to a GPU, every step would wait for it to come back.
ON_HOST = ("lengths",)


class Engine:
    """One phase wrapped once by DeepSpeed, on this process's device.

    Attributes:
        guard: sees that a bad step changes nothing.
        mean: the running mean of the weights, or None.
    """

    def __init__(
        self, phase: nn.Module, job: Job, place: Place, micro_batch: int, accumulate: int, precision: str
    ) -> None:
        deepspeed = _deepspeed()
        self.device = device_of(place)
        self.precision, self.place, self.transfer_s = precision, place, 0.0
        self.phase = phase.to(self.device)
        # Counted before ZeRO-3 leaves every rank its part only.
        self.parameters = sum(p.numel() for p in phase.parameters())
        self.trained = sum(p.numel() for p in phase.parameters() if p.requires_grad)
        groups = parameter_groups(self.phase, job.optim.weight_decay)
        if not groups:
            raise ConfigError("No parameter of this job is trained: everything is frozen.")
        if job.engine.compile:
            compile_blocks(self.phase)
        config = deepspeed_json(job, precision, micro_batch, accumulate)
        betas = tuple(job.optim.betas)
        optimizer = torch.optim.AdamW(groups, lr=job.optim.lr, betas=betas, eps=job.optim.eps, fused=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls names that torch is renaming
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self.phase, optimizer=optimizer, config=config
            )
        if place.world == 1 and not job.engine.zero:
            # DeepSpeed would copy all gradients into one buffer, to add them up with nobody's.
            self._engine.enable_backward_allreduce = False
        self._zero, self._clip, self._accumulate = job.engine.zero, job.optim.clip, accumulate
        held = torch.device("cpu") if job.engine.offload else self.device  # where the optimizer's kernel runs
        self.guard = Guard(optimizer, self._norm, job.train.spike, self.device, held)
        self._scale = LossScale(optimizer, held) if precision == "fp16" else None
        self._unsound = torch.zeros((), dtype=torch.bool, device=self.device)  # a loss of this step was not finite
        self._micro_steps = 0
        self._fit_clip()
        self.mean = ShardedMean(self.phase, job.train.ema, place.rank, place.world) if job.train.ema else None

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the phase's forward on a batch that is on any device."""
        batch = self.taken(batch)
        with self._half():
            return self._engine(batch)

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the phase wants other micro-batches of the step to know of this one, without a graph."""
        batch, dtype = self.taken(batch), {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self.phase.features(batch)

    def taken(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on this engine's device."""
        began = time.perf_counter()
        device = self.device
        batch = {name: rows if name in ON_HOST else rows.to(device, non_blocking=True) for name, rows in batch.items()}
        self.transfer_s += time.perf_counter() - began
        return batch

    def backward_and_step(self, loss: Tensor, step: int) -> None:
        """Add this micro-batch's gradients; the last of ``step`` also clips and updates."""
        self._micro_steps += 1
        last = self._micro_steps % self._accumulate == 0
        if self._scale is not None:
            self._unsound = self._unsound | ~loss.detach().isfinite()
            loss = loss * self._scale.value
        self._engine.backward(loss)
        if last:
            self.guard.begin(step)
        self._engine.step()
        if last:
            self._after_update()

    def _after_update(self) -> None:
        applied = self.guard.end()
        if self._scale is not None:
            overflowed = not applied or not self.guard.norm.isfinite().item()
            if overflowed and self._scale.value > 1 and not self.max_over_ranks(float(self._unsound)):
                self.guard.forgive()  # the losses are sound, so only the scale was too high
            self._unsound = torch.zeros_like(self._unsound)
            self._scale.learn(overflowed)
            self._fit_clip()
        if self.mean is not None:
            self.mean.update(self.guard.applied)

    def _norm(self) -> Tensor:
        """The global gradient norm of the step that is due, before clipping. Without ZeRO it is clipped here."""
        scale = self._scale.value if self._scale is not None else 1.0
        if self._zero:
            return self._engine.optimizer._global_grad_norm / scale
        trained = [p for p in self.phase.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(trained, self._clip * scale, norm)
        return norm / scale

    def _fit_clip(self) -> None:
        """DeepSpeed clips gradients that still have float16's scale."""
        if self._scale is not None and self._zero:
            self._engine.optimizer.clip_grad = self._clip * self._scale.value

    def _half(self) -> AbstractContextManager:
        """float16's autocast, which is ours; bfloat16's is DeepSpeed's."""
        if self.precision != "fp16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.float16)

    def set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def told_by_main(self, text: str) -> str:
        """What rank 0 says, on every rank."""
        said = [text]
        if self.place.world > 1:
            torch.distributed.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        if self.place.world > 1:
            torch.distributed.all_reduce(values)
        return values / self.place.world

    def max_over_ranks(self, value: float) -> float:
        told = torch.tensor(value, device=self.device, dtype=torch.float64)
        if self.place.world > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return told.item()

    def barrier(self) -> None:
        if self.place.world > 1:
            torch.distributed.barrier()

    def save(self, folder: Path, tag: str) -> None:
        """Write DeepSpeed's sharded files under ``folder/tag``, and the mean's beside them; all ranks call this."""
        self._engine.save_checkpoint(str(folder), tag=tag, client_state={}, save_latest=False)
        if self.mean is not None:
            self.mean.save(folder)

    def load(self, folder: Path, tag: str) -> None:
        """Restore what ``save`` wrote at the same world size and ZeRO stage."""
        self._engine.load_checkpoint(str(folder), tag=tag)
        if self.mean is not None:
            self.mean.load(folder)

    def state(self) -> dict[str, Any]:
        """What else a resumed job needs, the same on every rank."""
        scale = {} if self._scale is None else {"loss_scale": self._scale.state()}
        return {"guard": self.guard.state(), **scale}

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self.guard.load(state["guard"])
        if self._scale is not None:
            self._scale.load(state["loss_scale"])
            self._fit_clip()

    def averaged(self) -> AbstractContextManager:
        """The phase with the running mean as its weights, where there is one; all ranks enter it together."""
        return nullcontext() if self.mean is None else self.mean.in_place()

    def part_states(self) -> dict[str, dict[str, Tensor]]:
        """Full weights of every exported part, on rank 0 (empty elsewhere); all ranks call this."""
        deepspeed = _deepspeed()
        states: dict[str, dict[str, Tensor]] = {}
        for name, part in self.phase.parts().items():
            split = [p for p in part.parameters() if hasattr(p, "ds_id")]
            with deepspeed.zero.GatheredParameters(split, enabled=bool(split)):
                if self.place.is_main:
                    states[name] = {key: value.detach().cpu().clone() for key, value in part.state_dict().items()}
        return states


def compile_blocks(phase: nn.Module) -> None:
    """Compile every transformer block in place; names of parameters stay as they are."""
    for module in phase.modules():
        if isinstance(module, Block | VitLayer):
            module.compile()


def start_processes(place: Place) -> None:
    """Join the job's process group (gloo on CPU, NCCL on GPU) and share the cores between local ranks."""
    deepspeed = _deepspeed()
    local = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    if place.world == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"{place.world} ranks, but MASTER_ADDR is not set, so they cannot find each other. "
            "Set it to the name of the first machine, or use the deepspeed launcher."
        )
    # Under srun and mpirun the ranks have other names for these.
    for name, value in (("RANK", place.rank), ("LOCAL_RANK", place.local_rank), ("WORLD_SIZE", place.world)):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", "29500")
    if not torch.cuda.is_available():
        keep_freed_memory()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def stop_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _deepspeed() -> Any:
    """Import DeepSpeed quietly, without its compiled shared-memory collective (a minute's build for gloo's work)."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
