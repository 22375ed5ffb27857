"""The contrastive loss: numbers by hand, tiles equal to the definition, policies, cached negatives, memory."""

import itertools
import math

import pytest
import torch
from similarity_world import answer, close, draw, some_pairs, truth

from cadiff.errors import ConfigError
from cadiff.kernels import similarity_torch
from cadiff.kernels.pairs import REPEATS, SUBJECTS, Pairs
from cadiff.kernels.similarity import Cached, info_nce, info_nce_reference
from cadiff.kernels.similarity_ops import plain_similarity, similarity_gradient


@pytest.fixture(params=["at once", "by tiles"])
def tiles(request, monkeypatch):
    if request.param == "by tiles":
        monkeypatch.setattr(similarity_torch, "TILE", 40)
        monkeypatch.setattr(similarity_torch, "BLOCK", 60)
        monkeypatch.setattr(similarity_torch, "KEEP", 0)


def test_the_loss_of_two_samples_by_hand():
    anchor_BF = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target_BF = torch.tensor([[5.0, 0.0], [1.0, 1.0]])  # cosines: 1 and 0.7071; 0 and 0.7071
    c = math.sqrt(0.5)
    rows = (math.log(math.exp(2) + math.exp(2 * c)) - 2 + math.log(1 + math.exp(2 * c)) - 2 * c) / 2
    columns = (math.log(math.exp(2) + 1) - 2 + math.log(2 * math.exp(2 * c)) - 2 * c) / 2
    for loss_of in (info_nce, info_nce_reference):
        assert loss_of(anchor_BF, target_BF, 0.5).item() == pytest.approx(rows, rel=1e-6)
        both = loss_of(anchor_BF, target_BF, 0.5, symmetric=True).item()
        assert both == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_policies_by_hand():
    cosines = torch.tensor([[1.0, 0.5, -0.5], [0.5, 1.0, 0.0], [-0.5, 0.0, 1.0]])
    anchor_BF, target_BF = cosines.double(), torch.eye(3).double()
    anchor_BF = torch.linalg.vector_norm(anchor_BF, dim=1, keepdim=True).reciprocal() * anchor_BF
    e, s = torch.exp(anchor_BF), anchor_BF
    seen = torch.tensor([7, 7, -1])
    dropped = -sum(
        math.log(e[i, i] / sum(e[i, j] for j in range(3) if (i, j) not in ((0, 1), (1, 0)))) for i in range(3)
    )
    more = sum(math.log(e[i].sum()) for i in range(3)) - (s[0, :2].mean() + s[1, :2].mean() + s[2, 2])
    for loss_of in (info_nce, info_nce_reference):
        got = loss_of(anchor_BF, target_BF, 1.0, pairs=Pairs(seen, "drop")).item()
        assert got == pytest.approx(dropped / 3, rel=1e-9)
        got = loss_of(anchor_BF, target_BF, 1.0, pairs=Pairs(seen, "positive")).item()
        assert got == pytest.approx(more.item() / 3, rel=1e-9)
        one_each = Pairs(subject_B=torch.arange(3), subjects="within")
        assert loss_of(anchor_BF, target_BF, 1.0, pairs=one_each).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("symmetric", [False, True], ids=["one direction", "symmetric"])
@pytest.mark.parametrize(("repeats", "subjects"), list(itertools.product(REPEATS, SUBJECTS)))
def test_values_and_gradients_equal_the_definition_under_every_policy(repeats, subjects, symmetric, tiles):
    for batch, features in ((1, 3), (2, 1), (19, 7), (33, 5)):
        leaves = [*draw((batch, features), (batch, features)), torch.tensor(0.2)]
        options = {"symmetric": symmetric, "pairs": some_pairs(batch, repeats, subjects)}
        close(answer(info_nce, leaves, **options), truth(leaves, **options), 1e-4)
        doubles = [leaf.double() for leaf in leaves]
        close(answer(info_nce, doubles, **options), truth(leaves, **options), 1e-10)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 1.0, 100.0])
