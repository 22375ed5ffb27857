"""Every metric against a slow loop written from its definition, on random and degenerate pictures."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from phases.golden_reader import cases
from shared_files import read_golden

from cadiff import metrics as m
from cadiff.errors import ConfigError


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def pictures(rng):
    """5 rows of 2 samples, and a pool of 4 stimuli (rows 0 and 4 saw the same one)."""
    recon = rng.integers(0, 256, (5, 2, 3, 16, 16), dtype=np.uint8)
    pool = rng.integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    return recon, pool, np.array([0, 1, 2, 3, 0])


def test_pair_correlation_is_numpys_corrcoef_of_every_pair(pictures):
    recon, pool, _ = pictures
    pairs = m.pair_correlation(recon, pool)
    for n in range(5):
        for k in range(2):
            for j in range(4):
                expected = np.corrcoef(recon[n, k].ravel(), pool[j].ravel())[0, 1]
                assert pairs[n, k, j] == pytest.approx(expected, abs=1e-5)


def test_a_constant_picture_correlates_with_nothing_and_gives_no_nan(pictures):
    recon, pool, target = pictures
    recon[0] = 77
    pool[1] = 0
    pairs = m.pair_correlation(recon, pool)
    assert np.isfinite(pairs).all()
    assert (pairs[0] == 0).all() and (pairs[:, :, 1] == 0).all()
    assert m.two_way(pairs, target)[0] == pytest.approx(0.5)  # resembles nothing: chance, not 0
    assert m.retrieval(pairs, target, top=1)[0] == pytest.approx(0.25)


def test_mean_squared_error_is_computed_in_floating_point():
    # in uint8 arithmetic (10 - 200) ** 2 wraps to 4
    one, other = np.full((1, 1, 3, 4, 4), 10, np.uint8), np.full((1, 3, 4, 4), 200, np.uint8)
    assert m.pair_mse(one, other)[0, 0, 0] * 255**2 == pytest.approx(36100)


def test_pair_mse_is_the_mean_square_of_every_pair(pictures):
    recon, pool, _ = pictures
    pairs = m.pair_mse(recon, pool)
    for n, k, j in np.ndindex(5, 2, 4):
        expected = ((recon[n, k] / 255.0 - pool[j] / 255.0) ** 2).mean()
        assert pairs[n, k, j] == pytest.approx(expected, rel=1e-9)


def test_two_way_counts_the_other_stimuli_that_are_beaten(pictures):
    recon, pool, target = pictures
    pairs = m.pair_correlation(recon, pool)
    scores = m.two_way(pairs, target)
    for n, k in np.ndindex(5, 2):
        beaten = [pairs[n, k, target[n]] > pairs[n, k, j] for j in range(4) if j != target[n]]
        assert scores[n, k] == pytest.approx(np.mean(beaten))


def test_perfect_reconstructions_score_one(pictures):
    _, pool, target = pictures
    recon = pool[target][:, None]
    pairs = m.pair_correlation(recon, pool)
    assert (m.two_way(pairs, target) == 1).all()
    assert (m.retrieval(pairs, target, top=1) == 1).all()
    assert m.own(pairs, target) == pytest.approx(np.ones((5, 1)), abs=1e-6)
    assert m.ssim_rgb(recon, pool[target]) == pytest.approx(np.ones((5, 1)))
    assert m.own(m.pair_mse(recon, pool), target) == pytest.approx(np.zeros((5, 1)))


def test_identification_among_one_stimulus_is_refused():
    with pytest.raises(ConfigError, match="at least 2 different test stimuli, found 1"):
        m.two_way(np.ones((3, 1, 1)), np.zeros(3, int))


def test_mismatched_mean_averages_every_pair_but_the_own(pictures):
    recon, pool, target = pictures
    pairs = m.pair_mse(recon, pool)
    others = [pairs[n, k, j] for n, k, j in np.ndindex(5, 2, 4) if j != target[n]]
    assert m.mismatched_mean(pairs, target) == pytest.approx(np.mean(others))


def test_retrieval_breaks_ties_at_random_in_expectation():
    pairs = np.array([[[0.9, 0.5, 0.5, 0.5, 0.1]]])  # the own stimulus is one of three tied for places 2 to 4
    found = [m.retrieval(pairs, np.array([2]), top=top)[0, 0] for top in (1, 2, 3, 4, 5)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_class_accuracy_compares_the_best_class_with_the_label():
    scores = np.array([[[0.1, 0.9], [0.9, 0.1]], [[0.2, 0.1], [0.3, 0.1]]])
    assert m.class_accuracy(scores, np.array([1, 0])).tolist() == [[1, 0], [1, 1]]


def test_ssim_sees_structure_and_survives_constant_pictures(rng):
    truth = rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    grey = np.full((2, 1, 3, 16, 16), 128, np.uint8)
    slightly = np.clip(truth[:, None].astype(int) + rng.integers(-10, 11, (2, 1, 3, 16, 16)), 0, 255).astype(np.uint8)
    assert np.isfinite(m.ssim_rgb(grey, truth)).all()
    assert (m.ssim_rgb(slightly, truth) > m.ssim_rgb(grey, truth) + 0.5).all()


@pytest.mark.parametrize(("ways", "top"), [(2, 1), (4, 1), (4, 2), (6, 1), (6, 5)])
def test_n_way_expectation_is_the_share_of_all_possible_draws(rng, ways, top):
    scores, true_class = rng.random((3, 2, 6)), np.array([0, 3, 5])
    expected = m.n_way_expected(scores, true_class, ways=ways, top=top)
    for n, k in np.ndindex(3, 2):
        row, c = scores[n, k], true_class[n]
        draws = list(combinations([j for j in range(6) if j != c], ways - 1))
        assert len(draws) == comb(5, ways - 1)
        hits = [sum(row[j] > row[c] for j in draw) < top for draw in draws]
        assert expected[n, k] == pytest.approx(np.mean(hits))


def test_sampled_n_way_agrees_with_the_expectation_within_its_error(rng):
    scores, true_class = rng.random((8, 2, 40)), rng.integers(0, 40, 8)
    exact = m.n_way_expected(scores, true_class, ways=10, top=1)
    sampled = m.n_way_sampled(scores, true_class, ways=10, top=1, trials=2000, seed=1)
    error = np.sqrt(exact * (1 - exact) / 2000)
    assert (np.abs(sampled - exact) < 5 * error + 1e-9).all()
    assert 0.05 < exact.mean() < 0.5  # the case is not trivial


def test_sampled_n_way_repeats_with_its_seed_and_changes_with_another(rng):
    scores, true_class = rng.random((8, 1, 40)), rng.integers(0, 40, 8)
    draws = [m.n_way_sampled(scores, true_class, ways=10, top=2, trials=50, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(("ways", "top"), [(11, 1), (5, 5), (5, 0)])
def test_impossible_n_way_settings_are_refused(ways, top):
    with pytest.raises(ConfigError, match=f"{ways}-way top-{top}.*reads 10 classes"):
        m.n_way_expected(np.ones((1, 1, 10)), np.array([0]), ways=ways, top=top)


def test_keyed_generators_depend_on_seed_and_stream_only():
    assert m.keyed(1, "a").random() == m.keyed(1, "a").random()
    assert len({m.keyed(1, "a").random(), m.keyed(2, "a").random(), m.keyed(1, "b").random()}) == 3


def test_every_metric_says_its_range_direction_chance_and_protocol():
    for name, metric in m.METRICS.items():
        assert metric.low < metric.high and metric.better in ("higher", "lower"), name
        assert metric.chance and metric.meaning and metric.protocol.rsplit("/", 1)[1].isdigit(), name


@pytest.fixture(scope="module", params=cases("metrics"))
def golden(request):
    return read_golden(request.param, "np")


@pytest.mark.parity
def test_n_way_agrees_with_the_papers_code_on_its_own_picks(golden):
    meta, stored = golden
    for case, setting in enumerate(meta["nway"]):
        if setting["ties"] and setting["top_k"] > 1:
            continue  # there the original's answer depends on the order in which a sort leaves equal values
        prob, picks = stored[f"nway{case}.prob"], stored[f"nway{case}.picks"]
        hits = (prob[picks] > prob[setting["class_id"]]).sum(1) < setting["top_k"]
        assert np.array_equal(hits, stored[f"nway{case}.hit"].astype(bool))
        exact = m.n_way_expected(
            prob[None, None], np.array([setting["class_id"]]), ways=setting["n_way"], top=setting["top_k"]
        )[0, 0]
        error = np.sqrt(exact * (1 - exact) / setting["num_trials"])
        assert abs(exact - setting["mean"]) <= 3.5 * error + 1e-9


@pytest.mark.parity
def test_pair_scores_agree_with_the_papers_code(golden):
    _, stored = golden
    recon, truth = (stored[f"img.{name}"].transpose(0, 3, 1, 2) for name in ("pred", "gt"))
    count, target = len(truth), np.arange(len(truth))
    correlation, errors = m.pair_correlation(recon[:, None], truth), m.pair_mse(recon[:, None], truth)
    similar = np.stack([m.ssim_rgb(recon[:, None], np.roll(truth, -shift, 0))[:, 0] for shift in range(count)])
    ssim = np.array([[similar[(j - n) % count, n] for j in range(count)] for n in range(count)])
    assert correlation[:, 0] == pytest.approx(stored["uint8.pcc.pairs"], abs=1e-5)
    assert errors[:, 0] * 255**2 == pytest.approx(stored["float64.mse.pairs"], rel=1e-6)
    assert ssim == pytest.approx(stored["uint8.ssim.pairs"], abs=1e-6)
    assert m.two_way(correlation, target)[:, 0] == pytest.approx(stored["uint8.pcc.pair_wise"])
    assert m.two_way(-errors, target)[:, 0] == pytest.approx(stored["float64.mse.pair_wise"])
    assert m.two_way(ssim[:, None], target)[:, 0] == pytest.approx(stored["uint8.ssim.pair_wise"])
    assert m.own(errors, target).mean() * 255**2 == pytest.approx(stored["float64.mse.metrics_only"][0])
