"""Attention: every implementation gives the values and gradients of the definition, and says its name."""

import sys
from types import ModuleType

import pytest
import torch
from test_attention_packed import compare_with_definition as compare_packed
from test_attention_packed import draw_heads

from cadiff import attention as subject
from cadiff.attention import attention, attention_packed, attention_reference, describe_attention
from cadiff.errors import ConfigError


@pytest.fixture
def choose(monkeypatch):
    forget = subject._chosen.cache_clear

    def set_attention(value):
        monkeypatch.setenv("CADIFF_ATTENTION", value)
        forget()

    set_attention("auto")
    yield set_attention
    forget()


def compare_with_definition(B, H, M, N, D, device="cpu", dtype=torch.float32, atol=1e-5):
    source = torch.Generator().manual_seed(1)
    shapes = ((B, H, M, D), (B, H, N, D), (B, H, N, D))
    leaves = [torch.randn(*shape, generator=source).to(device, dtype).requires_grad_() for shape in shapes]
    floats = [leaf.detach().double().requires_grad_() for leaf in leaves]
    grad_BHMD = torch.randn(shapes[0], generator=source).to(device, dtype)
    live, wanted = attention(*leaves), attention_reference(*floats)
    assert live.shape == (B, H, M, D)
    assert live.dtype == dtype
    grads = torch.autograd.grad(live, leaves, grad_BHMD)
    for got, want in zip(
        (live, *grads), (wanted, *torch.autograd.grad(wanted, floats, grad_BHMD.double())), strict=True
    ):
        torch.testing.assert_close(got.double(), want, atol=atol, rtol=10 * atol)


def test_a_query_takes_the_value_of_the_key_it_matches():
    q_BHMD = torch.tensor([[[[100.0, 0.0]]]])
    k_BHND = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]])
    v_BHND = torch.tensor([[[[7.0, 8.0], [1.0, 2.0], [3.0, 4.0]]]])
    for function in (attention, attention_reference):
        torch.testing.assert_close(function(q_BHMD, k_BHND, v_BHND), torch.tensor([[[[7.0, 8.0]]]]))


@pytest.mark.parametrize("name", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize(
    ("B", "H", "M", "N", "D"), [(2, 4, 18, 18, 8), (1, 3, 5, 29, 7), (3, 1, 1, 1, 1)], ids=["self", "cross", "ones"]
)
def test_values_and_gradients_are_those_of_the_definition(choose, name, B, H, M, N, D):
    choose(name)
    compare_with_definition(B, H, M, N, D)


def test_half_precision_stays_close(choose):
    compare_with_definition(2, 2, 9, 4, 16, dtype=torch.bfloat16, atol=3e-2)


@pytest.mark.parametrize("name", ["sdpa", "reference"])
def test_one_compiled_graph_agrees_and_leaves_the_choice_outside(monkeypatch, name):
    def chosen(device_type):
        torch._dynamo.graph_break()  # like running xformers once: nothing to trace
        return name

    monkeypatch.setattr(subject, "_chosen", chosen)
    torch.compiler.reset()
    heads = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*heads), attention_reference(*heads))
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "said"), [("sdpa", "sdpa"), ("reference", "reference")])
def test_it_says_what_runs(choose, name, said):
    choose(name)
    assert describe_attention("cpu") == f"{said} (torch {torch.__version__.split('+')[0]}, cpu)"


def test_a_cpu_runs_blocked_attention_and_says_within_what_limits(choose):
    choose("auto")
    assert describe_attention("cpu").startswith("blocked (torch ")
    assert describe_attention("cpu").endswith("; half precision up to 512 tokens, else sdpa)")


def test_the_choice_is_made_once(choose, monkeypatch):
    choose("reference")
    describe_attention("cpu")
    monkeypatch.setenv("CADIFF_ATTENTION", "sdpa")
    assert describe_attention("cpu").startswith("reference")


def test_an_unknown_name_is_refused_with_the_known_ones(choose):
    choose("flash")
    with pytest.raises(ConfigError, match="'flash'; expected one of auto, xformers, sdpa, blocked, reference"):
        describe_attention("cpu")


def test_xformers_by_name_on_a_cpu_is_refused_with_a_remedy(choose):
    choose("xformers")
    with pytest.raises(ConfigError, match=r"no attention for a cpu; expected .* NVIDIA GPU.*CADIFF_ATTENTION=auto"):
        attention(*torch.zeros(3, 1, 1, 2, 2))
    with pytest.raises(ConfigError, match="no attention for a cpu"):
        attention_packed(*torch.zeros(3, 2, 1, 2), [2])


