"""Masked patch embedding in Triton against float64 and its reference, forward and every gradient.

Not collected by name: test_triton.py runs this file in a process of its own, once in Triton's interpreter on the CPU
and once natively on a GPU, because Triton decides at its first import which of the two it is.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from test_patch_embed_properties import close_to_float64, worlds

from cadiff.kernels import triton_patch_embed
from cadiff.kernels.mask import Masking
from cadiff.kernels.patch_embed import check_pair, masked_patch_embed, masked_patch_embed_reference
from cadiff.kernels.patch_embed_ops import patch_embed_gradient, plain_patch_embed

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SMALL = {"BLOCK_M": 16, "BLOCK_D": 16, "BLOCK_P": 16, "num_warps": 4, "num_stages": 2}


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles, splits and blocks of a patch even of a small batch."""
    monkeypatch.setattr(triton_patch_embed, "FORWARD", SMALL)
    monkeypatch.setattr(triton_patch_embed, "_PROGRAMS", 6)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def keep_of(batch, length, ratio):
    noise_BL = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return Masking.from_noise(noise_BL, ratio).keep_BK


@pytest.mark.parametrize(
    ("B", "L", "ratio", "P", "D", "missing"),
    [
        (2, 8, 0.5, 16, 64, 0),
        (1, 262, 0.75, 16, 33, 0),
        (3, 5, 0.0, 16, 1, 3),
        (5, 7, 0.5, 5, 41, 4),
        (9, 30, 0.75, 1, 3, 0),
        (1, 2, 0.5, 40, 70, 39),
    ],
    ids=["round", "HCP", "nothing hidden, width one", "odd", "one voxel per patch", "one voxel in the last patch"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_signals(B, L, ratio, P, D, missing, dtype):
    keep_BK = keep_of(B, L, ratio)
    leaves = [normal(*shape, dtype=dtype) for shape in ((D, P), (D,), (L, D))]
    grad_DBK = normal(D, *keep_BK.shape, dtype=dtype)  # its tokens' gradient is not contiguous, as often
    close_to_float64((normal(B, L * P - missing, dtype=dtype), keep_BK, leaves, grad_DBK, {}))


@pytest.mark.parametrize("stored", [torch.uint8, torch.float16], ids=["uint8", "fp16"])
def test_images_by_blocks_of_a_patch(small_tiles, stored):
    pixels = (normal(2, 3, 30, 21) * 20 + 60).to(stored).contiguous(memory_format=torch.channels_last)
    keep_BK = keep_of(2, 12, 0.5)
    leaves = [normal(*shape) for shape in ((20, 3, 10, 6), (20,), (12, 20))]
    told = {"gain": normal(3, 1, 1), "shift": normal(2, 3, 1, 1)}
    close_to_float64((pixels, keep_BK, leaves, normal(20, *keep_BK.shape), told))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(worlds(DEVICE))
def test_any_batch_has_the_values_and_gradients_of_float64(world):
    close_to_float64(world)


def test_many_rows_are_summed_in_order_and_the_same_every_time(small_tiles):
    keep_BK = keep_of(21, 20, 0.25)  # 315 rows are 20 blocks: 6 programs sum 4 blocks each, the last none
    leaves = [normal(*shape) for shape in ((8, 4), (8,), (20, 8))]
    world = (normal(21, 80), keep_BK, leaves, normal(8, *keep_BK.shape), {})
    close_to_float64(world)
    for leaf in leaves:
        leaf.requires_grad_()
    once, again = (
        torch.autograd.grad(masked_patch_embed(world[0], keep_BK, *leaves).square().sum(), leaves) for _ in range(2)
    )
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("learned", [0, 1, 2], ids=["weight", "bias", "position"])
def test_gradients_are_given_only_where_asked(learned):
    weights = [normal(3, 4), normal(3), normal(3, 3)]
    weights[learned].requires_grad_()
    keep_BK = torch.tensor([[2, 0], [1, 2]], device=DEVICE)
    answers = [
        torch.autograd.grad(embed(normal(2, 12), keep_BK, *weights).square().sum(), weights[learned])[0]
        for embed in (masked_patch_embed, masked_patch_embed_reference)
    ]
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)], ids=["no sample", "nothing kept"])
def test_an_empty_batch_has_no_tokens_and_no_gradient(shape):
    leaves = [normal(*size).requires_grad_() for size in ((3, 4), (3,), (2, 3))]
    keep_BK = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    tokens_BKD = masked_patch_embed(normal(shape[0], 8), keep_BK, *leaves)
    assert tokens_BKD.shape == (*shape, 3)
    assert all(not grad.any() for grad in torch.autograd.grad(tokens_BKD.sum(), leaves))


def test_a_signal_that_wants_a_gradient_steps_aside():
    signal_BV, keep_BK = normal(1, 8).requires_grad_(), torch.tensor([[1]], device=DEVICE)
    rest = (torch.ones(3, 4, device=DEVICE), torch.zeros(3, device=DEVICE), torch.zeros(2, 3, device=DEVICE))
    (grad_BV,) = torch.autograd.grad(masked_patch_embed(signal_BV, keep_BK, *rest).sum(), signal_BV)
    assert grad_BV.tolist() == [[0, 0, 0, 0, 3, 3, 3, 3]]


def test_under_autocast_products_are_half_precision_and_tokens_are_not():
    keep_BK, leaves = keep_of(2, 4, 0.5), [normal(*shape).requires_grad_() for shape in ((6, 8), (6,), (4, 6))]
    with torch.autocast(DEVICE, torch.bfloat16):
        mixed = masked_patch_embed(normal(2, 32), keep_BK, *leaves)
    exact = masked_patch_embed_reference(normal(2, 32), keep_BK, *leaves)
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0.02)


def test_operators_are_what_pytorch_expects():
    signal_BCHW, keep_BK = normal(2, 1, 1, 22)[..., ::2], torch.tensor([[3, 0], [1, 3]], device=DEVICE)
    leaves = (normal(5, 1, 1, 3).requires_grad_(), normal(5).requires_grad_(), normal(4, 5).requires_grad_())
    more = (torch.tensor([11, 5], device=DEVICE), normal(11).expand(2, 1, 1, 11), None)
    torch.library.opcheck(plain_patch_embed, (signal_BCHW, keep_BK, *leaves, *more, torch.float32))
    args = (signal_BCHW, keep_BK, normal(2, 2, 5), *more, [1, 1, 3], 4, torch.float32, [True, True, False])
    torch.library.opcheck(patch_embed_gradient, args)


def test_it_passes_its_own_check():
    for live, wanted in zip(*check_pair(torch.device(DEVICE)), strict=True):
        torch.testing.assert_close(live, wanted)
