"""Attention over sequences laid end to end: each sees itself alone, in every implementation, forward and backward."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cadiff import attention as subject
from cadiff.attention import attention_packed, attention_packed_reference, attention_reference

CASES = {
    "ragged": ([3, 7, 1, 5], None),
    "one sequence": ([9], None),
    "ones": ([1, 1, 1], None),
    "a few of each length": ([4, 2, 4, 4, 2], None),
    "cross": ([3, 1, 6], [5, 8, 1]),
    "cross of one": ([2], [11]),
}
every_case = pytest.mark.parametrize(("lengths_q", "lengths_k"), CASES.values(), ids=CASES)


@pytest.fixture(params=["sdpa", "reference", "xformers"])
def live(request, monkeypatch):
    """Each implementation in turn; xformers is a stand-in with its layout, mask and demands, but no kernels."""
    if request.param == "xformers":
        xformers, ops, fmha = (ModuleType(name) for name in ("xformers", "xformers.ops", "xformers.ops.fmha"))
        ops.memory_efficient_attention, fmha.BlockDiagonalMask = blockwise, Blocks
        for module in (xformers, ops, fmha):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        subject._block_diagonal.cache_clear()
    monkeypatch.setattr(subject, "_chosen", lambda device_type: request.param)
    yield request.param
    subject._block_diagonal.cache_clear()


class Blocks:
    made = 0

    def __init__(self, lengths_q, lengths_k):
        self.lengths_q, self.lengths_k = lengths_q, lengths_k

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert not isinstance(q_seqlen, torch.Tensor)
        assert len(q_seqlen) == len(kv_seqlen)
        cls.made += 1
        return cls(q_seqlen, kv_seqlen)


def blockwise(query, key, value, attn_bias=None):
    if attn_bias is None:
        return attention_reference(*(heads.transpose(1, 2) for heads in (query, key, value))).transpose(1, 2)
    assert [heads.shape[0] for heads in (query, key, value)] == [1, 1, 1]
    assert [heads.stride(-1) for heads in (query, key, value)] == [1, 1, 1]
    assert query.dtype == key.dtype == value.dtype
    parts = query[0].split(attn_bias.lengths_q), key[0].split(attn_bias.lengths_k), value[0].split(attn_bias.lengths_k)
    with torch.autocast(query.device.type, enabled=False):
        mixed = [
            attention_reference(*(part.transpose(0, 1) for part in block)).transpose(0, 1) for block in zip(*parts)
        ]
    return torch.cat(mixed)[None]


def draw_heads(lengths_q, lengths_k, H=2, D=4, dtype=torch.float32, device="cpu"):
    source = torch.Generator().manual_seed(3)
    rows = [sum(lengths_q), *[sum(lengths_k or lengths_q)] * 2]
    return [torch.randn(T, H, D, generator=source).to(device, dtype).requires_grad_() for T in rows]


def compare_with_definition(function, heads, lengths_q, lengths_k, atol=1e-5):
    """Compare values and the three gradients with the definition in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in heads]
    wanted = attention_packed_reference(*exact, lengths_q, lengths_k or lengths_q)
    source = torch.Generator().manual_seed(4)
    grad_THD = torch.randn(wanted.shape, generator=source).to(heads[0].device)
    mixed = function(*heads, lengths_q, lengths_k)
    assert mixed.shape == heads[0].shape
    grads = torch.autograd.grad(mixed, heads, grad_THD.to(mixed.dtype))
    exact_grads = torch.autograd.grad(wanted, exact, grad_THD.double())
    for got, want in zip((mixed, *grads), (wanted, *exact_grads), strict=True):
        torch.testing.assert_close(got.double(), want, atol=atol, rtol=10 * atol)
    return mixed


@every_case
def test_the_definition_is_plain_attention_of_each_sequence(lengths_q, lengths_k):
    heads = [tensor.double() for tensor in draw_heads(lengths_q, lengths_k)]
    parts = [tensor.split(lengths) for tensor, lengths in zip(heads, [lengths_q, *[lengths_k or lengths_q] * 2])]
    alone = [attention_reference(*(part.transpose(0, 1) for part in sequence)) for sequence in zip(*parts)]
    wanted = torch.cat([mixed_HMD.transpose(0, 1) for mixed_HMD in alone])
    torch.testing.assert_close(attention_packed_reference(*heads, lengths_q, lengths_k or lengths_q), wanted)


@every_case
def test_values_and_gradients_are_those_of_the_definition(live, lengths_q, lengths_k):
    mixed = compare_with_definition(attention_packed, draw_heads(lengths_q, lengths_k), lengths_q, lengths_k)
    assert mixed.dtype == torch.float32


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    cross=st.booleans(),
    H=st.integers(1, 3),
    D=st.sampled_from([1, 3, 8]),
)
def test_any_lengths_heads_and_sizes_agree(lengths, cross, H, D):
    lengths_q, lengths_k = [pair[0] for pair in lengths], [pair[1] for pair in lengths] if cross else None
    compare_with_definition(attention_packed, draw_heads(lengths_q, lengths_k, H, D), lengths_q, lengths_k)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("lengths_k", [None, [6, 3, 9]], ids=["self", "cross"])
