"""Lean linear layers give PyTorch's numbers to the bit, and keep less for backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cadiff.layers import Block, CrossLayer, VitLayer, run_layers
from cadiff.lean import Activated, LeanLinear, LeanNorm, Normed, gelu
from cadiff.tracking import read_metrics

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
LAYERS = {
    "block": lambda: Block(16, 2, 2.0),
    "vit": lambda: VitLayer(16, 2, 24),
    "cross": lambda: CrossLayer(16, 2, 24),
}


@pytest.fixture
def plain(monkeypatch):
    """Calls a function with PyTorch's own linear layers."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(
                LeanLinear, "forward", lambda self, rows: nn.Linear.forward(self, getattr(rows, "rows_RD", rows))
            )
            return function(*args)

    return call


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer whose parameters are no round numbers, and what it reads."""
    torch.manual_seed(0)
    layer = LAYERS[request.param]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    tokens, memory = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    return layer, [tokens, memory] if request.param == "cross" else [tokens]


def outcome(layer, given, dtype, checkpoint=False):
    """The layer's output and all gradients."""
    given = [part.clone().requires_grad_() for part in given]
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        beside = [part * 1 for part in given[1:]]  # autocast casts a leaf once for all who read it
        out = run_layers([layer], given[0], *beside, checkpoint=checkpoint)
    out.sum().backward()
    grads = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    return [out, *[part.grad for part in given], *grads]


def same(ones, others):
    return len(ones) == len(others) and all(torch.equal(one, other) for one, other in zip(ones, others))


@HALF
def test_under_autocast_values_and_gradients_are_pytorchs_to_the_bit(plain, case, dtype):
    assert same(outcome(*case, dtype), plain(outcome, *case, dtype))


def test_without_autocast_they_are_too(plain, case):
    assert same(outcome(*case, None), plain(outcome, *case, None))


@HALF
def test_recomputing_layers_changes_no_bit(case, dtype):
    assert same(outcome(*case, dtype, checkpoint=True), outcome(*case, dtype))


def test_without_a_graph_values_are_the_same(case):
    layer, given = case
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            bare = layer(*given)
        assert torch.equal(bare, layer(*given))


def test_packed_rows_are_taken_too(plain):
    torch.manual_seed(0)
    block, tokens = Block(16, 2, 2.0), torch.randn(7, 16)

    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            out = block(tokens, [3, 4])
        return [out, *torch.autograd.grad(out.sum(), list(block.parameters()))]

    assert same(gradients(), plain(gradients))


def test_frozen_weights_get_no_gradient_and_let_it_through(plain):
    torch.manual_seed(0)
    block, tokens = Block(16, 2, 2.0).requires_grad_(False), torch.randn(2, 5, 16)
    block.norm2.weight.requires_grad_()
    block.mlp.fc1.bias.requires_grad_()
    found, wanted = outcome(block, [tokens], torch.bfloat16), plain(outcome, block, [tokens], torch.bfloat16)
    assert [part is None for part in found] == [part is None for part in wanted]
    assert same([part for part in found if part is not None], [part for part in wanted if part is not None])
    assert block.mlp.fc2.weight.grad is None