def test_extreme_temperatures(temperature, tiles):
    leaves = draw((16, 40), (16, 40))
    close(answer(info_nce, leaves, temperature), truth(leaves, temperature), 1e-6 / min(temperature, 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    leaves = draw((7, 33), (7, 33), dtype=dtype)
    got = answer(info_nce, leaves, 0.1, symmetric=True)
    assert [tensor.dtype for tensor in got] == [torch.float32, dtype, dtype]
    close(got, truth(leaves, 0.1, symmetric=True), 1e-2)


def test_autocast_changes_neither_loss_nor_gradients():
    leaves = draw((9, 20), (9, 20))
    plain = answer(info_nce, leaves, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = answer(info_nce, leaves, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


@pytest.mark.parametrize("learned", [0, 1], ids=["anchors", "targets"])
def test_only_the_side_that_asks_gets_a_gradient(learned):
    leaves = draw((6, 5), (6, 5))
    both = answer(info_nce, leaves, 0.1)[1 + learned]
    leaves[1 - learned].requires_grad_(False)
    assert torch.equal(torch.autograd.grad(info_nce(*leaves, 0.1), leaves[learned])[0], both)


def test_a_large_batch_never_holds_the_whole_matrix(monkeypatch):
    sizes = []
    multiply = torch.mm

    def spy(one, other, out):
        sizes.append(out.numel())
        return multiply(one, other, out=out)

    monkeypatch.setattr(torch, "mm", spy)
    for name, value in (("TILE", 1000), ("KEEP", 0), ("BLOCK", 150)):
        monkeypatch.setattr(similarity_torch, name, value)
    answer(info_nce, draw((100, 3), (100, 3)), 0.1)
    assert len(sizes) == 20  # two columns of five tiles: forward, and made again in backward
    assert max(sizes) <= 1000


def test_what_is_kept_for_backward_does_not_grow_with_the_square_of_the_batch(monkeypatch):
    monkeypatch.setattr(similarity_torch, "KEEP", 10_000)
    held = {}
    for batch in (100, 200, 400):
        leaves, seen = draw((batch, 8), (batch, 8)), {}

        def keep(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = info_nce(*leaves, 0.1, symmetric=True)
        held[batch] = sum(seen.values())
        del loss
    assert held[100] > 10_000  # kept, to save a product
    assert held[400] < 2.1 * held[200] < 20_000


def test_a_sample_without_negatives_has_no_loss_but_keeps_the_graph():
    leaves = draw((1, 8), (1, 8))
    for negatives in ("micro", "global", "ring"):
        loss, *grads = answer(info_nce, leaves, 0.1, negatives=negatives)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert all(grad.abs().max() < 1e-5 for grad in grads)
    alone = Pairs(subject_B=torch.arange(5), subjects="within")  # every negative is forbidden
    for loss in answer(info_nce, draw((5, 8), (5, 8)), 0.1, symmetric=True, pairs=alone):
        assert loss.abs().max() < 1e-5


def test_flat_huge_and_tiny_signals_give_finite_gradients():
    leaves = draw((6, 6), (6, 6))
    with torch.no_grad():
        leaves[0][2] = 0
        leaves[0][3] *= 1e30
        leaves[1][4] *= 1e-9
    got = answer(info_nce, leaves, 0.1)
    close(got, truth(leaves, 0.1), 1e-5)
    assert got[1][2].abs().max() == 0  # no direction to turn


def test_cached_negatives_count_like_negatives_of_the_batch_but_get_no_gradient():
    leaves = [*draw((5, 4), (5, 4), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)]
    old = draw((3, 4), (3, 4), dtype=torch.float64, seed=8)
    seen_B, seen_C = torch.tensor([0, 1, 2, 3, -1]), torch.tensor([1, 9, -1])

    def by_hand(anchor_BF, target_BF, temperature):
        unit = torch.nn.functional.normalize
        total = 0
        for rows, others, cached in ((anchor_BF, target_BF, old[1]), (target_BF, anchor_BF, old[0])):
            sim = unit(rows) @ unit(torch.cat((others, cached.detach()))).T / temperature
            sim = sim.masked_fill(torch.arange(5)[:, None].eq(1) & torch.arange(8).eq(5), float("-inf"))  # both saw 1
            total = total + torch.nn.functional.cross_entropy(sim, torch.arange(5)) / 2
        return total

    cached = Cached(*old, Pairs(seen_C, "drop"))
    got = answer(info_nce, leaves, symmetric=True, pairs=Pairs(seen_B, "drop"), cached=cached)
    close(got, answer(by_hand, leaves), 1e-10)
    plain = answer(info_nce, leaves, pairs=Pairs(seen_B, "drop"))
    empty = Cached(torch.empty(0, 4), torch.empty(0, 4), Pairs(seen_C[:0], "drop"))
    close(answer(info_nce, leaves, pairs=Pairs(seen_B, "drop"), cached=empty), plain, 1e-12)
    with pytest.raises(ValueError, match="another policy"):
        info_nce(*leaves, pairs=Pairs(seen_B, "positive"), cached=cached)


def test_sides_of_two_dtypes_meet_in_the_wider_and_each_gets_its_own_gradient():
    leaves = [*draw((6, 5), dtype=torch.float16), *draw((6, 5), dtype=torch.float64, seed=6)]
    got = answer(info_nce, leaves, 0.2, symmetric=True)
    assert [tensor.dtype for tensor in got] == [torch.float64, torch.float16, torch.float64]
    close(got, truth(leaves, 0.2, symmetric=True), 1e-3)


def test_what_is_no_batch_or_no_temperature_is_refused():
    sides = [side.detach() for side in draw((4, 3), (5, 3))]
    with pytest.raises(ValueError, match=r"anchors \(4, 3\) and targets \(5, 3\)"):
        info_nce(*sides, 0.1)
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0"):
            info_nce(sides[0], sides[0], temperature)


def test_a_policy_without_its_numbers_is_refused():
    with pytest.raises(ConfigError, match=r"repeats = 'drop' compares numbers.*Pass stimulus_B"):
        Pairs(repeats="drop")
    with pytest.raises(ConfigError, match="subjects is 'mine'; expected one of any, within, across"):
        Pairs(subjects="mine")


@pytest.mark.parametrize("policy", [("negative", "any"), ("positive", "across")])
def test_pytorch_accepts_the_operators(policy):
    leaves = [*draw((6, 5), (6, 5)), torch.tensor(4.0, requires_grad=True)]
    rules = some_pairs(6, *policy).rules(leaves[0])
    told = (rules.ids_2B, rules.ids_2B, rules.repeats, rules.subjects)
    for columns in (False, True):
        torch.library.opcheck(plain_similarity, (*leaves, 0, *told, columns))
    row_B, column_N, _, kept_BN = plain_similarity(*(leaf.detach() for leaf in leaves), 0, *told, True)
    weights = [torch.full((6,), value) for value in (0.1, 0.2, -0.3)]
    leaves = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(similarity_gradient, (*leaves, row_B, column_N, kept_BN, *weights, 0, *told, [True, False]))


def test_a_compiled_loss_is_the_same_loss():
    leaves = [*draw((6, 5), (6, 5)), torch.tensor(0.2)]
    pairs = some_pairs(6, "drop", "any")
    compiled = torch.compile(info_nce, backend="aot_eager", fullgraph=True)
    got, wanted = (answer(loss_of, leaves, symmetric=True, pairs=pairs) for loss_of in (compiled, info_nce))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
