"""Masked patch embedding as operators that PyTorch knows: their shapes, their gradients, and which backend runs them.

Signals are images here: one of V voxels has one channel and one row.

Legend: B samples, C channels, H and W rows and columns, Y and X those of a patch, L patches, K kept patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cadiff.kernels import patch_embed_torch
from cadiff.kernels.dispatch import backend, on_device


@torch.library.custom_op("cadiff::patch_embed", mutates_args=())
def plain_patch_embed(
    signal_BCHW: Tensor, keep_BK: Tensor, weight_DCYX: Tensor, bias_D: Tensor, position_LD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """See cadiff.kernels.patch_embed.masked_patch_embed; products in weight's dtype.

    Args:
        lengths_B: columns of each sample that count.
        dtype: of the tokens (B, K, D) that are returned.
    """
    module = _backend(signal_BCHW, weight_DCYX.dtype)
    with on_device(signal_BCHW):
        return module.embed(
            signal_BCHW, keep_BK, weight_DCYX, bias_D, position_LD, lengths_B, gain_BCHW, shift_BCHW, dtype
        )


@plain_patch_embed.register_fake
def _(signal_BCHW, keep_BK, weight_DCYX, bias_D, position_LD, lengths_B, gain_BCHW, shift_BCHW, dtype):
    return weight_DCYX.new_empty((*keep_BK.shape, weight_DCYX.shape[0]), dtype=dtype)


@torch.library.custom_op("cadiff::patch_embed_gradient", mutates_args=())
def patch_embed_gradient(
    signal_BCHW: Tensor, keep_BK: Tensor, grad_BKD: Tensor,
    lengths_B: Tensor | None, gain_BCHW: Tensor | None, shift_BCHW: Tensor | None,
    patch: list[int], length: int, dtype: torch.dtype, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of weight (D, C, Y, X), bias and position in float32 (float64 for float64).

    Args:
        patch: C, Y, X.
        length: L, the rows of position.
        dtype: of products.
        wants: which of the three are wanted; the others are empty tensors.
    """
    module = _backend(signal_BCHW, dtype)
    with on_device(signal_BCHW):
        return module.gradient(
            signal_BCHW, keep_BK, grad_BKD, lengths_B, gain_BCHW, shift_BCHW, patch, length, dtype, wants
        )


@patch_embed_gradient.register_fake
def _(signal_BCHW, keep_BK, grad_BKD, lengths_B, gain_BCHW, shift_BCHW, patch, length, dtype, wants):
    width, kind = grad_BKD.shape[2], torch.promote_types(dtype, torch.float32)
    shapes = ((width, *patch), (width,), (length, width))
    return tuple(grad_BKD.new_empty(shape if want else (0,), dtype=kind) for shape, want in zip(shapes, wants))


def _save(ctx, inputs, output) -> None:
    signal_BCHW, keep_BK, weight_DCYX, bias_D, position_LD, lengths_B, gain_BCHW, shift_BCHW, _ = inputs
    ctx.save_for_backward(signal_BCHW, keep_BK, lengths_B, gain_BCHW, shift_BCHW)
    ctx.patch, ctx.length = list(weight_DCYX.shape[1:]), position_LD.shape[0]
    ctx.dtypes = (weight_DCYX.dtype, bias_D.dtype, position_LD.dtype)


def _backward(ctx, grad_BKD):
    signal_BCHW, keep_BK, *rest = ctx.saved_tensors
    wants = list(ctx.needs_input_grad[2:5])
    grads = patch_embed_gradient(
        signal_BCHW, keep_BK, grad_BKD, *rest, ctx.patch, ctx.length, ctx.dtypes[0], wants
    )  # fmt: skip
    given = (grad.to(dtype) if want else None for grad, dtype, want in zip(grads, ctx.dtypes, wants))
    return None, None, *given, None, None, None, None


plain_patch_embed.register_autograd(_backward, setup_context=_save)


def _backend(signal_BCHW: Tensor, dtype: torch.dtype):
    """The module that runs on this device; both have the same functions. Float64 is for tests and runs in PyTorch."""
    if backend(signal_BCHW.device.type) == "triton" and dtype != torch.float64:
        from cadiff.kernels import triton_patch_embed

        return triton_patch_embed
    return patch_embed_torch
