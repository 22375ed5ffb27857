"""Scaled dot-product attention with one interface: xformers, PyTorch's own, our own for CPUs, and the definition.

    out = softmax(q k^T / sqrt(D)) v          (Vaswani et al., 2017, eq. 1)

``attention`` takes samples of one length. ``attention_packed`` takes sequences of any lengths laid end to end, each of
which attends to its own alone: the scores form a block-diagonal T x S matrix, of which only the blocks are computed.

The environment variable CADIFF_ATTENTION decides: auto (default: xformers on a GPU if it is installed and runs there,
blocked on a CPU, otherwise sdpa), xformers, sdpa (torch.nn.functional.scaled_dot_product_attention), blocked (on a CPU,
in half precision and up to 512 tokens, cadiff.attention_blocked; else sdpa) or reference.

Legend: B samples, H heads, M queries, N keys of a sample, D head size, T queries and S keys of all sequences together.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.attention_blocked import LONGEST, BlockedAttention, fits
from cadiff.attention_definition import attention_packed_reference, attention_reference
from cadiff.errors import ConfigError

_log = logging.getLogger(__name__)
_CHOICES = ("auto", "xformers", "sdpa", "blocked", "reference")
_HALF = (torch.bfloat16, torch.float16)


def attention(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Let every query attend to all keys of its sample and head.

    Args:
        q_BHMD, k_BHND, v_BHND: float32, float16 or bfloat16, the same for all three; M and N may differ.

    Returns:
        (B, H, M, D) in the same dtype.

    Raises:
        ConfigError: CADIFF_ATTENTION names an implementation that cannot run here.
    """
    return _PLAIN[_live(q_BHMD.device.type)](q_BHMD, k_BHND, v_BHND)


