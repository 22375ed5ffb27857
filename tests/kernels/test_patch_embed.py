"""Masked patch embedding in PyTorch does what it says; patch_triton_cases.py compares the Triton kernels with it."""

import pytest
import torch
import torch.nn.functional as F

from cadiff.kernels import patch_embed_torch
from cadiff.kernels.patch_embed import check_pair, masked_patch_embed, masked_patch_embed_reference
from cadiff.kernels.patch_embed_ops import patch_embed_gradient, plain_patch_embed


@pytest.fixture(params=["reference", "torch"], autouse=True)
def backend(request, choose):
    choose(request.param)
    return request.param


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def test_kept_patches_are_projected_and_hidden_ones_are_not():
    signal_BV = torch.arange(12.0).view(1, 12)  # patches [0..3], [4..7], [8..11]
    keep_BK = torch.tensor([[2, 0]])
    bias_D, position_LD = torch.tensor([0.5]), torch.tensor([[100.0], [200.0], [300.0]])
    tokens_BKD = masked_patch_embed(signal_BV, keep_BK, torch.ones(1, 4), bias_D, position_LD)
    assert tokens_BKD.shape == (1, 2, 1)
    assert tokens_BKD.flatten().tolist() == [8 + 9 + 10 + 11 + 0.5 + 300, 0 + 1 + 2 + 3 + 0.5 + 100]


def test_a_partial_last_patch_is_completed_with_zeros():
    signal_BV, keep_BK, weight_DP = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1]]), torch.tensor([[10.0, 7.0]])
    tokens_BKD = masked_patch_embed(signal_BV, keep_BK, weight_DP, torch.zeros(1), torch.zeros(2, 1))
    assert tokens_BKD.item() == 30


def test_stored_numbers_are_normalised_first_and_cut_off_then():
    signal_BV = torch.tensor([[1, -2, 3], [4, 5, 6]], dtype=torch.int8)
    keep_BK, weight_DP = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 100.0]])
    tokens_BKD = masked_patch_embed(
        signal_BV, keep_BK, weight_DP, torch.zeros(1), torch.zeros(2, 1), lengths_B=torch.tensor([3, 1]),
        gain=torch.tensor([2.0, 3.0, 4.0]), shift=torch.tensor([[1.0], [0.5]]),
    )  # fmt: skip
    assert tokens_BKD.flatten().tolist() == [3 - 500, 13, 0, 8.5]  # the shift does not reach behind a length


@pytest.mark.parametrize("last", ["columns", "colours"])
def test_images_are_embedded_as_a_convolution_does_it(last):
    pixels, weight, bias = (normal(2, 3, 8, 12) * 30).to(torch.uint8), normal(5, 3, 4, 2), normal(5)
    if last == "colours":
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    position_LD, keep_BK = normal(12, 5), torch.tensor([[11, 0, 7], [3, 6, 2]])
    gain, shift = torch.rand(3, 1, 1), normal(3, 1, 1)
    whole = F.conv2d(pixels * gain + shift, weight, bias, stride=(4, 2)).flatten(2).transpose(1, 2) + position_LD
    wanted_BKD = torch.stack([rows[keep] for rows, keep in zip(whole, keep_BK)])
    tokens_BKD = masked_patch_embed(pixels, keep_BK, weight, bias, position_LD, gain=gain, shift=shift)
    torch.testing.assert_close(tokens_BKD, wanted_BKD, atol=1e-3, rtol=1e-5)  # sums of numbers up to 100


@pytest.mark.parametrize("voxels", [4, 9], ids=["a patch too short", "too long"])
def test_a_signal_of_the_wrong_length_is_refused(voxels):
    with pytest.raises(ValueError, match=rf"{-(-voxels // 4)} patches, and positions for 2"):
        masked_patch_embed(
            torch.zeros(1, voxels), torch.tensor([[0]]), torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, 3)
        )


