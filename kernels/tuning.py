"""Tile sizes of the Triton kernels: a static table per GPU architecture, so that all ranks run the same code."""

from __future__ import annotations

import torch


def tiles(kernel: str, device: torch.device, default: dict[str, int], **sizes: int) -> dict[str, int]:
    """What to launch ``kernel`` with: its constexpr blocks, num_warps and num_stages.

    Args:
        kernel: its name in the tables, such as "patch_embed".
        default: used where no table has the shape class, and in the interpreter.
        sizes: what the shape class depends on, such as D=1024, P=16; each is rounded up to a power of two.
    """
    return default


def precision(inputs: torch.Tensor) -> dict[str, object]:
    """How a kernel multiplies: WIDEN to float32 first (the interpreter's bfloat16 is wrong); PRECISION of float32.

    TF32 only if PyTorch's own products may use it (torch.set_float32_matmul_precision).
    """
    fast = torch.get_float32_matmul_precision() != "highest"
    return {"WIDEN": inputs.device.type == "cpu", "PRECISION": "tf32" if fast and inputs.is_cuda else "ieee"}
