"""Every Triton kernel against its reference, forward and every gradient, on odd shapes.

Not collected by name: test_triton.py runs this file in a process of its own, once in Triton's interpreter on the CPU
and once natively on a GPU, because Triton decides at its first import which of the two it is.
"""

import os

import pytest
import torch

from cadiff.kernels import dispatch, triton_patch_embed
from cadiff.kernels.mask import Masking
from cadiff.kernels.patch_embed import masked_patch_embed, masked_patch_embed_reference
from cadiff.kernels.similarity import info_nce, info_nce_reference

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# In bfloat16 the reference itself rounds after each step; the kernel rounds once.
DTYPES = [(torch.float32, 1e-5, 1e-4), (torch.float16, 4e-3, 4e-3), (torch.bfloat16, 4e-2, 2e-2)]


def compare(live, reference, leaves, grad, atol, rtol):
    answers = []
    for function in (live, reference):
        out = function(*leaves)
        answers.append((out.detach(), *torch.autograd.grad(out, leaves, grad)))
    for got, wanted in zip(*answers, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)


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
@pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES, ids=["fp32", "fp16", "bf16"])
def test_patch_embedding(B, L, ratio, P, D, missing, dtype, atol, rtol):
    torch.manual_seed(0)
    signal_BV = torch.randn(B, L * P - missing, device=DEVICE)
    keep_BK = Masking.from_noise(torch.rand(B, L, device=DEVICE), ratio).keep_BK
    leaves = [torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_() for shape in ((D, P), (D,), (L, D))]
    signal_BV = signal_BV.to(dtype)  # the reference multiplies in the weights' dtype
    grad_DBK = torch.randn(D, B, keep_BK.shape[1], device=DEVICE).to(dtype)
    scale = max(1.0, (B * keep_BK.shape[1]) ** 0.5)
    compare(
        lambda *weights: masked_patch_embed(signal_BV, keep_BK, *weights),
        lambda *weights: masked_patch_embed_reference(signal_BV, keep_BK, *weights),
        leaves,
        grad_DBK.permute(1, 2, 0),  # not contiguous, as gradients often are
        atol * scale,
        rtol,
    )


def test_patch_embedding_sums_many_rows_in_order_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(triton_patch_embed, "_SPLITS", 3)
    torch.manual_seed(0)
    B, L, P, D = 21, 20, 4, 8  # 315 rows are 10 blocks: splits of 4, 4 and 2 blocks
    signal_BV = torch.randn(B, L * P, device=DEVICE)
    keep_BK = Masking.from_noise(torch.rand(B, L, device=DEVICE), 0.25).keep_BK
    leaves = [torch.randn(*shape, device=DEVICE, requires_grad=True) for shape in ((D, P), (D,), (L, D))]
    grad_BKD = torch.randn(B, keep_BK.shape[1], D, device=DEVICE)

    def gradients(embed):
        return torch.autograd.grad(embed(signal_BV, keep_BK, *leaves), leaves, grad_BKD)

    once, again, wanted = (gradients(e) for e in (masked_patch_embed, masked_patch_embed, masked_patch_embed_reference))
    for one, other, reference in zip(once, again, wanted, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learned", [0, 1, 2], ids=["weight", "bias", "position"])
def test_patch_embedding_gives_gradients_only_where_asked(learned):
    torch.manual_seed(0)
    signal_BV, keep_BK = torch.randn(2, 12, device=DEVICE), torch.tensor([[2, 0], [1, 2]], device=DEVICE)
    weights = [torch.randn(*shape, device=DEVICE) for shape in ((3, 4), (3,), (3, 3))]
    weights[learned].requires_grad_()
    answers = [
        torch.autograd.grad(embed(signal_BV, keep_BK, *weights).square().sum(), weights[learned])[0]
        for embed in (masked_patch_embed, masked_patch_embed_reference)
    ]
    torch.testing.assert_close(*answers)


def test_patch_embedding_of_a_signal_that_wants_a_gradient_steps_aside():
    signal_BV = torch.randn(1, 8, device=DEVICE, requires_grad=True)
    keep_BK = torch.tensor([[1]], device=DEVICE)
    rest = (torch.ones(3, 4, device=DEVICE), torch.zeros(3, device=DEVICE), torch.zeros(2, 3, device=DEVICE))
    (grad_BV,) = torch.autograd.grad(masked_patch_embed(signal_BV, keep_BK, *rest).sum(), signal_BV)
    assert grad_BV.tolist() == [[0, 0, 0, 0, 3, 3, 3, 3]]


@pytest.mark.parametrize(("B", "F"), [(2, 1), (3, 41), (64, 64), (65, 33), (130, 70)])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_info_nce(B, F, temperature):
    torch.manual_seed(0)
    leaves = [torch.randn(B, F, device=DEVICE, requires_grad=True) for _ in range(2)]
    compare(
        lambda *pair: info_nce(*pair, temperature),
        lambda *pair: info_nce_reference(*pair, temperature),
        leaves,
        torch.tensor(0.7, device=DEVICE),
        2e-5 / temperature,
        1e-4,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_in_half_precision(dtype):
    torch.manual_seed(0)
    leaves = [torch.randn(7, 33, device=DEVICE).to(dtype).requires_grad_() for _ in range(2)]
    one = torch.tensor(1.0, device=DEVICE)
    compare(
        lambda *pair: info_nce(*pair, 0.1),
        lambda *pair: info_nce_reference(*(side.float() for side in pair), 0.1),
        leaves,
        one,
        2e-3,
        1e-2,
    )


def test_triton_is_what_runs_and_passes_its_own_check():
    assert dispatch.describe(DEVICE)["kernels"] == ("triton interpreter" if DEVICE == "cpu" else "triton")
    dispatch.self_check(DEVICE)
