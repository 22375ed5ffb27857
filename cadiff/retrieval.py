"""Retrieval of a held-out stimulus from fMRI: a linear readout of features, fitted elsewhere, among all held-out ones.

How much of what was seen is linearly readable from a network's fMRI features, in the space of image features: ridge
regression is fitted on training samples, one penalty chosen by cross-validation over whole training stimuli; each
held-out stimulus gets one prediction, the mean over its samples; and the stimuli are ranked by their cosine with it,
after both lost the mean of the training targets, which all pictures have in common and which tells none apart.

Legend: N training samples, M samples to retrieve from, F features, E target features, S stimuli to tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.baselines import ridge_fit
from cadiff.errors import ConfigError
from cadiff.metrics import retrieval, two_way
from cadiff.splits import TRAIN
from cadiff.statistics import Interval, interval_of, resampled_means

SCORES = ("top1", "top5", "two_way")


@dataclass(frozen=True)
class Retrieval:
    """What was found, stimulus by stimulus. Ties count in expectation, so features that say nothing score chance.

    Attributes:
        stimulus_S: int64, ascending.
        rows: each of ``SCORES``: float64 (S,), in 0..1.
        cosine_SS: float64, of prediction (row) with stimulus (column).
        penalty: of the readout.
    """

    stimulus_S: np.ndarray
    rows: dict[str, np.ndarray]
    cosine_SS: np.ndarray
    penalty: float

    @property
    def top1(self) -> float:
        """The own stimulus is the most similar of all."""
        return float(self.rows["top1"].mean())

    @property
    def top5(self) -> float:
        """The own stimulus is among the five most similar; 1 where there are no more than five."""
        return float(self.rows["top5"].mean())

    @property
    def two_way(self) -> float:
        """Share of the other stimuli that are less similar than the own."""
        return float(self.rows["two_way"].mean())

    @property
    def chance(self) -> dict[str, float]:
        """What guessing scores, for each of ``SCORES``."""
        count = len(self.stimulus_S)
        return {"top1": 1 / count, "top5": min(1.0, 5 / count), "two_way": 0.5}

    def intervals(self, seed: int) -> dict[str, Interval]:
        """Each score with its 95 % bootstrap interval over stimuli; draws are shared, so differences pair."""
        means_RK = resampled_means(np.stack([self.rows[name] for name in SCORES], axis=1), seed=seed)
        return {name: interval_of(self.rows[name].mean(), means_RK[:, k]) for k, name in enumerate(SCORES)}


def retrieve(
    train_features_NF: np.ndarray,
    train_targets_NE: np.ndarray,
    train_stimulus_N: np.ndarray,
    features_MF: np.ndarray,
    targets_ME: np.ndarray,
    stimulus_M: np.ndarray,
    *,
    seed: int,
) -> Retrieval:
    """Fit a readout of training samples and find each other stimulus among all others.

    Computed in float64, among the samples where there are fewer of them than features (the dual form), by one
    eigendecomposition for each of five folds and one for all.

    Args:
        train_features_NF, features_MF: of fMRI; any unit.
        train_targets_NE, targets_ME: of the picture that was shown; where samples of one stimulus differ, their mean
            is the candidate.
        train_stimulus_N, stimulus_M: int64; none may be in both.
        seed: keys the folds.

    Raises:
        ConfigError: sizes that differ, fewer than two stimuli on either side, a stimulus on both, or values that are
            not finite.
    """
    stimulus_S, place_M = np.unique(stimulus_M, return_inverse=True)
    if not len(features_MF) == len(targets_ME) == len(stimulus_M):
        raise ConfigError(
            f"Retrieval got {len(features_MF)} features, {len(targets_ME)} targets and {len(stimulus_M)} stimuli; give "
            "one of each for every sample."
        )
    if len(stimulus_S) < 2:
        raise ConfigError(f"Retrieval tells held-out stimuli apart and found {len(stimulus_S)} of them. Hold out more.")
    if len(both := np.intersect1d(stimulus_S, train_stimulus_N)):
        raise ConfigError(f"Retrieval: stimulus {both[0]} is both held out and fitted. Keep whole stimuli on one side.")
    if not (np.isfinite(features_MF).all() and np.isfinite(targets_ME).all()):
        raise ConfigError("Retrieval got NaN or infinite features; expected finite ones. Did the training diverge?")
    split_N = np.full(len(train_stimulus_N), TRAIN)
    fit = ridge_fit(train_features_NF, train_targets_NE, train_stimulus_N, split_N=split_N, seed=seed)
    predicted_SE = _means(fit.predict(np.asarray(features_MF, dtype=np.float64)), place_M) - fit.target_mean_T
    candidates_SE = _means(np.asarray(targets_ME, dtype=np.float64), place_M) - fit.target_mean_T
    cosine_SS = _units(predicted_SE) @ _units(candidates_SE).T
    pairs_S1S, own_S = cosine_SS[:, None], np.arange(len(stimulus_S))
    rows = {
        "top1": retrieval(pairs_S1S, own_S, top=1)[:, 0],
        "top5": retrieval(pairs_S1S, own_S, top=5)[:, 0],
        "two_way": two_way(pairs_S1S, own_S)[:, 0],
    }
    return Retrieval(stimulus_S, rows, cosine_SS, fit.penalty)


def _means(rows_ME: np.ndarray, place_M: np.ndarray) -> np.ndarray:
    """The mean over the rows of each place: float64 (S, E)."""
    sums_SE = np.zeros((place_M.max() + 1, rows_ME.shape[1]))
    np.add.at(sums_SE, place_M, rows_ME)
    return sums_SE / np.bincount(place_M)[:, None]


def _units(rows_SE: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros is like nothing."""
    lengths_S1 = np.linalg.norm(rows_SE, axis=1, keepdims=True)
    return np.divide(rows_SE, lengths_S1, out=np.zeros_like(rows_SE), where=lengths_S1 > 1e-9)
