"""DeepSpeed's own JSON and the optimizer's groups, derived from the job, so that each setting exists once."""

from __future__ import annotations

from typing import Any

from torch import nn

from cadiff.config import Job
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
    _check_zero(zero)
    derived = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": job.optim.clip if job.engine.zero else 0.0,  # without ZeRO the engine clips
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW serves offload too, and needs no compiler
        "steps_per_print": 2**31 - 1,  # we do the reporting
    }
    if precision == "bf16":
        # No module is "safe": ranks would add its gradients up in bfloat16, which depends on how many they are.
        derived["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
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
