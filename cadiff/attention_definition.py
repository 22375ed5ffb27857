"""Attention as it is defined, with its whole matrix of scores; the fast paths are tested against this.

Legend: B samples, H heads, M queries, N keys of a sample, D head size, T queries and S keys of all sequences together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def attention_reference(q_BHMD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """The definition, with the whole M x N matrix. The others are tested against it."""
    scores_BHMN = q_BHMD @ k_BHND.transpose(-2, -1) / math.sqrt(q_BHMD.shape[-1])
    return scores_BHMN.softmax(dim=-1) @ v_BHND


def attention_packed_reference(
    q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, lengths_q: Sequence[int], lengths_k: Sequence[int]
) -> Tensor:
    """The definition, with the whole T x S matrix: a score between two sequences is -inf."""
    of_query_T, of_key_S = (
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(q_THD.device)
        for lengths in (lengths_q, lengths_k)
    )
    apart_TS = of_query_T[:, None] != of_key_S[None, :]
    scores_HTS = torch.einsum("thd,shd->hts", q_THD, k_SHD) / math.sqrt(q_THD.shape[-1])
    weights_HTS = scores_HTS.masked_fill(apart_TS, -math.inf).softmax(dim=-1)
    return (weights_HTS @ v_SHD.transpose(0, 1)).transpose(0, 1)
