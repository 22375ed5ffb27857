"""Which arithmetic a job runs in: what `engine.precision` names, or under "auto" what all its ranks do fast."""

from __future__ import annotations

import torch

from cadiff.distributed import Place


def choose_precision(asked: str, device: torch.device, place: Place) -> str:
    """The precision of a job: ``asked``, unless that is "auto".

    "auto" is bf16 if every rank's device multiplies it natively, else fp32: emulated bf16 trained the demo's first
    stage at a fifth of fp32's rate on a CPU with AVX2 only. All ranks call this, and all get the same answer.
    """
    if asked != "auto":
        return asked
    native = torch.tensor(float(has_bf16(device)), device=device)
    if place.world > 1:
        torch.distributed.all_reduce(native, op=torch.distributed.ReduceOp.MIN)
    return "bf16" if native.item() else "fp32"


def describe_precision(precision: str, device: torch.device) -> str:
    """The precision as the start line says it."""
    if precision == "bf16" and not has_bf16(device):
        return "bf16 (emulated here, slow; engine.precision=auto avoids it)"
    if precision == "fp16" and device.type == "cpu":
        return "fp16 (emulated here, slow; engine.precision=auto avoids it)"
    return precision


def has_bf16(device: torch.device) -> bool:
    """True if the device has instructions for bf16 products: NVIDIA from Ampere on, x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class LossScale:
    """Keeps float16 gradients off zero: the loss is multiplied, and AdamW's fused kernel divides what it gets.

    The scale halves after an overflow, whose step is left out, and doubles after ``PATIENCE`` steps without one
    (Micikevicius et al., 2018, section 3.2). It says "overflow" once per step, for which the host waits.
    """

    PATIENCE, LARGEST = 1000, 2.0**24

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.value, self._since = 2.0**15, 0
        optimizer.grad_scale = torch.full((), self.value, device=device)
        self._grad_scale = optimizer.grad_scale

    def learn(self, overflowed: bool) -> None:
        """Take in what became of a step."""
        self._since = 0 if overflowed else self._since + 1
        if overflowed:
            self._set(max(1.0, self.value / 2))
        elif self._since == self.PATIENCE:
            self._since = 0
            self._set(min(self.LARGEST, self.value * 2))

    def state(self) -> dict[str, float]:
        return {"value": self.value, "since": self._since}

    def load(self, state: dict[str, float]) -> None:
        self._since = int(state["since"])
        self._set(float(state["value"]))

    def _set(self, value: float) -> None:
        self.value = value
        self._grad_scale.fill_(value)