@pytest.mark.parametrize(
    ("lengths_q", "lengths_k", "complaint"),
    [
        ([3, 0, 2], None, r"lengths \[3, 0, 2\] for 5 queries; expected .* none empty"),
        ([3, 1], None, "for 5 queries; expected at least one sequence, none empty, adding up to 5"),
        ([-1, 6], None, "none empty"),
        ([], None, "at least one sequence"),
        ([3, 2], None, r"lengths \[3, 2\] for 6 keys.*give lengths_k where keys differ"),
        ([3, 2], [6, 0], "for 6 keys; .*Leave empty sequences out"),
        ([3, 2], [1, 2, 3], "2 lengths of queries and 3 of keys; expected one of each"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths_q, lengths_k, complaint):
    with pytest.raises(ConfigError, match=complaint):
        attention_packed(torch.zeros(5, 1, 2), *torch.zeros(2, 6, 1, 2), lengths_q, lengths_k)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ImportError("no module"), "cannot be imported"),
        (NotImplementedError("\nNo operator\nlong list"), r"does not run here \(NotImplementedError: No operator\)"),
        (RuntimeError(""), "does not run here"),
    ],
)
def test_a_gpu_where_xformers_fails_steps_aside_aloud(choose, monkeypatch, caplog, failure, reason):
    def fails(*_):
        raise failure

    monkeypatch.setattr(subject, "_probe_xformers", fails)
    assert describe_attention("cuda").startswith("sdpa")
    assert "Attention runs in PyTorch (sdpa), because xformers" in caplog.text
    choose("xformers")
    with pytest.raises(ConfigError, match=reason):
        describe_attention("cuda")


@pytest.fixture
def xformers_of_the_definition(monkeypatch):
    """An xformers that computes the definition in xformers' own layout: (batch, tokens, heads, head size)."""

    def memory_efficient_attention(*heads):
        assert [tensor.shape[2] for tensor in heads] == [3, 3, 3]
        with torch.autocast("cpu", enabled=False):
            return attention_reference(*(tensor.transpose(1, 2) for tensor in heads)).transpose(1, 2)

    xformers, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    xformers.__version__, xformers.ops, ops.memory_efficient_attention = "0.9", ops, memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", xformers)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(subject, "_probe_xformers", lambda device_type: None)


def test_where_xformers_runs_it_is_used_in_its_own_layout(choose, monkeypatch, xformers_of_the_definition):
    assert describe_attention("cuda") == "xformers (xformers 0.9, cuda)"
    monkeypatch.setattr(subject, "_chosen", lambda device_type: "xformers")
    compare_with_definition(2, 3, 5, 7, 4)


@pytest.mark.parametrize("name", ["sdpa", "reference", "xformers"])
def test_every_implementation_follows_autocast(monkeypatch, xformers_of_the_definition, name):
    monkeypatch.setattr(subject, "_chosen", lambda device_type: name)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(*torch.ones(3, 1, 3, 4, 2))
    assert torch.equal(mixed, torch.ones(1, 3, 4, 2, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("D", [16, 32, 64])
@pytest.mark.parametrize(("M", "N"), [(29, 29), (18, 33)], ids=["self", "cross"])
@pytest.mark.parametrize("name", ["auto", "xformers"])
def test_gpu_attention_is_that_of_the_definition(choose, name, M, N, D):
    pytest.importorskip("xformers")
    choose(name)
    assert describe_attention("cuda").startswith("xformers")
    for dtype, atol in ((torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)):
        compare_with_definition(2, 4, M, N, D, device="cuda", dtype=dtype, atol=atol)


@pytest.fixture
def real_xformers(monkeypatch):
    pytest.importorskip("xformers")
    assert subject._why_no_xformers("cuda") is None
    monkeypatch.setattr(subject, "_chosen", lambda device_type: "xformers")


GPU_LENGTHS = [33, 1, 64, 257, 18]


@pytest.mark.gpu
@pytest.mark.parametrize("D", [16, 32, 64])
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)], ids=str
)
@pytest.mark.parametrize("lengths_k", [None, [5, 129, 1, 31, 77]], ids=["self", "cross"])
def test_gpu_packed_attention_is_that_of_the_definition(real_xformers, D, dtype, atol, lengths_k):
    heads = draw_heads(GPU_LENGTHS, lengths_k, 4, D, dtype, "cuda")
    compare_packed(attention_packed, heads, GPU_LENGTHS, lengths_k, atol)


@pytest.mark.gpu
def test_gpu_packed_attention_takes_slices_autocast_and_compile(real_xformers):
    qkv_T3HD = torch.randn(60, 3, 4, 32, generator=torch.Generator().manual_seed(5)).to("cuda", torch.bfloat16)
    slices = [heads_THD.requires_grad_() for heads_THD in qkv_T3HD.unbind(1)]
    compare_packed(attention_packed, slices, [7, 53], None, 5e-2)
    floats = draw_heads([7, 53], None, 4, 32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert compare_packed(attention_packed, floats, [7, 53], None, 5e-2).dtype == torch.bfloat16
    compare_packed(torch.compile(attention_packed, backend="aot_eager"), slices, [7, 53], None, 5e-2)


@pytest.mark.gpu
def test_gpu_attention_without_xformers_is_that_of_the_definition(monkeypatch):
    monkeypatch.setattr(subject, "_chosen", lambda device_type: "sdpa")
    for lengths_k in (None, [5, 129, 1, 31, 77]):
        heads = draw_heads(GPU_LENGTHS, lengths_k, 4, 32, torch.bfloat16, "cuda")
        compare_packed(attention_packed, heads, GPU_LENGTHS, lengths_k, 5e-2)
