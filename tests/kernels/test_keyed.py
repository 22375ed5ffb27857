"""Keyed random numbers: the published generator, the same for a sample in any company, the right distributions."""

import time

import pytest
import torch

from cadiff.kernels.keyed import keyed_integers, keyed_normal, keyed_uniform, philox

DRAWS = {
    "uniform": keyed_uniform,
    "normal": keyed_normal,
    "integers": lambda *key: keyed_integers(*key, high=1000),
}


def ids(*sample_ids: int) -> torch.Tensor:
    return torch.tensor(sample_ids, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_known_answers_published_with_random123(counter, key, words):
    assert tuple(word.item() for word in philox(torch.tensor(counter), key)) == words


@pytest.mark.parametrize("kind", DRAWS)
def test_a_sample_draws_the_same_alone_and_in_a_batch(kind):
    draw = DRAWS[kind]
    together = draw(7, "phase1/view1", ids(3, 3, 3), ids(12, 5, 2**40), 9)
    for row, sample in enumerate((12, 5, 2**40)):
        assert torch.equal(draw(7, "phase1/view1", ids(3), ids(sample), 9)[0], together[row])


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_fewer_draws_are_the_first_of_more(kind, n):
    draw = DRAWS[kind]
    assert torch.equal(draw(7, "noise", ids(0), ids(4), n), draw(7, "noise", ids(0), ids(4), 11)[:, :n])


@pytest.mark.parametrize(
    "other",
    [(8, "a", 0, 4), (1 + 2**64, "a", 0, 4), (7, "b", 0, 4), (7, "a", 1, 4), (7, "a", -1, 4), (7, "a", 0, 4 + 2**32)],
    ids=["seed", "large seed", "stream", "epoch", "validation", "high half of the id"],
)
def test_every_part_of_the_name_matters(other):
    seed, stream, epoch, sample = other
    changed = keyed_uniform(seed, stream, ids(epoch), ids(sample), 64)
    assert not torch.isin(changed, keyed_uniform(7, "a", ids(0), ids(4), 64)).any()


def test_seed_and_stream_do_not_run_together():
    assert not torch.equal(keyed_uniform(1, "1/a", ids(0), ids(0), 8), keyed_uniform(11, "/a", ids(0), ids(0), 8))


def test_numbers_never_change_between_versions():
    epoch_B, sample_id_B = ids(-1), ids(123_456_789_012)
    key = (2022, "phase1/view1", epoch_B, sample_id_B)
    assert (keyed_uniform(*key, 3) * 2**24).tolist() == GOLDEN_UNIFORM
    assert keyed_integers(*key, 6, 1000).tolist() == GOLDEN_INTEGERS
    torch.testing.assert_close(keyed_normal(*key, 3), torch.tensor(GOLDEN_NORMAL), atol=1e-6, rtol=0)


GOLDEN_UNIFORM = [[14977909.0, 15580191.0, 15932735.0]]
GOLDEN_INTEGERS = [[892, 928, 949, 97, 384, 426]]
GOLDEN_NORMAL = [[0.4292633, -0.2064553, 0.2630421]]


def test_uniform_fills_the_half_open_interval_evenly():
    u_Bn = keyed_uniform(1, "u", torch.zeros(500, dtype=torch.int64), torch.arange(500), 200)
    assert u_Bn.dtype == torch.float32
    assert u_Bn.min() >= 0 and u_Bn.max() < 1
    share = torch.histc(u_Bn, 10, 0, 1) / u_Bn.numel()
    torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.004, rtol=0)


def test_normal_has_the_moments_of_a_normal_and_neighbours_do_not_correlate():
    z_Bn = keyed_normal(1, "z", torch.zeros(500, dtype=torch.int64), torch.arange(500), 200)
    moments = torch.stack([z_Bn.mean(), z_Bn.var(), z_Bn.pow(3).mean(), z_Bn.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 0.0, 3.0]), atol=0.08, rtol=0)
    for one, next_one in ((z_Bn[:, ::2], z_Bn[:, 1::2]), (z_Bn[:-1], z_Bn[1:])):
        assert abs((one * next_one).mean()) < 0.02


def test_integers_cover_their_range_and_refuse_a_bad_one():
    drawn = keyed_integers(1, "t", torch.zeros(50, dtype=torch.int64), torch.arange(50), 100, 7)
    assert drawn.unique().tolist() == list(range(7))
    assert keyed_integers(1, "t", ids(0), ids(0), 100, 2**31).max() < 2**31
    for high in (0, 2**31 + 1):
        with pytest.raises(ValueError, match=str(high)):
            keyed_integers(1, "t", ids(0), ids(0), 1, high)


def test_a_batch_of_masks_takes_milliseconds():
    epoch_B, sample_id_B = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        keyed_uniform(1, "speed", epoch_B, sample_id_B, 300)
        best = min(best, time.perf_counter() - start)
    assert best < 0.01  # 1 ms on a quiet core


@pytest.mark.gpu
@pytest.mark.parametrize("kind", DRAWS)
def test_gpu_draws_what_the_cpu_draws(kind):
    sample_id_B = torch.arange(0, 2**35, 2**28)
    epoch_B = torch.full_like(sample_id_B, -1)
    on_cpu = DRAWS[kind](7, "a", epoch_B, sample_id_B, 33)
    on_gpu = DRAWS[kind](7, "a", epoch_B.cuda(), sample_id_B.cuda(), 33).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-6 if kind == "normal" else 0, rtol=0)
