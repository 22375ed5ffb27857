"""Intervals that cover, differences that are paired, chance levels that a constant answer reaches."""

import numpy as np
import pytest

from cadiff import statistics as s
from cadiff.errors import ConfigError


def interval(scores, *, seed, resamples=s.RESAMPLES):
    scores = np.asarray(scores, dtype=float)[:, None]
    return s.interval_of(scores.mean(), s.resampled_means(scores, seed=seed, resamples=resamples)[:, 0])


def test_interval_contains_its_mean_and_narrows_with_more_stimuli():
    rng = np.random.default_rng(0)
    few, many = (interval(rng.random(count), seed=1) for count in (20, 500))
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < 0.4 * (few.high - few.low)


def test_interval_agrees_with_the_normal_approximation_for_many_stimuli():
    scores = np.random.default_rng(1).normal(3, 2, 400)
    found = interval(scores, seed=0)
    half = 1.96 * scores.std() / 20
    assert found.low == pytest.approx(scores.mean() - half, abs=0.03)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.03)


def test_about_95_of_100_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    found = [interval(rng.random(60) < 0.3, seed=trial, resamples=500) for trial in range(300)]
    covered = np.mean([one.low <= 0.3 <= one.high for one in found])
    assert 0.90 <= covered <= 0.98


def test_same_seed_same_interval_and_block_size_does_not_matter():
    scores = np.random.default_rng(3).random(30)
    assert interval(scores, seed=5) == interval(scores, seed=5)
    assert interval(scores, seed=5) != interval(scores, seed=6)
    long, short = (s.resampled_means(scores[:, None], seed=5, resamples=count) for count in (1500, 1000))
    assert np.array_equal(long[:1000], short)


def test_resampled_means_are_means_of_drawn_rows():
    scores = np.arange(7.0)[:, None] ** 2
    means = s.resampled_means(scores, seed=1, resamples=200)
    possible = means[:, 0] * 7
    assert np.allclose(possible, np.round(possible))  # sums of seven squares
    assert means.std() > 0


@pytest.mark.parametrize(("scores", "match"), [([1.0], "at least 2 stimuli, found 1"), ([1.0, np.nan], "NaN")])
def test_too_few_or_broken_scores_are_refused(scores, match):
    with pytest.raises(ConfigError, match=match):
        interval(np.array(scores), seed=0)


def test_equal_scores_give_an_interval_of_no_width():
    assert interval(np.ones(10), seed=0) == (1, 1, 1)


def test_best_column_is_the_largest_column_mean_and_never_below_the_mean():
    scores = np.random.default_rng(5).random((40, 5))
    best = s.best_column(scores, seed=0)
    assert best.value == pytest.approx(scores.mean(0).max())
    assert best.value > scores.mean()


def test_chance_of_classes_is_what_a_constant_answer_gets():
    assert s.chance_class(np.array([0, 0, 0, 1]), 2) == 0.75
    assert s.chance_class(np.arange(4), 4) == 0.25
    assert s.chance_class(np.array([0, 1]), 10) == 0.5


def test_against_chance_reads_the_interval():
    assert s.against_chance(s.Interval(0.7, 0.6, 0.8), 0.5) == "above"
    assert s.against_chance(s.Interval(0.3, 0.2, 0.4), 0.5) == "below"
    assert s.against_chance(s.Interval(0.52, 0.4, 0.6), 0.5) == "consistent with"