def attention_packed(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    lengths_q: Sequence[int] | Tensor,
    lengths_k: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Let every query attend to all keys of its own sequence and head; sequences lie end to end.

    Args:
        q_THD, k_SHD, v_SHD: float32, float16 or bfloat16, the same for all three.
        lengths_q: queries of each sequence: integers, or int64 (sequences,). They sum to T, and none is 0. A tensor
            breaks a compiled graph, and one on a GPU makes the host wait for it; a list does neither.
        lengths_k: keys of each sequence, in the same way; they sum to S. Without it, the same as ``lengths_q``.

    Returns:
        (T, H, D) in the same dtype.

    Raises:
        ConfigError: a sequence is empty, the lengths do not add up or are of unequal number, or CADIFF_ATTENTION names
            an implementation that cannot run here.
    """
    shapes = [tuple(part.shape) for part in (q_THD, k_SHD, v_SHD)]
    if any(len(shape) != 3 for shape in shapes) or shapes[1] != shapes[2] or shapes[0][1:] != shapes[1][1:]:
        raise ConfigError(
            f"Packed attention: queries {shapes[0]}, keys {shapes[1]} and values {shapes[2]}; expected (T, H, D), "
            "(S, H, D) and (S, H, D). Lay sequences end to end, without a batch."
        )
    numbers_q = _checked_lengths(lengths_q, q_THD.shape[0], "queries")
    numbers_k = _checked_lengths(numbers_q if lengths_k is None else lengths_k, k_SHD.shape[0], "keys")
    if len(numbers_q) != len(numbers_k):
        raise ConfigError(
            f"Packed attention: {len(numbers_q)} lengths of queries and {len(numbers_k)} of keys; expected one of each "
            "for every sequence. Give the two lists for the same batch."
        )
    return _PACKED[_live(q_THD.device.type)](q_THD, k_SHD, v_SHD, numbers_q, numbers_k)


def describe_attention(device: torch.device | str) -> str:
    """Say what runs on ``device``, such as "sdpa (torch 2.13.0, cpu)", for the start-up print."""
    kind = torch.device(device).type
    chosen = _live(kind)
    if chosen == "xformers":
        import xformers

        return f"xformers (xformers {xformers.__version__}, {kind})"
    limits = f"; half precision up to {LONGEST} tokens, else sdpa" if chosen == "blocked" else ""
    return f"{chosen} (torch {torch.__version__.split('+')[0]}, {kind}{limits})"


def _checked_lengths(lengths: Sequence[int] | Tensor, rows: int, of_what: str) -> list[int]:
    numbers = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    if not numbers or min(numbers) < 1 or sum(numbers) != rows:
        raise ConfigError(
            f"Packed attention: lengths {str(numbers)[:60]} for {rows} {of_what}; expected at least one sequence, none "
            f"empty, adding up to {rows}. Leave empty sequences out, and give lengths_k where keys differ from queries."
        )
    return numbers


@torch.compiler.disable  # loops over heads, which a graph would unroll
def _attention_blocked(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    alike = q_BHMD.dtype == k_BHND.dtype == v_BHND.dtype and q_BHMD.device.type == "cpu"
    if alike and q_BHMD.dtype in _HALF and fits(q_BHMD, k_BHND):
        return BlockedAttention.apply(q_BHMD, k_BHND, v_BHND)
    return F.scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND)


def _attention_xformers(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q_BMHD, k_BNHD, v_BNHD = (_as_xformers_takes(heads).transpose(1, 2) for heads in (q_BHMD, k_BHND, v_BHND))
    return memory_efficient_attention(q_BMHD, k_BNHD, v_BNHD).transpose(1, 2)


@torch.compiler.disable  # the bias holds integers of the host, which would tie a graph to one list of lengths
def _packed_xformers(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, lengths_q: list[int], lengths_k: list[int]) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = _block_diagonal(tuple(lengths_q), tuple(lengths_k), q_THD.device)
    q_1THD, k_1SHD, v_1SHD = (_as_xformers_takes(heads)[None] for heads in (q_THD, k_SHD, v_SHD))
    return memory_efficient_attention(q_1THD, k_1SHD, v_1SHD, attn_bias=bias)[0]


@functools.lru_cache(maxsize=8)  # every layer asks for the same few of its batch, and each is a copy to the GPU
def _block_diagonal(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], device: torch.device) -> object:
    from xformers.ops.fmha import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(lengths_q, lengths_k, device=device)


def _as_xformers_takes(heads: Tensor) -> Tensor:
    """The same with its last dimension unbroken, and in the dtype of autocast, which xformers does not know of."""
    kind = heads.device.type
    if torch.is_autocast_enabled(kind):
        heads = heads.to(torch.get_autocast_dtype(kind))
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def _packed_by_length(
    attend: Callable[..., Tensor],
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    lengths_q: list[int],
    lengths_k: list[int],
) -> Tensor:
    # Sequences of the same lengths go together: as many groups as subjects, and nothing is computed for padding (1.3 to
    # 1.9 times faster than padded, by bench_attention.py).
    # A compiled graph takes them one by one: groups would tie it to one list of lengths, and compile at every batch.
    groups: dict[object, list[int]] = {}
    for index, both in enumerate(zip(lengths_q, lengths_k)):
        groups.setdefault(index if torch.compiler.is_compiling() else both, []).append(index)
    parts = q_THD.split(lengths_q), k_SHD.split(lengths_k), v_SHD.split(lengths_k)
    mixed: list[Tensor] = [q_THD] * len(lengths_q)
    for members in groups.values():
        q_BHMD, k_BHND, v_BHND = (torch.stack([part[i] for i in members]).transpose(1, 2) for part in parts)
        out_BMHD = attend(q_BHMD, k_BHND, v_BHND).transpose(1, 2)
        for index, out_MHD in zip(members, out_BMHD.unbind()):
            mixed[index] = out_MHD
    return torch.cat(mixed)


_PLAIN = {
    "xformers": _attention_xformers,
    "sdpa": F.scaled_dot_product_attention,
    "blocked": _attention_blocked,
    "reference": attention_reference,
}
_PACKED = {
    "xformers": _packed_xformers,
    "sdpa": functools.partial(_packed_by_length, F.scaled_dot_product_attention),
    "blocked": functools.partial(_packed_by_length, _attention_blocked),
    "reference": attention_packed_reference,
}


@torch.compiler.assume_constant_result
def _live(device_type: str) -> str:
    return _chosen(device_type)


@functools.cache
def _chosen(device_type: str) -> str:
    """Choose an implementation for a kind of device ("cpu", "cuda"); later calls repeat the first answer."""
    asked = os.environ.get("CADIFF_ATTENTION", "auto")
    if asked not in _CHOICES:
        raise ConfigError(f"CADIFF_ATTENTION is {asked!r}; expected one of {', '.join(_CHOICES)}.")
    if asked in ("sdpa", "blocked", "reference") or (asked == "auto" and device_type != "cuda"):
        return asked if asked != "auto" else "blocked"
    problem = _why_no_xformers(device_type)
    if problem is None:
        return "xformers"
    if asked == "xformers":
        raise ConfigError(
            f"CADIFF_ATTENTION=xformers, but {problem}; expected xformers built for this PyTorch, on an NVIDIA GPU. "
            "Install one that matches torch, or set CADIFF_ATTENTION=auto."
        )
    _log.warning("Attention runs in PyTorch (sdpa), because %s.", problem)
    return "sdpa"


def _why_no_xformers(device_type: str) -> str | None:
    """What keeps xformers from running on this kind of device, or None after it has run once, forward and backward."""
    if device_type != "cuda":
        return f"xformers has no attention for a {device_type}"
    try:
        _probe_xformers(device_type)
    except ImportError as missing:
        return f"xformers cannot be imported ({missing})"
    except (NotImplementedError, RuntimeError) as refusal:
        first_line = str(refusal).strip().partition("\n")[0]
        return f"xformers does not run here ({type(refusal).__name__}: {first_line})"
    return None


def _probe_xformers(device_type: str) -> None:
    # What training and sampling run in, with the narrow heads of the autoencoders and the one wide head of cin256.
    dtypes = [torch.float32, *[torch.bfloat16] * torch.cuda.is_bf16_supported(including_emulation=False)]
    for dtype in dtypes:
        for size in (16, 64, 512):
            probe_BHMD = torch.ones(1, 1, 8, size, device=device_type, dtype=dtype, requires_grad=True)
            with torch.enable_grad():
                torch.autograd.grad(_attention_xformers(probe_BHMD, probe_BHMD, probe_BHMD).sum(), probe_BHMD)
        for size in (16, 64):
            probe_THD = torch.ones(8, 1, size, device=device_type, dtype=dtype, requires_grad=True)
            with torch.enable_grad():
                mixed_THD = _packed_xformers(probe_THD, probe_THD, probe_THD, [5, 3], [2, 6])
                torch.autograd.grad(mixed_THD.sum(), probe_THD)
