"""Blocked attention is the definition, in half precision on a CPU, for short sequences; others are PyTorch's."""

import pytest
import torch

from cadiff import attention as subject
from cadiff import attention_blocked
from cadiff.attention import attention, attention_packed, attention_reference
from cadiff.attention_blocked import BlockedAttention


def heads(samples, count, queries, keys, size, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((samples, count, queries, size), (samples, count, keys, size), (samples, count, keys, size))
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]


def compare(given, tolerance):
    """Values and gradients beside those of the definition in float64 on the same numbers."""
    grad = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).to(given[0].dtype)
    out = BlockedAttention.apply(*given)
    exact = [part.detach().double().requires_grad_() for part in given]
    expected = attention_reference(*exact)
    assert out.dtype == given[0].dtype and out.shape == expected.shape
    pairs = [(out, expected)]
    pairs += zip(torch.autograd.grad(out, given, grad), torch.autograd.grad(expected, exact, grad.double()))
    for found, wanted in pairs:
        assert (found.double() - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("shape", [(2, 3, 17, 17, 8), (1, 2, 5, 9, 4), (3, 1, 1, 1, 2), (2, 4, 33, 12, 1)])
def test_values_and_gradients_are_the_definitions(shape, dtype, tolerance):
    compare(heads(*shape, dtype), tolerance)


def test_a_last_block_may_be_smaller(monkeypatch):
    monkeypatch.setattr(attention_blocked, "_CACHE", 4 * 9 * 9 * 4)  # four of seven heads at a time
    compare(heads(1, 7, 9, 9, 4, torch.float32), 1e-6)
    compare(heads(3, 2, 9, 9, 4, torch.float32), 1e-6)  # two of three samples at a time


def test_large_scores_do_not_overflow():
    query, key, value = heads(1, 1, 6, 6, 8, torch.float32)
    with torch.no_grad():
        query.mul_(300)
    compare([query, key, value], 1e-5)


def test_only_what_came_is_kept_for_backward():
    qkv, kept = torch.randn(2, 40, 3, 2, 4).bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        out = BlockedAttention.apply(*qkv.permute(2, 0, 3, 1, 4).unbind())
    assert {part.untyped_storage().data_ptr() for part in kept} == {qkv.untyped_storage().data_ptr()}
    assert out.transpose(1, 2).is_contiguous()


def test_it_serves_transposed_heads_under_autocast():
    qkv = torch.randn(2, 10, 3, 2, 4, generator=torch.Generator().manual_seed(3)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
    exact = qkv.detach().double().requires_grad_()
    expected = attention_reference(*exact.permute(2, 0, 3, 1, 4).unbind())
    (found,), (wanted,) = torch.autograd.grad(out.sum(), qkv), torch.autograd.grad(expected.sum(), exact)
    assert (out.double() - expected).norm() <= 1e-2 * expected.norm()
    assert (found.double() - wanted).norm() <= 2e-2 * wanted.norm()


@pytest.fixture
def blocked(monkeypatch):
    """Count what reaches the blocked path."""
    calls = []
    true = BlockedAttention.apply
    monkeypatch.setattr(subject.BlockedAttention, "apply", lambda *given: calls.append(1) or true(*given))
    monkeypatch.setattr(subject, "_chosen", lambda kind: "blocked")
    return calls


@pytest.mark.parametrize(
    ("dtype", "tokens", "expected"),
    [(torch.bfloat16, 8, 1), (torch.float16, 8, 1), (torch.float32, 8, 0), (torch.bfloat16, 513, 0)],
)
def test_float32_and_long_sequences_are_pytorchs(blocked, dtype, tokens, expected):
    attention(*heads(1, 1, tokens, tokens, 4, dtype))
    assert len(blocked) == expected


def test_packed_sequences_take_it_by_length(blocked):
    packed = [torch.randn(14, 2, 4, generator=torch.Generator().manual_seed(k)).bfloat16() for k in range(3)]
    out = attention_packed(*packed, [4, 6, 4])
    assert len(blocked) == 2
    alone = attention_reference(*(part[4:10].double().transpose(0, 1)[None] for part in packed))[0].transpose(0, 1)
    assert (out[4:10].double() - alone).norm() <= 1e-2 * alone.norm()
