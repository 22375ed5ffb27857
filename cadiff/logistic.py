"""Linear read-outs of features: multinomial logistic regression, principal components, and nearest class means.

Everything is fitted on training rows only, the penalty by leaving out one training group (run) after the other.

Legend: N training rows, n rows to decode, F features, K components, C classes, R rank, S = R + 1 with the offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.errors import ConfigError
from cadiff.metrics import pair_correlation

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # times half the squared weights; strong ones first
STEPS = 200  # of the optimiser, for each penalty


@dataclass(frozen=True)
class Standard:
    """A z-score with the statistics of training rows; features without variance become zeros."""

    mean_F: np.ndarray
    scale_F: np.ndarray

    @classmethod
    def of(cls, features_NF: np.ndarray) -> Standard:
        spread_F = features_NF.std(0)
        return cls(features_NF.mean(0), np.divide(1, spread_F, out=np.zeros_like(spread_F), where=spread_F > 1e-9))

    def __call__(self, features_nF: np.ndarray) -> np.ndarray:
        return (features_nF - self.mean_F) * self.scale_F


@dataclass(frozen=True)
class Components:
    """The leading principal components of training rows."""

    mean_F: np.ndarray
    basis_FK: np.ndarray  # orthonormal columns, largest variance first

    @classmethod
    def of(cls, features_NF: np.ndarray, count: int) -> Components:
        """As many as asked, or as there are: at most min(N - 1, F)."""
        mean_F = features_NF.mean(0)
        basis_FR = _span(np.asarray(features_NF - mean_F, dtype=np.float64))  # ascending
        return cls(mean_F, basis_FR[:, ::-1][:, : min(count, len(features_NF) - 1)])

    def __call__(self, features_nF: np.ndarray) -> np.ndarray:
        return (features_nF - self.mean_F) @ self.basis_FK


def logistic_decode(
    train_NF: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, test_nF: np.ndarray
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on z-scored features, minimising

        mean over rows of -log p(label)  +  penalty / 2 * sum of squared weights (without the offsets).

    Args:
        train_NF: features of training rows, any float type.
        label_N: class numbers, 0 or above.
        group_N: the run of each row; the penalty of the least error over left-out groups is taken.
        test_nF: rows to decode.

    Returns:
        Predicted class numbers int64 (n,), and the penalty.

    Raises:
        ConfigError: lengths differ, or fewer than two groups or classes.
    """
    train_NF, test_nF = np.asarray(train_NF, dtype=np.float64), np.asarray(test_nF, dtype=np.float64)
    classes, target_N = np.unique(label_N, return_inverse=True)
    groups = np.unique(group_N)
    if not len(train_NF) == len(label_N) == len(group_N):
        raise ConfigError(f"A probe got {len(train_NF)} rows, {len(label_N)} labels and {len(group_N)} groups.")
    if len(groups) < 2 or len(classes) < 2:
        raise ConfigError(
            f"A probe needs at least 2 training runs and 2 classes, found {len(groups)} and {len(classes)}. "
            "Pack more labelled runs."
        )
    standard = Standard.of(train_NF)
    # With a squared penalty the weights lie in the span of the rows, so nothing is lost in its coordinates.
    basis_FR = _span(standard(train_NF))
    train_NR, test_nR = standard(train_NF) @ basis_FR, standard(test_nF) @ basis_FR
    wanted_NC = np.eye(len(classes))[target_N]
    wrong = np.zeros(len(PENALTIES))
    for group in groups:
        fit, out = group_N != group, group_N == group
        for i, weights in enumerate(fits(train_NR[fit], wanted_NC[fit], PENALTIES)):
            wrong[i] += (scores(train_NR[out], weights).argmax(1) != target_N[out]).sum()
    best = int(wrong.argmin())  # of equals the strongest
    *_, weights = fits(train_NR, wanted_NC, PENALTIES[: best + 1])
    return classes[scores(test_nR, weights).argmax(1)], PENALTIES[best]


def scores(features_nR: np.ndarray, weights_SC: np.ndarray) -> np.ndarray:
    """Log-odds (n, C) from weights and, in the last row, offsets: (R + 1, C)."""
    return features_nR @ weights_SC[:-1] + weights_SC[-1]


def fits(train_NR: np.ndarray, wanted_NC: np.ndarray, penalties: tuple[float, ...]) -> list[np.ndarray]:
    """Weights with offsets below, (R + 1, C), for each penalty; each solution begins at the one before.

    Columns of ``train_NR`` are principal axes. Each is scaled by what the curvature along it is at most (Boehning, Ann.
    Inst. Statist. Math. 1992: half the mean square, for the softmax), so that a few steps are enough.

    Args:
        wanted_NC: 1 at each row's class, else 0.
    """
    from scipy.optimize import minimize

    rank, classes = train_NR.shape[1], wanted_NC.shape[1]
    curvature_R = (train_NR**2).mean(0) / 2
    train_NR, wanted_NC = train_NR.astype(np.float32), wanted_NC.astype(np.float32)  # the products take the time
    found, weights_SC = [], np.zeros((rank + 1, classes))
    for penalty in penalties:
        scale_S1 = np.append(1 / np.sqrt(curvature_R + penalty), 1.0)[:, None]

        def loss(point: np.ndarray, penalty: float = penalty, scale_S1: np.ndarray = scale_S1) -> tuple:
            weights_SC = point.reshape(rank + 1, classes) * scale_S1
            score_NC = scores(train_NR, weights_SC.astype(np.float32))
            score_NC -= score_NC.max(1, keepdims=True)
            mass_NC = np.exp(score_NC)
            total_N = mass_NC.sum(1)
            value = (np.log(total_N) - (score_NC * wanted_NC).sum(1)).mean() + penalty / 2 * (
                weights_SC[:-1] ** 2
            ).sum()
            error_NC = (mass_NC / total_N[:, None] - wanted_NC) / len(train_NR)
            slope_SC = np.concatenate([train_NR.T @ error_NC + penalty * weights_SC[:-1], error_NC.sum(0)[None]])
            return value, (slope_SC * scale_S1).ravel()

        start = (weights_SC / scale_S1).ravel()
        options = {"maxiter": STEPS, "gtol": 1e-5, "ftol": 1e-7}
        weights_SC = minimize(loss, start, method="L-BFGS-B", jac=True, options=options).x.reshape(rank + 1, classes)
        weights_SC = weights_SC * scale_S1
        found.append(weights_SC)
    return found


def _span(train_NF: np.ndarray) -> np.ndarray:
    """Orthonormal axes (F, R) of the space in which rows lie, from the smaller of their two Gram matrices."""
    if train_NF.shape[1] <= len(train_NF):
        return np.linalg.eigh(train_NF.T @ train_NF)[1]
    values_N, vectors_NN = np.linalg.eigh(train_NF @ train_NF.T)
    kept = values_N > 1e-10 * values_N[-1]
    return train_NF.T @ (vectors_NN[:, kept] / np.sqrt(values_N[kept]))


def centroid_decode(train_NF: np.ndarray, label_N: np.ndarray, test_nF: np.ndarray) -> np.ndarray:
    """The class whose mean training row correlates most with each test row: int64 (n,)."""
    classes = np.unique(label_N)
    mean_CF = np.stack([np.asarray(train_NF)[label_N == name].mean(0) for name in classes])
    return classes[pair_correlation(np.asarray(test_nF)[:, None], mean_CF)[:, 0].argmax(1)]
