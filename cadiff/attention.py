"""Scaled dot-product attention with one interface: xformers where it runs, PyTorch's own elsewhere, and the definition.

    out = softmax(q k^T / sqrt(D)) v          (Vaswani et al., 2017, eq. 1)

The environment variable CADIFF_ATTENTION decides: auto (default: xformers on a GPU if it is installed and runs there,
otherwise sdpa), xformers, sdpa (torch.nn.functional.scaled_dot_product_attention) or reference.

Legend: B samples, H heads, M queries, N keys, D head size.
"""

from __future__ import annotations

import functools
import logging
import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.errors import ConfigError

_log = logging.getLogger(__name__)
_CHOICES = ("auto", "xformers", "sdpa", "reference")


def attention(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Let every query attend to all keys of its sample and head.

    Args:
        q_BHMD, k_BHND, v_BHND: float32, float16 or bfloat16, the same for all three; M and N may differ.

    Returns:
        (B, H, M, D) in the same dtype.

    Raises:
        ConfigError: CADIFF_ATTENTION names an implementation that cannot run here.
    """
    return _IMPLEMENTATIONS[_chosen(q_BHMD.device.type)](q_BHMD, k_BHND, v_BHND)


def attention_reference(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """The definition, with the whole M x N matrix. The others are tested against it."""
    scores_BHMN = q_BHMD @ k_BHND.transpose(-2, -1) / math.sqrt(q_BHMD.shape[-1])
    return scores_BHMN.softmax(dim=-1) @ v_BHND


def describe_attention(device: torch.device | str) -> str:
    """Say what runs on ``device``, such as "sdpa (torch 2.13.0, cpu)", for the start-up print."""
    kind = torch.device(device).type
    chosen = _chosen(kind)
    if chosen == "xformers":
        import xformers

        return f"xformers (xformers {xformers.__version__}, {kind})"
    return f"{chosen} (torch {torch.__version__.split('+')[0]}, {kind})"


def _attention_xformers(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q_BMHD, k_BNHD, v_BNHD = (heads.transpose(1, 2) for heads in (q_BHMD, k_BHND, v_BHND))
    return memory_efficient_attention(q_BMHD, k_BNHD, v_BNHD).transpose(1, 2)


_IMPLEMENTATIONS = {
    "xformers": _attention_xformers,
    "sdpa": F.scaled_dot_product_attention,
    "reference": attention_reference,
}


@functools.cache
def _chosen(device_type: str) -> str:
    """Choose an implementation for a kind of device ("cpu", "cuda"); later calls repeat the first answer."""
    asked = os.environ.get("CADIFF_ATTENTION", "auto")
    if asked not in _CHOICES:
        raise ConfigError(f"CADIFF_ATTENTION is {asked!r}; expected one of {', '.join(_CHOICES)}.")
    if asked in ("sdpa", "reference") or (asked == "auto" and device_type != "cuda"):
        return asked if asked != "auto" else "sdpa"
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