def kept_bytes(function, parameters):
    """Bytes of what a function's graph keeps beside parameters; views of one tensor count once."""
    held, own = {}, {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def keep(part):
        held[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes(), part
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part), torch.autocast("cpu", torch.bfloat16):
        function()
    return sum(size for place, (size, _) in held.items() if place not in own)


def test_a_block_keeps_eighteen_bytes_per_token_and_unit_of_width_and_no_weights(plain):
    block, tokens = Block(32, 1, 1.0), torch.randn(4, 64, 32, requires_grad=True)
    units = tokens.numel()
    lean = kept_bytes(lambda: block(tokens), block.parameters())
    usual = plain(kept_bytes, lambda: block(tokens), block.parameters())
    small = 4 * (4 * tokens.shape[0] * tokens.shape[1] + 4 * 32)  # what LayerNorms keep of rows, and their copies
    assert lean <= 18 * units + small + 2 * 2048  # behind what qkv and fc1 made
    assert usual >= 24 * units + 2 * sum(p.numel() for p in block.parameters() if p.ndim == 2)


def test_several_layers_that_read_one_norm_keep_its_rows_once():
    norm, layers = LeanNorm(8), [LeanLinear(8, 8) for _ in range(3)]
    rows = torch.randn(5, 8, requires_grad=True)

    def three():
        normed = norm(rows)
        return sum(layer(normed) for layer in layers)

    parameters = [p for part in (norm, *layers) for p in part.parameters()]
    assert kept_bytes(three, parameters) <= 4 * (rows.numel() + 2 * 5 + 2 * 8)


def test_a_norm_and_gelu_say_what_their_rows_are_made_of():
    rows, norm = torch.randn(3, 8), LeanNorm(8, eps=1e-3)
    nn.init.normal_(norm.weight)
    for made in (norm(rows), gelu(rows)):
        again, kept = made.recipe()
        assert torch.equal(again(*kept), made.rows_RD)
    assert isinstance(norm(rows), Normed) and isinstance(gelu(rows), Activated)
    assert torch.equal(norm(rows).rows_RD, F.layer_norm(rows, (8,), norm.weight, norm.bias, 1e-3))


def test_weights_may_leave_between_forward_and_backward(case):
    """As under ZeRO-3, which empties each parameter's data after its module ran and fills it in again in backward."""
    layer, given = case
    wanted = outcome(layer, given, torch.bfloat16)
    given = [part.clone().requires_grad_() for part in given]
    whole = {name: part.data for name, part in layer.named_parameters() if part.ndim == 2}
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(given[0], *[part * 1 for part in given[1:]])
    for name in whole:
        layer.get_parameter(name).data = torch.empty(0)
    for name, data in whole.items():
        layer.get_parameter(name).data = data.clone()
        data.fill_(float("nan"))
    out.sum().backward()
    grads = [parameter.grad for parameter in layer.parameters()]
    assert same([out, *[part.grad for part in given], *grads], wanted)


def test_a_compiled_block_agrees():
    torch.manual_seed(0)
    block, given = Block(16, 2, 2.0), [torch.randn(2, 5, 16)]
    wanted = outcome(block, given, torch.bfloat16)
    torch.compiler.reset()
    block.compile(backend="aot_eager")
    found = outcome(block, given, torch.bfloat16)
    torch.compiler.reset()
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()


@pytest.mark.multiprocess
def test_every_zero_stage_trains_alike_in_bf16_with_all_parameters_split(warm, tiny_job, tmp_path):
    text = tiny_job(tmp_path / "job.toml", "phase1").read_text()
    text = text.replace('"fp32"', '"bf16"').replace("log_every = 4", "log_every = 1").replace("steps = 12", "steps = 6")
    keys = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    text += "\n".join(["[engine.deepspeed.zero_optimization]", *(f"stage3_{key} = 0" for key in keys), ""])
    (tmp_path / "job.toml").write_text(text)

    def curves(world, *names):
        log, folder = tmp_path / f"{world}.txt", tmp_path / str(world)
        codes = warm.run("zero_rank:main", [str(tmp_path / "job.toml"), str(folder), list(names)], log, world)
        assert codes == [0] * world, log.read_text()[-4000:]
        lines = {name: read_metrics(folder / name.replace(" ", "_")) for name in names}
        return {name: [line["train/loss"] for line in of if "train/loss" in line] for name, of in lines.items()}

    (alone,) = curves(1, "zero=0 accumulate=1 recompute=0").values()
    assert len(alone) == 6
    kinds = ("zero=2 accumulate=1 recompute=0", "zero=3 accumulate=1 recompute=0", "zero=3 accumulate=2 recompute=1")
    for name, curve in curves(2, *kinds).items():
        assert max(abs(one - other) / other for one, other in zip(curve, alone, strict=True)) < 1e-2, name
