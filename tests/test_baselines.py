"""Ridge equals its normal equations in both forms, never sees test rows, and finds the nearest training picture."""

import numpy as np
import pytest

from cadiff import baselines as b
from cadiff import splits
from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.record import SPLITS


def linear_world(rows, voxels, targets=5, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((voxels, targets))
    signals = rng.standard_normal((rows, voxels)) + 2
    return signals, signals @ weight + noise * rng.standard_normal((rows, targets)) + 7


def solved(signals, targets, penalty):
    x, y = signals - signals.mean(0), targets - targets.mean(0)
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


@pytest.mark.parametrize(("rows", "voxels"), [(60, 12), (30, 80), (40, 40)])
def test_ridge_solves_the_normal_equations_in_primal_and_dual_form(rows, voxels):
    signals, targets = linear_world(rows, voxels)
    ridge = b.ridge_fit(signals, targets, np.arange(rows), split_N=np.zeros(rows), seed=0)
    weight = solved(signals, targets, ridge.penalty)
    assert ridge.weight_VT == pytest.approx(weight, abs=1e-7)
    predicted = (signals[:3] - signals.mean(0)) @ weight + targets.mean(0)
    assert ridge.predict(signals[:3]) == pytest.approx(predicted, abs=1e-7)


def test_the_penalty_is_the_one_with_the_least_error_on_left_out_groups():
    signals, targets = linear_world(50, 20, noise=8.0)
    groups = np.arange(50) // 2
    ridge = b.ridge_fit(signals, targets, groups, split_N=np.zeros(50), seed=3, folds=5)
    folds = (b.keyed(3, "ridge/folds").permutation(25) % 5)[groups]
    errors = {}
    for relative in b.PENALTIES:
        total = 0.0
        for fold in range(5):
            x, y, seen = signals[folds != fold], targets[folds != fold], signals[folds == fold]
            scale = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
            predicted = (seen - x.mean(0)) @ solved(x, y, relative * scale) + y.mean(0)
            total += ((predicted - targets[folds == fold]) ** 2).sum()
        errors[relative] = total / targets.size
    assert ridge.errors == pytest.approx(errors, rel=1e-6)
    best = min(errors, key=errors.get)
    assert ridge.penalty == pytest.approx(best * np.linalg.eigvalsh(np.cov(signals.T, bias=True) * 50).mean(), rel=1e-6)
    assert b.PENALTIES[0] < best  # noise asks for some shrinkage


def test_test_rows_are_refused():
    signals, targets = linear_world(20, 5)
    split = np.zeros(20)
    split[-2:] = splits.TEST
    with pytest.raises(ConfigError, match="ridge regression: 2 of 20 rows are of the test split"):
        b.ridge_fit(signals, targets, np.arange(20), split_N=split, seed=0)
    rows = b.Rows(signals, np.zeros(20, int), np.arange(20), split)
    with pytest.raises(ConfigError, match="nearest training stimulus: 2 of 20"):
        b.nearest_training_stimulus(rows, rows)


def test_split_codes_are_those_of_packed_datasets():
    assert [SPLITS.index(name) for name in ("train", "val", "test")] == [splits.TRAIN, splits.VAL, splits.TEST]


def test_what_cannot_be_fitted_is_refused():
    signals, targets = linear_world(10, 4)
    with pytest.raises(ConfigError, match="at least 2 training stimuli, found 1"):
        b.ridge_fit(signals, targets, np.zeros(10), split_N=np.zeros(10), seed=0)
    with pytest.raises(ConfigError, match=r"arrays of \[9, 10\] rows"):
        b.ridge_fit(signals, targets[:9], np.arange(10), split_N=np.zeros(10), seed=0)
    signals[0, 0] = np.nan
    with pytest.raises(ConfigError, match="NaN or infinite"):
        b.ridge_fit(signals, targets, np.arange(10), split_N=np.zeros(10), seed=0)


def test_voxels_without_signal_do_no_harm():
    signals, targets = linear_world(30, 6)
    signals[:] = 4.0
    ridge = b.ridge_fit(signals, targets, np.arange(30), split_N=np.zeros(30), seed=0)
    assert ridge.predict(signals) == pytest.approx(np.tile(targets.mean(0), (30, 1)))


def two_people():
    """Two subjects whose voxels mean opposite things, with targets of their own."""
    signals, targets = linear_world(80, 8, noise=0.01)
    signals = np.concatenate([signals, -signals])
    subject, stimulus = np.repeat([0, 1], 80), np.tile(np.arange(80), 2)
    held_out = stimulus >= 60
    rows = [
        b.Rows(signals[chosen], subject[chosen], stimulus[chosen], np.where(held_out, 2, 0)[chosen])
        for chosen in (~held_out, held_out)
    ]
    return *rows, np.tile(targets, (2, 1))[~held_out], np.tile(targets, (2, 1))[held_out]


def test_each_subject_gets_its_own_map():
    train, test, targets, wanted = two_people()
    predicted, fits = b.ridge_decode(train, targets, test, seed=0)
    assert set(fits) == {0, 1}
    assert np.corrcoef(predicted.ravel(), wanted.ravel())[0, 1] > 0.999
    assert fits[0].weight_VT == pytest.approx(-fits[1].weight_VT, abs=0.05)


def test_a_subject_without_training_rows_is_refused():
    train, test, targets, _ = two_people()
    only = b.Rows(*(column[train.subject_N == 0] for column in vars(train).values()))
    with pytest.raises(ConfigError, match="Subject 1 has rows to decode but none to train on"):
        b.ridge_decode(only, targets[: len(only.subject_N)], test, seed=0)
    with pytest.raises(ConfigError, match="Subject 1"):
        b.nearest_training_stimulus(only, test)


def test_nearest_training_stimulus_looks_within_the_subject():
    train, _, _, _ = two_people()
    noisy = b.Rows(train.signal_NV + 0.01, train.subject_N, train.stimulus_N, train.split_N)
    assert np.array_equal(b.nearest_training_stimulus(train, noisy), train.stimulus_N)


def test_nearest_is_by_correlation_not_by_size():
    bank = np.array([[1.0, 2, 3], [3.0, 2, 1]])
    assert b.nearest(np.array([[100.0, 300, 500], [9.0, 8, 7]]), bank).tolist() == [0, 1]


def test_ridge_decodes_a_packed_set_from_its_training_rows_alone(tiny_set):
    ds = Dataset(tiny_set)
    train, test = (b.rows_of(ds, ds.ids(split=split), ds.voxels) for split in ("train", "test"))
    targets, wanted = (ds.images(rows.stimulus_N, 8).reshape(len(rows.stimulus_N), -1) / 255 for rows in (train, test))
    predicted, _ = b.ridge_decode(train, targets, test, seed=0)
    error, blind = ((predicted - wanted) ** 2).mean(), ((targets.mean(0) - wanted) ** 2).mean()
    assert error < 0.7 * blind