def test_half_precision_stays_close(live, dtype, atol, lengths_k):
    heads = draw_heads([5, 1, 8], lengths_k, D=16, dtype=dtype)
    assert compare_with_definition(attention_packed, heads, [5, 1, 8], lengths_k, atol).dtype == dtype


def test_slices_of_one_projection_and_strided_heads_agree(live):
    qkv_T3HD = torch.randn(11, 3, 2, 4, generator=torch.Generator().manual_seed(5))
    slices = [heads_THD.requires_grad_() for heads_THD in qkv_T3HD.unbind(1)]
    strided = [heads_THD.detach()[..., ::2].requires_grad_() for heads_THD in slices]
    assert not any(heads.is_contiguous() for heads in (*slices, *strided))
    for heads in (slices, strided):
        compare_with_definition(attention_packed, heads, [4, 7], None)


def test_a_sequence_does_not_feel_the_others(live):
    q_THD, k_THD, v_THD = draw_heads([3, 4], None)
    mixed = attention_packed(q_THD, k_THD, v_THD, [3, 4])
    for grad in torch.autograd.grad(mixed[:3].square().sum(), (q_THD, k_THD, v_THD)):
        assert grad[:3].abs().sum() > 0
        assert grad[3:].abs().sum() == 0


@pytest.mark.parametrize("live", ["sdpa"], indirect=True)
def test_the_whole_matrix_is_neither_made_nor_kept(live):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.extend(tensor.numel() for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor))
            return made

    heads = draw_heads([20] * 16, None, H=1, D=8)
    with Watch():
        attention_packed(*heads, [20] * 16).sum().backward()
    assert max(sizes) <= 16 * 20 * 20 < (16 * 20) ** 2


def test_lengths_may_be_a_tensor_as_the_stream_gives_them(live):
    heads = draw_heads([3, 4], [2, 6])
    wanted = attention_packed(*heads, [3, 4], [2, 6])
    assert torch.equal(attention_packed(*heads, torch.tensor([3, 4]), torch.tensor([2, 6])), wanted)


def test_autocast_gives_its_own_dtype_and_the_gradients_of_the_inputs(live):
    heads = draw_heads([5, 2], [3, 3], D=16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compare_with_definition(attention_packed, heads, [5, 2], [3, 3], atol=5e-2)
    assert mixed.dtype == torch.bfloat16


@pytest.fixture
def graphs():
    """A torch.compile that counts the graphs it makes."""

    def compile_counted(function, **options):
        from torch._dynamo.backends.debugging import aot_eager

        def counting(graph, inputs):
            compile_counted.count += 1
            return aot_eager(graph, inputs)

        return torch.compile(function, backend=counting, **options)

    compile_counted.count = 0
    torch.compiler.reset()
    yield compile_counted
    torch.compiler.reset()


@pytest.mark.parametrize("lengths_k", [None, [2, 5, 4]], ids=["self", "cross"])
def test_a_compiled_graph_agrees(live, graphs, lengths_k):
    compiled = graphs(attention_packed, fullgraph=live != "xformers")
    compare_with_definition(compiled, draw_heads([3, 3, 7], lengths_k), [3, 3, 7], lengths_k)
    assert graphs.count == (live != "xformers")


@pytest.mark.parametrize("live", ["sdpa", "reference"], indirect=True)
def test_a_compiled_graph_serves_other_lengths(live, graphs):
    compiled = graphs(attention_packed, fullgraph=True)
    for lengths in ([3, 5, 7], [4, 4, 9], [6, 3, 5], [8, 8, 2], [5, 4, 3], [9, 2, 2], [7, 7, 7], [2, 3, 4]):
        compare_with_definition(compiled, draw_heads(lengths, None), lengths, None)
    assert graphs.count <= 4


def test_lengths_as_a_tensor_compile_around_a_break(live, graphs):
    compiled = graphs(attention_packed)
    heads = draw_heads([3, 6], None)
    wanted = attention_packed(*heads, [3, 6])
    torch.testing.assert_close(compiled(*heads, torch.tensor([3, 6])), wanted)


@pytest.mark.parametrize("live", ["xformers"], indirect=True)
def test_layers_of_a_batch_share_one_mask(live):
    heads, before = draw_heads([3, 6], None), Blocks.made
    for _ in range(3):
        attention_packed(*heads, [3, 6])
    assert Blocks.made == before + 1
    attention_packed(*heads, [6, 3])
    assert Blocks.made == before + 2


@pytest.mark.parametrize("live", ["xformers"], indirect=True)
def test_xformers_is_not_called_live_before_its_packed_form_ran_both_ways(live, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    backward = []

    def packed(query, key, value, attn_bias=None):
        if attn_bias is not None:
            query = query * 1
            query.register_hook(lambda grad: backward.append(grad.dtype))
        return blockwise(query, key, value, attn_bias)

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", packed)
    subject._probe_xformers("cpu")
    assert set(backward) == {torch.float32, torch.bfloat16}
    monkeypatch.delattr(sys.modules["xformers.ops.fmha"], "BlockDiagonalMask")
    subject._block_diagonal.cache_clear()
    with pytest.raises(ImportError):
        subject._probe_xformers("cpu")
