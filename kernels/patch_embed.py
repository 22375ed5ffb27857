"""Masked patch embedding: cut a signal into patches and project only those that are kept.

    tokens[b, k] = weight @ patch(signal[b] * gain + shift, keep[b, k]) + bias + position[keep[b, k]]

Hidden patches are neither read nor projected, so at a mask ratio of 0.75 the work is a quarter of embedding everything
and choosing afterwards. The definition is here; the operators make the same tokens (cadiff.kernels.patch_embed_ops).

Legend: B samples, V voxels, C channels, H and W rows and columns of an image, Y and X those of a patch, P values per
patch (C * Y * X of an image), L patches, K kept patches, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.kernels.dispatch import backend
from cadiff.kernels.patch_embed_ops import plain_patch_embed


def masked_patch_embed(
    signal: Tensor, keep_BK: Tensor, weight: Tensor, bias_D: Tensor, position_LD: Tensor, *,
    lengths_B: Tensor | None = None, gain: Tensor | None = None, shift: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Embed the kept patches, on the backend that cadiff.kernels.dispatch decides.

    Args:
        signal: (B, V) with (L - 1) * P < V <= L * P, or images (B, C, H, W); float32, float16, bfloat16, int8, int16 or
            uint8, of any strides. What the last patches lack counts as zero.
        keep_BK: int64, unique within a row, 0..L-1, which is not checked: others are read from beyond the signal on a
            GPU, and repeats lose gradients of positions there. Patches of images are counted row by row.
        weight: (D, P), or (D, C, Y, X) for images, as a convolution has it; float32, float16 or bfloat16.
        bias_D, position_LD: added to each token; any float dtype.
        lengths_B: int64, the voxels of each sample of a ragged batch; what lies behind counts as zero. Not for images.
        gain, shift: what brings stored numbers to the network's scale, computed in float32; each of a shape that
            broadcasts to the signal's: (V,) per voxel, (B, 1) per sample, (C, 1, 1) per channel.

    Returns:
        tokens_BKD in weight's dtype. Products are made in that dtype, under autocast in autocast's, summed in float32
        and rounded once. Weight, bias and position get gradients, the same bits every time. A signal, gain or shift
        that asks for one takes the path of the definition: the operators treat them as data.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    _check(signal, keep_BK, weight, bias_D, position_LD, lengths_B)
    told = (signal, gain, shift)
    if backend(signal.device.type) == "reference" or any(part is not None and part.requires_grad for part in told):
        return masked_patch_embed_reference(
            signal, keep_BK, weight, bias_D, position_LD, lengths_B=lengths_B, gain=gain, shift=shift
        )
    dtype, gain, shift = weight.dtype, _like(gain, signal), _like(shift, signal)
    if torch.is_autocast_enabled(signal.device.type) and dtype != torch.float64:
        weight = weight.to(torch.get_autocast_dtype(signal.device.type))
    if signal.ndim == 2:  # an image of one row
        signal, gain, shift = (part if part is None else part[:, None, None] for part in (signal, gain, shift))
        weight = weight[:, None, None]
    return plain_patch_embed(signal, keep_BK, weight, bias_D, position_LD, lengths_B, gain, shift, dtype)


def masked_patch_embed_reference(
    signal: Tensor, keep_BK: Tensor, weight: Tensor, bias_D: Tensor, position_LD: Tensor, *,
    lengths_B: Tensor | None = None, gain: Tensor | None = None, shift: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The definition: normalise, cut off, patch, gather, project, add. The other paths are tested against this."""
    kind = torch.promote_types(weight.dtype, torch.float32)
    if gain is not None:
        signal = signal.to(kind) * gain.to(kind)
    if shift is not None:
        signal = signal.to(kind) + shift.to(kind)
    if lengths_B is not None:
        signal = signal.where(torch.arange(signal.shape[1], device=signal.device) < lengths_B[:, None], 0)
    patches_BLP = _patches_1d(signal, weight.shape[1]) if signal.ndim == 2 else _patches_2d(signal, *weight.shape[2:])
    kept_BKP = patches_BLP.gather(1, keep_BK[:, :, None].expand(-1, -1, patches_BLP.shape[2])).to(weight.dtype)
    tokens_BKD = F.linear(kept_BKP, weight.flatten(1), bias_D.to(weight.dtype))
    return (tokens_BKD + position_LD.to(weight.dtype)[keep_BK]).to(weight.dtype)


