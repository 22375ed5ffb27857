"""The contrastive loss for any shape, layout, dtype, scale and policy: values and gradients against float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_world import answer, close, some_pairs, truth

from cadiff.kernels import similarity_torch
from cadiff.kernels.pairs import REPEATS, SUBJECTS
from cadiff.kernels.similarity import info_nce

DTYPES = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@st.composite
def batches(draw):
    """Anchors and targets, some rows alike, huge, tiny or zero, in any layout; a temperature; a policy."""
    batch, features = draw(st.integers(1, 24)), draw(st.integers(2, 20))
    dtype = draw(st.sampled_from(list(DTYPES)))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sides = []
    for _ in range(2):
        rows = torch.randn(batch, features, generator=source, dtype=torch.float64)
        for _ in range(draw(st.integers(0, 3))):
            row, other = draw(st.integers(0, batch - 1)), draw(st.integers(0, batch - 1))
            most = 1e3 if dtype == torch.float16 else 1e18
            rows[row] = draw(st.sampled_from([rows[other], 0 * rows[row], most * rows[row], rows[row] / most]))
        rows = rows.to(dtype)
        layout = draw(st.sampled_from(["rows", "columns", "every second", "shared"]))
        if layout == "columns":
            rows = rows.T.contiguous().T
        elif layout == "every second":
            rows = torch.stack((rows, rows), -1).flatten(1)[:, ::2]
        elif layout == "shared":
            rows = rows[:1].expand(batch, features)
        sides.append(rows)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    temperature = torch.tensor(draw(st.sampled_from([0.005, 0.07, 1.0, 50.0])), dtype=kind)
    policy = (draw(st.sampled_from(REPEATS)), draw(st.sampled_from(SUBJECTS)))
    pairs = some_pairs(batch, *policy, seed=draw(st.integers(0, 99)))
    return [*sides, temperature], {"symmetric": draw(st.booleans()), "pairs": pairs}, DTYPES[dtype]


def unit_gradients(got, leaves):
    """Gradients as if rows had length one: a row of length 1e-18 has one of 1e18, beside which all others vanish."""
    loss, *sides, temperature = got
    lengths = [torch.linalg.vector_norm(leaf.double(), dim=1, keepdim=True).clamp_min(1e-12) for leaf in leaves[:2]]
    return loss, *(side.double() * length for side, length in zip(sides, lengths)), temperature.double() * leaves[2]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(batches(), st.sampled_from([(1 << 22, 1 << 23, 1 << 24), (50, 64, 0), (9, 20, 0)]))
def test_any_batch_has_the_values_and_gradients_of_float64(batch, sizes):
    leaves, options, tolerance = batch
    before = similarity_torch.TILE, similarity_torch.BLOCK, similarity_torch.KEEP
    similarity_torch.TILE, similarity_torch.BLOCK, similarity_torch.KEEP = sizes
    try:
        got = answer(info_nce, leaves, **options)
    finally:
        similarity_torch.TILE, similarity_torch.BLOCK, similarity_torch.KEEP = before
    wanted = truth(leaves, **options)
    assert [tensor.dtype for tensor in got[1:]] == [leaf.dtype for leaf in leaves]
    sharp = max(1.0, 0.07 / leaves[2].item())
    close(unit_gradients(got, leaves), unit_gradients(wanted, leaves), tolerance * sharp)