@pytest.mark.parametrize(
    ("pixels", "weight", "lengths", "why"),
    [
        ((1, 3, 8, 8), (2, 3, 4, 2), None, "2 x 4 patches, and positions for 4"),
        ((1, 1, 8, 8), (2, 3, 4, 4), None, "1 channels, and weights for 3"),
        ((1, 3, 8, 8), (2, 48), None, r"signal \(1, 3, 8, 8\) and weight \(2, 48\); expected"),
        ((1, 3, 8, 8), (2, 3, 4, 4), torch.tensor([8]), "of signals only"),
        ((1, 8), (2, 2), torch.tensor([8.0]), r"lengths \(1,\) of torch.float32, expected int64"),
        ((1, 8), (2, 1, 2), None, r"signal \(1, 8\) and weight \(2, 1, 2\); expected"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(pixels, weight, lengths, why):
    args = (torch.zeros(pixels), torch.tensor([[0]]), torch.zeros(weight), torch.zeros(2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=why):
        masked_patch_embed(*args, lengths_B=lengths)


@pytest.mark.parametrize(
    ("place", "part", "why"),
    [
        (1, torch.zeros(2, 1, dtype=torch.int64), r"keep \(2, 1\) of torch.int64 for 3 samples"),
        (1, torch.zeros(3, 1), r"keep \(3, 1\) of torch.float32"),
        (2, torch.zeros(5, 4, dtype=torch.int8), "weight of torch.int8"),
        (3, torch.zeros(1), r"bias \(1,\) and position \(2, 5\) of a width of 5"),
        (4, torch.zeros(2, 4), r"bias \(5,\) and position \(2, 4\) of a width of 5"),
    ],
)
def test_parts_that_a_kernel_would_read_beyond_are_refused(place, part, why):
    args = [
        torch.zeros(3, 8),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.zeros(5, 4),
        torch.zeros(5),
        torch.zeros(2, 5),
    ]
    masked_patch_embed(*args)
    args[place] = part
    with pytest.raises(ValueError, match=why):
        masked_patch_embed(*args)


def test_gradients_are_those_of_finite_differences():
    signal_BV, keep_BK = normal(2, 11, dtype=torch.float64), torch.tensor([[3, 0], [1, 3]])
    leaves = [normal(*shape, dtype=torch.float64).requires_grad_() for shape in ((5, 3), (5,), (4, 5))]
    assert torch.autograd.gradcheck(lambda *weights: masked_patch_embed(signal_BV, keep_BK, *weights), leaves)


@pytest.mark.parametrize("learned", [0, 1, 2], ids=["weight", "bias", "position"])
def test_gradients_are_given_only_where_asked(learned):
    weights = [normal(3, 4), normal(3), normal(3, 3)]
    weights[learned].requires_grad_()
    answers = [
        torch.autograd.grad(embed(normal(2, 12), torch.tensor([[2, 0], [1, 2]]), *weights).sum(), weights[learned])[0]
        for embed in (masked_patch_embed, masked_patch_embed_reference)
    ]
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize(
    ("place", "wanted"), [(0, [0, 0, 6, 6]), (1, [0, 0, 15, 15]), (2, [0, 0, 3, 3])], ids=["signal", "gain", "shift"]
)
def test_a_signal_gain_or_shift_that_wants_a_gradient_gets_one(place, wanted):
    parts = [torch.full((1, 4), 5.0), torch.full((4,), 2.0), torch.zeros(4)]
    parts[place].requires_grad_()
    rest = (torch.tensor([[1]]), torch.ones(3, 2), torch.zeros(3), torch.zeros(2, 3))
    tokens_BKD = masked_patch_embed(parts[0], *rest, gain=parts[1], shift=parts[2])
    assert torch.autograd.grad(tokens_BKD.sum(), parts[place])[0].flatten().tolist() == wanted


def test_tokens_have_the_dtype_of_the_weights_and_stay_close_under_autocast():
    signal_BV, keep_BK = torch.randn(2, 32), torch.tensor([[1, 0], [1, 3]])
    weight_DP, bias_D, position_LD = torch.randn(6, 8), torch.randn(6), torch.randn(4, 6)
    exact = masked_patch_embed_reference(signal_BV, keep_BK, weight_DP, bias_D, position_LD)
    halves = masked_patch_embed(signal_BV, keep_BK, weight_DP.bfloat16(), bias_D.bfloat16(), position_LD)
    assert halves.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = masked_patch_embed(signal_BV, keep_BK, weight_DP, bias_D, position_LD)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.1, rtol=0.02)
    torch.testing.assert_close(halves.float(), exact, atol=0.1, rtol=0.02)


def test_gradients_under_autocast_are_those_of_products_in_half_precision(backend):
    signal_BV, keep_BK, grad_BKD = normal(9, 32), torch.arange(4).expand(9, 4), normal(9, 4, 6)
    leaves = [normal(*shape).requires_grad_() for shape in ((6, 8), (6,), (4, 6))]
    with torch.autocast("cpu", torch.bfloat16):
        grads = torch.autograd.grad(masked_patch_embed(signal_BV, keep_BK, *leaves), leaves, grad_BKD)
    exact = torch.autograd.grad(masked_patch_embed_reference(signal_BV, keep_BK, *leaves), leaves, grad_BKD)
    for got, wanted in zip(grads, exact):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, atol=0.1, rtol=0.02)
    assert not torch.equal(grads[0], exact[0])
    if backend == "torch":  # what is not multiplied is not rounded
        torch.testing.assert_close(grads[2], exact[2])


def test_pieces_change_nothing_and_the_bits_are_the_same_every_time(monkeypatch):
    signal_BV, keep_BK, grad_BKD = normal(40, 60), torch.rand(40, 15).argsort(1)[:, :4], normal(40, 4, 7)
    leaves = [normal(*shape).bfloat16().requires_grad_() for shape in ((7, 4), (7,), (15, 7))]

    def answer():
        tokens_BKD = masked_patch_embed(signal_BV, keep_BK, *leaves)
        return tokens_BKD, *torch.autograd.grad(tokens_BKD, leaves, grad_BKD.bfloat16())

    whole, again = answer(), answer()
    monkeypatch.setattr(patch_embed_torch, "CHUNK", 7 * 33)
    for one, other, pieces in zip(whole, again, answer()):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, pieces)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)], ids=["no sample", "nothing kept"])
