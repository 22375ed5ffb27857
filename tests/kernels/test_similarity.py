"""InfoNCE: the number by hand, chunks equal to the definition, and two ranks equal to one process with all the data."""

import math

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from cadiff.kernels import similarity
from cadiff.kernels.similarity import info_nce, info_nce_reference


def draw(*shapes, dtype=torch.float32):
    source = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, generator=source).to(dtype).requires_grad_() for shape in shapes]


def loss_and_gradients(loss_of, leaves, *args, **kwargs):
    loss = loss_of(*leaves, *args, **kwargs)
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def test_the_loss_of_two_samples_by_hand():
    anchor_BF = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target_BF = torch.tensor([[5.0, 0.0], [1.0, 1.0]])  # cosines: 1 and 0.7071; 0 and 0.7071
    c = math.sqrt(0.5)
    by_hand = (math.log(math.exp(2) + math.exp(2 * c)) - 2 + math.log(1 + math.exp(2 * c)) - 2 * c) / 2
    for loss_of in (info_nce, info_nce_reference):
        assert loss_of(anchor_BF, target_BF, 0.5).item() == pytest.approx(by_hand, rel=1e-6)


def test_it_is_the_anchors_that_choose_among_targets():
    anchor_BF, target_BF = draw((4, 3), (4, 3))
    assert info_nce(anchor_BF, target_BF, 0.1).item() != pytest.approx(
        info_nce(target_BF, anchor_BF, 0.1).item(), rel=1e-3
    )


@pytest.mark.parametrize(("B", "F"), [(2, 1), (3, 41), (16, 272), (65, 130)])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("chunk", [1, 200, 1 << 22], ids=["row by row", "a few rows", "at once"])
def test_value_and_gradients_equal_the_definition(B, F, temperature, chunk, monkeypatch):
    monkeypatch.setattr(similarity, "_CHUNK", chunk)
    leaves = draw((B, F), (B, F))
    got = loss_and_gradients(info_nce, leaves, temperature)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for mine, wanted in zip(got, loss_and_gradients(info_nce_reference, doubles, temperature), strict=True):
        torch.testing.assert_close(mine, wanted.float(), atol=2e-5 / temperature, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    leaves = draw((7, 33), (7, 33), dtype=dtype)
    got = loss_and_gradients(info_nce, leaves, 0.1)
    assert [tensor.dtype for tensor in got] == [torch.float32, dtype, dtype]
    floats = [leaf.detach().float().requires_grad_() for leaf in leaves]
    for mine, wanted in zip(got, loss_and_gradients(info_nce_reference, floats, 0.1), strict=True):
        torch.testing.assert_close(mine.float(), wanted, atol=2e-3, rtol=1e-2)


def test_autocast_changes_neither_loss_nor_gradients():
    leaves = draw((9, 20), (9, 20))
    plain = loss_and_gradients(info_nce, leaves, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss_and_gradients(info_nce, leaves, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


@pytest.mark.parametrize("learned", [0, 1], ids=["anchors", "targets"])
def test_only_the_side_that_asks_gets_a_gradient(learned):
    leaves = draw((6, 5), (6, 5))
    both = loss_and_gradients(info_nce, leaves, 0.1)[1 + learned]
    leaves[1 - learned].requires_grad_(False)
    assert torch.equal(torch.autograd.grad(info_nce(*leaves, 0.1), leaves[learned])[0], both)


def test_a_large_batch_never_holds_the_whole_matrix(monkeypatch):
    sizes = []
    multiply = torch.mm

    def spy(one, other, out=None):
        product = multiply(one, other) if out is None else multiply(one, other, out=out)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch, "mm", spy)
    monkeypatch.setattr(similarity, "_CHUNK", 1000)
    loss_and_gradients(info_nce, draw((100, 3), (100, 3)), 0.1)
    assert len(sizes) == 30  # ten chunks: forward, recomputed in backward, gradient of the anchors
    assert max(sizes) == 1000


def test_a_sample_without_negatives_has_no_loss_but_keeps_the_graph():
    leaves = draw((1, 8), (1, 8))
    for negatives in ("micro", "global"):
        loss, *grads = loss_and_gradients(info_nce, leaves, 0.1, negatives=negatives)
        assert loss.item() == 0
        assert all(grad.abs().sum() == 0 for grad in grads)


def test_a_flat_signal_gives_finite_gradients():
    leaves = draw((4, 6), (4, 6))
    with torch.no_grad():
        leaves[0][2] = 0
    assert all(tensor.isfinite().all() for tensor in loss_and_gradients(info_nce, leaves, 0.1))


def _one_rank(rank: int, world: int, meeting: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    for batch in (1, 5):
        _compare_with_one_process(rank, world, batch)
    distributed.destroy_process_group()


def _compare_with_one_process(rank: int, world: int, batch: int) -> None:
    """The mean over ranks of this rank's loss and gradients against one process with the global batch."""
    source = torch.Generator().manual_seed(9)
    x_NI, y_NI = (torch.randn(world * batch, 6, generator=source) for _ in range(2))
    weights = [torch.randn(6, 11, generator=source, requires_grad=True) for _ in range(2)]
    own = slice(rank * batch, (rank + 1) * batch)

    def gradients(rows, loss_of, learned):
        loss = loss_of(x_NI[rows] @ weights[0], y_NI[rows] @ weights[1])
        return loss.detach(), torch.autograd.grad(loss, learned)

    for learned in (weights, weights[:1]):
        weights[1].requires_grad_(len(learned) == 2)
        loss, grads = gradients(own, lambda a, t: info_nce(a, t, 0.1, negatives="global"), learned)
        for tensor in (loss, *grads):
            distributed.all_reduce(tensor)
            tensor /= world
        wanted_loss, wanted = gradients(slice(None), lambda a, t: info_nce_reference(a, t, 0.1), learned)
        torch.testing.assert_close(loss, wanted_loss, atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(grads, wanted, strict=True):
            assert theirs.abs().max() > 0.01
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    local = info_nce(x_NI[own] @ weights[0], y_NI[own] @ weights[1], 0.1, negatives="micro")
    torch.testing.assert_close(local, info_nce_reference(x_NI[own] @ weights[0], y_NI[own] @ weights[1], 0.1))


@pytest.mark.multiprocess
def test_two_ranks_with_global_negatives_have_the_gradient_of_one_process(tmp_path):
    torch.multiprocessing.spawn(_one_rank, (2, str(tmp_path / "meeting")), nprocs=2)
