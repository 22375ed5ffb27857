"""Retrieval finds what was planted, scores chance on noise, and refuses what would make its numbers meaningless."""

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.retrieval import retrieve


def world(seed=0, noise=0.5, repeats=2, features=20, stimuli=40, fitted=30, signal=1.0):
    """Features that are a linear picture of the targets and noise; the last stimuli are held out."""
    rng = np.random.default_rng(seed)
    target_SE = rng.standard_normal((stimuli, 6)) + 5.0  # all pictures have a lot in common
    mixing = rng.standard_normal((6, features))
    stimulus = np.repeat(np.arange(stimuli), repeats)
    feature = signal * target_SE[stimulus] @ mixing + noise * rng.standard_normal((len(stimulus), features))
    fit, held = stimulus < fitted, stimulus >= fitted
    return [part[rows] for rows in (fit, held) for part in (feature, target_SE[stimulus], stimulus)]


@pytest.mark.parametrize("features", [8, 300])  # fewer features than samples, and more
def test_planted_structure_is_found(features):
    found = retrieve(*world(features=features, noise=0.2), seed=1)
    assert found.top1 == pytest.approx(1.0) and found.two_way == pytest.approx(1.0)
    assert found.stimulus_S.tolist() == list(range(30, 40))
    assert found.chance == {"top1": 0.1, "top5": 0.5, "two_way": 0.5}


def test_noise_scores_chance():
    scores = [retrieve(*world(seed, signal=0.0), seed=1) for seed in range(40)]
    assert np.mean([found.two_way for found in scores]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([found.top1 for found in scores]) == pytest.approx(0.1, abs=0.05)
    constant = world()
    constant[0], constant[3] = np.ones_like(constant[0]), np.ones_like(constant[3])
    found = retrieve(*constant, seed=1)
    assert found.top1 == pytest.approx(0.1) and found.top5 == pytest.approx(0.5) and found.two_way == 0.5


def test_scores_are_those_of_a_plain_computation():
    train_f, train_t, train_s, f, t, s = world(noise=3.0)
    found = retrieve(train_f, train_t, train_s, f, t, s, seed=1)
    x, y = train_f - train_f.mean(0), train_t - train_t.mean(0)
    weights = np.linalg.solve(x.T @ x + found.penalty * np.eye(x.shape[1]), x.T @ y)
    predicted = np.array([((f - train_f.mean(0)) @ weights)[s == one].mean(0) for one in np.unique(s)])
    truth = np.array([t[s == one][0] for one in np.unique(s)]) - train_t.mean(0)
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in truth] for a in predicted])
    np.testing.assert_allclose(found.cosine_SS, cosine, atol=1e-8)
    assert found.top1 == np.mean(cosine.argmax(1) == np.arange(10))
    assert found.two_way == pytest.approx(np.mean([(row < row[i]).sum() / 9 for i, row in enumerate(cosine)]))
    assert found.top5 == np.mean([(row > row[i]).sum() < 5 for i, row in enumerate(cosine)])


def test_repeats_are_averaged_into_one_prediction():
    many = retrieve(*world(noise=8.0, repeats=12, features=6), seed=1)
    once = retrieve(*world(noise=8.0, repeats=1, features=6), seed=1)
    assert many.two_way > once.two_way and len(many.rows["top1"]) == len(once.rows["top1"]) == 10


def test_intervals_are_over_stimuli():
    found = retrieve(*world(noise=3.0), seed=1)
    told = found.intervals(seed=2)
    for name, (value, low, high) in told.items():
        assert value == pytest.approx(found.rows[name].mean()) and 0 <= low <= value <= high <= 1
    assert told == found.intervals(seed=2)


def test_what_would_mean_nothing_is_refused():
    train_f, train_t, train_s, f, t, s = world()
    with pytest.raises(ConfigError, match="stimulus 30 is both held out and fitted"):
        retrieve(train_f, train_t, np.append(train_s[1:], 30), f, t, s, seed=1)
    with pytest.raises(ConfigError, match="found 1 of them"):
        retrieve(train_f, train_t, train_s, f[:2], t[:2], s[:2], seed=1)
    with pytest.raises(ConfigError, match="at least 2 training stimuli"):
        retrieve(train_f[:2], train_t[:2], train_s[:2], f, t, s, seed=1)
    with pytest.raises(ConfigError, match="20 features, 20 targets and 19 stimuli"):
        retrieve(train_f, train_t, train_s, f, t, s[1:], seed=1)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        retrieve(train_f, train_t, train_s, f * np.nan, t, s, seed=1)