def test_an_empty_batch_has_no_tokens_and_no_gradient(shape):
    leaves = [normal(*size).requires_grad_() for size in ((3, 4), (3,), (2, 3))]
    tokens_BKD = masked_patch_embed(normal(shape[0], 8), torch.zeros(shape, dtype=torch.int64), *leaves)
    assert tokens_BKD.shape == (*shape, 3)
    assert all(not grad.any() for grad in torch.autograd.grad(tokens_BKD.sum(), leaves))


def operator_inputs(ragged):
    """An 8-bit signal in a stride of two, with and without all that is optional."""
    signal_BCHW = (normal(2, 1, 1, 22) * 30).to(torch.int8)[..., ::2]
    more = (torch.tensor([11, 5]), torch.rand(11).expand(2, 1, 1, 11), normal(2, 1, 1, 1).expand(2, 1, 1, 11))
    return signal_BCHW, torch.tensor([[3, 0], [1, 3]]), more if ragged else (None, None, None)


@pytest.mark.parametrize("ragged", [False, True], ids=["plain", "ragged"])
@pytest.mark.parametrize("learned", [True, False], ids=["all learned", "position fixed"])
def test_operators_are_what_pytorch_expects(ragged, learned):
    signal_BCHW, keep_BK, more = operator_inputs(ragged)
    leaves = (normal(5, 1, 1, 3).requires_grad_(), normal(5).requires_grad_(), normal(4, 5).requires_grad_(learned))
    torch.library.opcheck(plain_patch_embed, (signal_BCHW, keep_BK, *leaves, *more, torch.float32))
    args = (signal_BCHW, keep_BK, normal(2, 2, 5), *more, [1, 1, 3], 4, torch.float32, [True, True, learned])
    torch.library.opcheck(patch_embed_gradient, args)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_it_compiles_without_a_break(half):
    def loss(signal, keep_BK, gain, *leaves):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return masked_patch_embed(signal, keep_BK, *leaves, gain=gain).square().sum()

    leaves = [normal(*shape).requires_grad_() for shape in ((5, 3, 2, 2), (5,), (6, 5))]
    inputs = (normal(2, 3, 4, 6), torch.tensor([[3, 0], [1, 5]]), torch.rand(3, 1, 1))
    torch.compiler.reset()  # what was compiled for another backend
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    told, wanted = (f(*inputs, *leaves) for f in (compiled, loss))
    torch.testing.assert_close(told, wanted)
    torch.testing.assert_close(torch.autograd.grad(told, leaves), torch.autograd.grad(wanted, leaves))


def test_it_passes_its_own_check_to_the_bit():
    for live, wanted in zip(*check_pair(torch.device("cpu")), strict=True):
        assert torch.equal(live, wanted)
