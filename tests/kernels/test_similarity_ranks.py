"""Two, three and four ranks as one batch: loss and gradients of one process that holds everything, to 1e-6."""

import itertools
import os
from datetime import timedelta

import pytest
import torch
from similarity_world import some_pairs
from torch import distributed

from cadiff.kernels import dispatch, similarity_torch
from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import info_nce, info_nce_reference
from cadiff.kernels.similarity_ranks import check_ranks


def one_rank() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = distributed.get_rank(), distributed.get_world_size()
    assert dispatch.backend("cpu") == os.environ["CADIFF_KERNELS"]
    policies = [("negative", "any"), ("drop", "within"), ("positive", "across")]
    for negatives, symmetric, policy in itertools.product(("global", "ring"), (False, True), policies):
        for batch in (1, 5):
            _compare_with_one_process(rank, world, batch, negatives, symmetric, policy, torch.float64, 1e-12)
    similarity_torch.TILE, similarity_torch.BLOCK, similarity_torch.KEEP = 12, 30, 0
    for negatives in ("global", "ring"):
        _compare_with_one_process(rank, world, 7, negatives, True, policies[1], torch.float32, 1e-6)
        _compare_with_one_process(rank, world, 7, negatives, False, policies[0], torch.float32, 1e-6)
    check_ranks(torch.device("cpu"))
    _a_wrong_gradient_is_refused_on_all_ranks(rank)
    distributed.destroy_process_group()


def _compare_with_one_process(rank, world, batch, negatives, symmetric, policy, dtype, tolerance) -> None:
    """The mean over ranks of this rank's loss and gradients against one process with the global batch."""
    source = torch.Generator().manual_seed(9)
    x_NI, y_NI = (torch.randn(world * batch, 6, generator=source, dtype=dtype) for _ in range(2))
    weights = [torch.randn(6, 11, generator=source, dtype=dtype) for _ in range(2)]
    leaves = [leaf.requires_grad_() for leaf in (*weights, torch.tensor(0.2, dtype=dtype))]
    told = some_pairs(world * batch, *policy)
    own = slice(rank * batch, (rank + 1) * batch)

    def gradients(rows, loss_of, **options):
        pairs = Pairs(told.stimulus_B[rows], told.repeats, told.subject_B[rows], told.subjects)
        loss = loss_of(x_NI[rows] @ leaves[0], y_NI[rows] @ leaves[1], leaves[2], pairs=pairs, **options)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    mine = gradients(own, info_nce, negatives=negatives, symmetric=symmetric)
    for tensor in mine:
        distributed.all_reduce(tensor)
        tensor /= world
    for got, wanted in zip(mine, gradients(slice(None), info_nce_reference, symmetric=symmetric), strict=True):
        assert wanted.abs().max() > 1e-3 or batch == 1  # of one sample a rank, all may be forbidden
        difference = torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted).clamp_min(1e-3)
        assert difference <= tolerance, (world, batch, negatives, symmetric, policy, difference)


def _a_wrong_gradient_is_refused_on_all_ranks(rank: int) -> None:
    from cadiff.errors import ConfigError
    from cadiff.kernels import similarity_ranks

    honest = similarity_ranks._MergeColumns.backward
    if rank == 1:  # forgets what the other ranks' rows do to its columns
        similarity_ranks._MergeColumns.backward = staticmethod(lambda ctx, grad: 0.5 * honest(ctx, grad))
    with pytest.raises(ConfigError, match="contrastive loss of all ranks is off by"):
        check_ranks(torch.device("cpu"))
    similarity_ranks._MergeColumns.backward = honest


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_with_global_negatives_have_the_gradient_of_one_process(warm, world, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("CADIFF_KERNELS", backend)
    log = tmp_path / "log.txt"
    assert warm.run("test_similarity_ranks:one_rank", [], log, world) == [0] * world, log.read_text()[-4000:]
