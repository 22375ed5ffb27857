"""The one door to DeepSpeed: a phase goes in, and forward, backward, step, save and load come out.

DeepSpeed's own JSON is derived here from the job, so that batch size, learning rate and clipping exist once.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import Job
from cadiff.distributed import Place
from cadiff.errors import ConfigError

# Keys of DeepSpeed's JSON that a job may pass through. DeepSpeed itself ignores a mistyped one in silence.
PASSTHROUGH = frozenset(
    [
        "zero_optimization",
        "comms_logger",
        "flops_profiler",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "activation_checkpointing",
        "aio",
        "checkpoint",
        "data_types",
        "sparse_gradients",
        "seq_parallel_communication_data_type",
    ]
)


def deepspeed_json(job: Job, precision: str, micro_batch: int, accumulate: int) -> dict[str, Any]:
    """Derive DeepSpeed's configuration from the job; ``precision`` is what ``choose_precision`` said.

    Raises:
        ConfigError: ``engine.deepspeed`` holds a key that DeepSpeed does not know or that the job already decides.
    """
    unknown = sorted(job.engine.deepspeed.keys() - PASSTHROUGH)
    if unknown:
        raise ConfigError(
            f"engine.deepspeed.{unknown[0]} cannot be passed through. Allowed: {', '.join(sorted(PASSTHROUGH))}; "
            "batch sizes, clipping, precision and optimizer are set by train.*, optim.* and engine.*."
        )
    owned = {"stage", "offload_optimizer"} & job.engine.deepspeed.get("zero_optimization", {}).keys()
    if owned:
        raise ConfigError(
            f"engine.deepspeed.zero_optimization.{min(owned)} is decided by engine.zero and engine.offload; set those."
        )
    zero: dict[str, Any] = {"stage": job.engine.zero}
    if job.engine.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    zero.update(job.engine.deepspeed.get("zero_optimization", {}))
    derived = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": job.optim.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW serves offload too, and needs no compiler
        "steps_per_print": 2**31 - 1,  # we do the reporting
    }
    if precision == "bf16":
        derived["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    extra = {key: value for key, value in job.engine.deepspeed.items() if key != "zero_optimization"}
    return {**derived, **extra}


def _check_zero(section: dict[str, Any]) -> None:
    """Refuse what DeepSpeed would refuse, in one line."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"engine.deepspeed.zero_optimization.{key} = {first.get('input')!r}: {first['msg']}. "
            "See DeepSpeed's documentation of zero_optimization."
        ) from None


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups as in the paper: one-dimensional tensors and biases are not decayed."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in trained if not (p.ndim <= 1 or name.endswith(".bias"))]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


class Engine:
    """One phase wrapped once by DeepSpeed, on this process's device."""

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
        config = deepspeed_json(job, precision, micro_batch, accumulate)
        _check_zero(config["zero_optimization"])
        betas = tuple(job.optim.betas)
        optimizer = torch.optim.AdamW(groups, lr=job.optim.lr, betas=betas, eps=job.optim.eps, fused=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls names that torch is renaming
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self.phase, optimizer=optimizer, config=config
            )

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the phase's forward on a batch that is on any device."""
        began = time.perf_counter()
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        self.transfer_s += time.perf_counter() - began
        return self._engine(batch)

    def backward_and_step(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients; the last of a step also clips and updates."""
        self._engine.backward(loss)
        self._engine.step()

    def set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        """Global gradient norm before clipping, of the latest step; infinite if DeepSpeed ever threw a step away."""
        if self._engine.skipped_steps:
            return float("inf")
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

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

    def barrier(self) -> None:
        if self.place.world > 1:
            torch.distributed.barrier()

    def save(self, folder: Path, tag: str) -> None:
        """Write DeepSpeed's sharded files under ``folder/tag``; all ranks call this."""
        self._engine.save_checkpoint(str(folder), tag=tag, client_state={}, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Restore parameters and optimizer state written by ``save`` at the same world size and ZeRO stage."""
        self._engine.load_checkpoint(str(folder), tag=tag)

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


def device_of(place: Place) -> torch.device:
    """The GPU of this local rank, or the CPU where there is none."""
    if torch.cuda.is_available():
        index = place.local_rank % torch.cuda.device_count()  # srun may show each rank its own GPU only
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


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