def _patches_1d(signal_BV: Tensor, patch: int) -> Tensor:
    return F.pad(signal_BV, (0, -signal_BV.shape[1] % patch)).unflatten(1, (-1, patch))


def _patches_2d(image_BCHW: Tensor, tall: int, wide: int) -> Tensor:
    whole = F.pad(image_BCHW, (0, -image_BCHW.shape[3] % wide, 0, -image_BCHW.shape[2] % tall))
    return whole.unflatten(3, (-1, wide)).unflatten(2, (-1, tall)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _like(part: Tensor | None, signal: Tensor) -> Tensor | None:
    return None if part is None else part.expand(signal.shape)


def _check(signal: Tensor, keep_BK: Tensor, weight: Tensor, bias_D: Tensor, position_LD: Tensor, lengths_B) -> None:
    """Refuse what does not fit together; places in ``keep_BK`` are not looked at, which would wait for a GPU."""
    if signal.ndim not in (2, 4) or weight.ndim != signal.ndim:
        raise ValueError(
            f"masked_patch_embed: signal {tuple(signal.shape)} and weight {tuple(weight.shape)}; expected (B, V) with "
            "(D, P), or (B, C, H, W) with (D, C, Y, X)."
        )
    length, width = len(position_LD), len(weight)
    patches = [-(-size // patch) for size, patch in zip(signal.shape[2:] or signal.shape[1:], _patch_of(weight))]
    floats = {"weight": weight, "bias": bias_D, "position": position_LD}
    wrong = [f"{name} of {part.dtype}" for name, part in floats.items() if not part.is_floating_point()]
    if signal.ndim == 4 and signal.shape[1] != weight.shape[1]:
        wrong.append(f"{signal.shape[1]} channels, and weights for {weight.shape[1]}")
    if math.prod(patches) != length:
        wrong.append(f"{' x '.join(map(str, patches))} patches, and positions for {length}")
    if tuple(bias_D.shape) != (width,) or tuple(position_LD.shape[1:]) != (width,):
        wrong.append(f"bias {tuple(bias_D.shape)} and position {tuple(position_LD.shape)} of a width of {width}")
    if keep_BK.ndim != 2 or len(keep_BK) != len(signal) or keep_BK.dtype != torch.int64:
        wrong.append(f"keep {tuple(keep_BK.shape)} of {keep_BK.dtype} for {len(signal)} samples, expected int64 (B, K)")
    if lengths_B is not None and (
        signal.ndim == 4 or tuple(lengths_B.shape) != (len(signal),) or lengths_B.dtype != torch.int64
    ):
        wrong.append(f"lengths {tuple(lengths_B.shape)} of {lengths_B.dtype}, expected int64 (B,), of signals only")
    if wrong:
        raise ValueError(f"masked_patch_embed: these do not fit together: {'; '.join(wrong)}.")


def _patch_of(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[2:] or weight.shape[1:])


def check_pair(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Tokens and gradients of small odd-shaped inputs, from the live path and from the definition.

    All numbers are small multiples of 1/8, which every precision of products holds.
    """

    def some(speed: float, *shape: int) -> Tensor:
        numbers = torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float32)
        return numbers.mul(speed).sin().mul(8).round().div(8).view(shape)

    keep_BK = torch.tensor([[4, 0, 2], [1, 4, 3]], device=device)
    ragged = {"lengths_B": torch.tensor([37, 35], device=device), "gain": some(5, 37).add(2), "shift": some(7, 2, 1)}
    pixels = some(3, 2, 3, 7, 4).mul(8).to(torch.int8).transpose(2, 3)
    cases = (
        (some(3, 2, 37), some(2, 5, 8), 5, {}),
        (some(3, 2, 37), some(2, 5, 8), 5, ragged),
        (pixels, some(2, 5, 3, 4, 1), 7, {"gain": some(5, 3, 1, 1), "shift": some(7, 3, 1, 1)}),
    )
    answers: list[list[Tensor]] = [[], []]
    for answer, embed in zip(answers, (masked_patch_embed, masked_patch_embed_reference)):
        for signal, weight, length, options in cases:
            leaves = [leaf.requires_grad_() for leaf in (weight.clone(), some(4, 5), some(6, length, 5))]
            with torch.enable_grad():
                tokens_BKD = embed(signal, keep_BK, *leaves, **options)
                answer += [tokens_BKD.detach(), *torch.autograd.grad(tokens_BKD, leaves, some(9, 2, 3, 5))]
    return tuple(answers[0]), tuple(answers[1])
