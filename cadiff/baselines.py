"""Baselines that any decoder must beat: ridge regression per subject, and the nearest training stimulus.

Legend: N training rows, n rows to decode, V voxels, T targets (latents, or pixels at low resolution), S side.
All fitting refuses test rows; the penalty is chosen by cross-validation inside the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cadiff.errors import ConfigError
from cadiff.metrics import keyed, pair_correlation
from cadiff.splits import refuse_test

if TYPE_CHECKING:
    from cadiff.shards.dataset import Dataset

PENALTIES = np.logspace(-4, 4, 17)  # times the mean eigenvalue of the signals' Gram matrix


@dataclass(frozen=True)
class Rows:
    """Signals with where they come from; arrays share their first axis."""

    signal_NV: np.ndarray
    subject_N: np.ndarray
    stimulus_N: np.ndarray
    split_N: np.ndarray


def rows_of(ds: Dataset, ids: np.ndarray, width: int) -> Rows:
    """Gather the samples ``ids`` of a packed dataset, signals padded to ``width`` voxels."""
    table = ds.table
    return Rows(ds.signals(ids, width), table.subject[ids], table.stimulus[ids], table.split[ids])


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map: weights (V, T), the two means, the penalty chosen and the error of each one tried."""

    weight_VT: np.ndarray
    signal_mean_V: np.ndarray
    target_mean_T: np.ndarray
    penalty: float
    errors: dict[float, float]  # relative penalty -> cross-validated mean squared error

    def predict(self, signal_NV: np.ndarray) -> np.ndarray:
        """Targets float64 (N, T) of signals (N, V)."""
        return (signal_NV - self.signal_mean_V) @ self.weight_VT + self.target_mean_T


class _Path:
    """Ridge solutions for every penalty from one eigendecomposition of the smaller Gram matrix."""

    def __init__(self, signal_NV: np.ndarray, target_NT: np.ndarray) -> None:
        self.signal_mean_V, self.target_mean_T = signal_NV.mean(0), target_NT.mean(0)
        signal_NV, target_NT = signal_NV - self.signal_mean_V, target_NT - self.target_mean_T
        if signal_NV.shape[1] <= len(signal_NV):
            self.values_R, self.basis_VR = np.linalg.eigh(signal_NV.T @ signal_NV)
            self.inner_RT = self.basis_VR.T @ (signal_NV.T @ target_NT)
        else:  # the dual form: more voxels than rows
            self.values_R, vectors_NR = np.linalg.eigh(signal_NV @ signal_NV.T)
            self.basis_VR, self.inner_RT = signal_NV.T @ vectors_NR, vectors_NR.T @ target_NT
        self.values_R = np.maximum(self.values_R, 0)
        self.scale = max(float(self.values_R.mean()), 1e-12)

    def shrunk(self, relative: float) -> np.ndarray:
        return self.inner_RT / (self.values_R + relative * self.scale)[:, None]

    def errors(self, signal_NV: np.ndarray, target_NT: np.ndarray) -> np.ndarray:
        """Summed squared error on other rows, one number for each of PENALTIES."""
        seen_NR, wanted_NT = (signal_NV - self.signal_mean_V) @ self.basis_VR, target_NT - self.target_mean_T
        return np.array([((seen_NR @ self.shrunk(relative) - wanted_NT) ** 2).sum() for relative in PENALTIES])


def ridge_fit(
    signal_NV: np.ndarray, target_NT: np.ndarray, group_N: np.ndarray, *, split_N: np.ndarray, seed: int, folds: int = 5
) -> Ridge:
    """Ridge regression in closed form, one penalty for all targets, chosen by cross-validation.

    Args:
        signal_NV: signals; any unit, they are centred here.
        target_NT: what to predict.
        group_N: rows of one group (repeats of one stimulus) never stand on both sides of a fold.
        split_N: split code of each row; test rows are refused.

    Raises:
        ConfigError: a test row, lengths that differ, fewer than two groups, or values that are not finite.
    """
    refuse_test(split_N, what="ridge regression")
    signal_NV, target_NT = np.asarray(signal_NV, dtype=np.float64), np.asarray(target_NT, dtype=np.float64)
    lengths = {len(signal_NV), len(target_NT), len(group_N), len(split_N)}
    if len(lengths) != 1:
        raise ConfigError(
            f"Ridge regression got arrays of {sorted(lengths)} rows; signals, targets, groups must agree."
        )
    if not (np.isfinite(signal_NV).all() and np.isfinite(target_NT).all()):
        raise ConfigError("Ridge regression got NaN or infinite values; expected finite ones. Pack the data again.")
    names, group_of_N = np.unique(group_N, return_inverse=True)
    if len(names) < 2:
        raise ConfigError(f"Ridge regression needs at least 2 training stimuli, found {len(names)}.")
    folds = min(folds, len(names))
    fold_N = (keyed(seed, "ridge/folds").permutation(len(names)) % folds)[group_of_N]
    total = sum(
        _Path(signal_NV[fold_N != fold], target_NT[fold_N != fold]).errors(
            signal_NV[fold_N == fold], target_NT[fold_N == fold]
        )
        for fold in range(folds)
    )
    path, best = _Path(signal_NV, target_NT), PENALTIES[int(np.argmin(total))]
    errors = dict(zip(PENALTIES.tolist(), (total / target_NT.size).tolist(), strict=True))
    weight_VT = path.basis_VR @ path.shrunk(best)
    return Ridge(weight_VT, path.signal_mean_V, path.target_mean_T, float(best * path.scale), errors)


def ridge_decode(train: Rows, target_NT: np.ndarray, test: Rows, *, seed: int) -> tuple[np.ndarray, dict[int, Ridge]]:
    """Fit one ridge per subject and predict the targets of ``test``: float64 (n, T), and the fits by subject.

    Raises:
        ConfigError: a subject to decode has no training rows.
    """
    predicted_nT, fits = np.empty((len(test.signal_NV), target_NT.shape[1])), {}
    for subject in np.unique(test.subject_N).tolist():
        own, asked = train.subject_N == subject, test.subject_N == subject
        if not own.any():
            raise ConfigError(f"Subject {subject} has rows to decode but none to train on. Pack its training runs too.")
        fits[subject] = ridge_fit(
            train.signal_NV[own], target_NT[own], train.stimulus_N[own], split_N=train.split_N[own], seed=seed
        )
        predicted_nT[asked] = fits[subject].predict(test.signal_NV[asked])
    return predicted_nT, fits


def nearest(query_nD: np.ndarray, bank_MD: np.ndarray) -> np.ndarray:
    """Index into the bank of the row that correlates most with each query: int64 (n)."""
    return pair_correlation(query_nD[:, None], bank_MD)[:, 0].argmax(1)


def nearest_training_stimulus(train: Rows, test: Rows) -> np.ndarray:
    """The training stimulus whose fMRI, in the same subject, correlates most with each test row: int64 (n).

    Raises:
        ConfigError: ``train`` holds test rows, or a subject to decode has no training rows.
    """
    refuse_test(train.split_N, what="nearest training stimulus")
    found = np.empty(len(test.signal_NV), dtype=np.int64)
    for subject in np.unique(test.subject_N).tolist():
        own, asked = train.subject_N == subject, test.subject_N == subject
        if not own.any():
            raise ConfigError(f"Subject {subject} has rows to decode but none to train on. Pack its training runs too.")
        found[asked] = train.stimulus_N[own][nearest(test.signal_NV[asked], train.signal_NV[own])]
    return found
