"""Linear read-outs of features: multinomial logistic regression, principal components, and nearest class means.

Everything is fitted on training rows only, the penalty by leaving out one training group (run) after the other.

Legend: N training rows, n rows to decode, F features, K components, C classes, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.errors import ConfigError

PENALTIES = tuple(float(value) for value in np.logspace(1, -4, 6))  # times half the squared weights; strong ones first
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
        *_, basis_RF = np.linalg.svd(features_NF - mean_F, full_matrices=False)
        return cls(mean_F, basis_RF[: min(count, len(features_NF) - 1)].T)

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
    wrong = np.zeros(len(PENALTIES))
    for group in groups:
        fit, out = group_N != group, group_N == group
        for i, score_nC in enumerate(_path(train_NF[fit], target_N[fit], train_NF[out], len(classes), PENALTIES)):
            wrong[i] += (score_nC.argmax(1) != target_N[out]).sum()
    best = int(wrong.argmin())  # of equals the strongest
    *_, score_nC = _path(train_NF, target_N, test_nF, len(classes), PENALTIES[: best + 1])
    return classes[score_nC.argmax(1)], PENALTIES[best]


def _path(
    train_NF: np.ndarray, target_N: np.ndarray, test_nF: np.ndarray, classes: int, penalties: tuple[float, ...]
) -> list[np.ndarray]:
    """Scores (n, C) of the test rows for each penalty, each solution starting from the one before."""
    from scipy.optimize import minimize

    standard = Standard.of(train_NF)
    train_NR, test_nR = standard(train_NF), standard(test_nF)
    if train_NR.shape[1] > len(train_NR):
        # With a squared penalty the weights lie in the span of the rows, so nothing is lost in its coordinates.
        left_NR, value_R, right_RF = np.linalg.svd(train_NR, full_matrices=False)
        train_NR, test_nR = left_NR * value_R, test_nR @ right_RF.T
    rank, wanted_NC = train_NR.shape[1], np.eye(classes)[target_N]
    scores, point = [], np.zeros((rank + 1) * classes)

    def loss(point: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        weight_RC, offset_C = point[:-classes].reshape(rank, classes), point[-classes:]
        score_NC = train_NR @ weight_RC + offset_C
        score_NC -= score_NC.max(1, keepdims=True)
        mass_NC = np.exp(score_NC)
        total_N = mass_NC.sum(1)
        value = (np.log(total_N) - (score_NC * wanted_NC).sum(1)).mean() + penalty / 2 * (weight_RC**2).sum()
        error_NC = (mass_NC / total_N[:, None] - wanted_NC) / len(train_NR)
        slope_RC = train_NR.T @ error_NC + penalty * weight_RC
        return value, np.concatenate([slope_RC.ravel(), error_NC.sum(0)])

    for penalty in penalties:
        options = {"maxiter": STEPS, "gtol": 1e-4}
        point = minimize(loss, point, (penalty,), method="L-BFGS-B", jac=True, options=options).x
        scores.append(test_nR @ point[:-classes].reshape(rank, classes) + point[-classes:])
    return scores


def centroid_decode(train_NF: np.ndarray, label_N: np.ndarray, test_nF: np.ndarray) -> np.ndarray:
    """The class whose mean training row correlates most with each test row: int64 (n,)."""
    from cadiff.metrics import pair_correlation

    classes = np.unique(label_N)
    mean_CF = np.stack([np.asarray(train_NF)[label_N == name].mean(0) for name in classes])
    return classes[pair_correlation(np.asarray(test_nF)[:, None], mean_CF)[:, 0].argmax(1)]
