"""Scores of reconstructions against stimuli, vectorised, each with its range, direction, chance and protocol.

Legend: N rows (one per decoded signal), K samples per row, M pool of distinct stimuli, P pixels or features,
C classes. Every score is averaged over K before anything else looks at it; the one exception says so in its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from cadiff.errors import ConfigError

TIE = 1e-6  # similarities closer than this are rounding of the same number


@dataclass(frozen=True)
class Metric:
    """What a score is: ``protocol`` changes whenever a number computed by it would."""

    title: str
    protocol: str
    low: float
    high: float
    better: str  # "higher" or "lower"
    chance: str  # the rule that gives the chance level
    meaning: str


MISMATCHED = "mean score of the same reconstructions against other stimuli"
METRICS: dict[str, Metric] = {
    "two-way-features": Metric(
        "Two-way identification, features", "two-way-features/1", 0, 1, "higher", "1/2",
        "share of the other test stimuli whose classifier features correlate less with the reconstruction's",
    ),
    "two-way-pixcorr": Metric(
        "Two-way identification, pixels", "two-way-pixcorr/1", 0, 1, "higher", "1/2",
        "share of the other test stimuli whose pixels correlate less with the reconstruction's",
    ),
    "class-accuracy": Metric(
        "Class accuracy", "class-accuracy/1", 0, 1, "higher", "1/classes, or the commonest class's share if larger",
        "the classifier reads the stimulus' true label from the reconstruction",
    ),
    "n-way-top1": Metric(
        "n-way top-1", "n-way-top-k-expected/1", 0, 1, "higher", "1/n",
        "the class read from the stimulus wins among n - 1 random others (Chen et al. 2023), exact expectation",
    ),
    "n-way-top5": Metric(
        "n-way top-5", "n-way-top-k-expected/1", 0, 1, "higher", "5/n",
        "the class read from the stimulus is among the best five of n, exact expectation",
    ),
    "n-way-top1-best-column": Metric(
        "n-way top-1, best sample column", "n-way-top-1-max-over-columns/1", 0, 1, "higher", "1/n, exceeded by luck",
        "largest column mean over the samples: optimistic, only for comparison with published figures of that kind",
    ),
    "retrieval-top1": Metric(
        "Retrieval top-1", "retrieval-features/1", 0, 1, "higher", "1/pool",
        "the reconstruction's features are nearest to its own stimulus in the whole test pool",
    ),
    "retrieval-top5": Metric(
        "Retrieval top-5", "retrieval-features/1", 0, 1, "higher", "5/pool",
        "its own stimulus is among the five nearest of the test pool",
    ),
    "pixcorr": Metric(
        "Pixel correlation", "pixcorr/1", -1, 1, "higher", MISMATCHED,
        "Pearson correlation of all colour values; a picture without contrast scores 0",
    ),
    "ssim_rgb": Metric(
        "SSIM (RGB)", "ssim-rgb-skimage/1", -1, 1, "higher", MISMATCHED,
        "structural similarity per colour channel, uniform 7 x 7 window, range 255 (scikit-image)",
    ),
    "mse": Metric(
        "Mean squared error", "mse-unit/1", 0, 1, "lower", MISMATCHED,
        "squared error of colour values scaled to 0..1, computed in floating point",
    ),
}  # fmt: skip


def keyed(seed: int, stream: str) -> np.random.Generator:
    """A generator of its own for each (seed, stream name): no draw depends on what was drawn before elsewhere."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _flat(values: np.ndarray, lead: int) -> np.ndarray:
    return np.asarray(values).reshape(*values.shape[:lead], -1).astype(np.float32)


def _standard(rows_RP: np.ndarray) -> np.ndarray:
    """Centre each row and scale it to length 1; a constant row becomes zeros, so that it correlates with nothing."""
    centred = rows_RP - rows_RP.mean(-1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-9)


def pair_correlation(recon_NK: np.ndarray, pool_M: np.ndarray) -> np.ndarray:
    """Pearson correlation of every reconstruction with every picture (or feature vector) of the pool.

    Args:
        recon_NK: (N, K, ...) any number type.
        pool_M: (M, ...) with the same trailing shape.

    Returns:
        float64 (N, K, M) in -1..1.
    """
    pool_PM = _standard(_flat(pool_M, 1)).T
    columns = [_standard(_flat(recon_NK[:, k], 1)) @ pool_PM for k in range(recon_NK.shape[1])]
    return np.clip(np.stack(columns, 1), -1, 1)


def pair_mse(recon_NK: np.ndarray, pool_M: np.ndarray) -> np.ndarray:
    """Mean squared error of every uint8 reconstruction against every uint8 picture, colours in 0..1: (N, K, M)."""
    pool_MP = _flat(pool_M, 1).astype(np.float64) / 255
    columns = []
    for k in range(recon_NK.shape[1]):
        rows_NP = _flat(recon_NK[:, k], 1).astype(np.float64) / 255
        squares = (rows_NP**2).sum(1)[:, None] + (pool_MP**2).sum(1)[None] - 2 * rows_NP @ pool_MP.T
        columns.append(np.maximum(squares, 0) / rows_NP.shape[1])
    return np.stack(columns, 1)


def own(pairs_NKM: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Pick from a pair table the entries of each row's own stimulus: (N, K)."""
    return np.take_along_axis(pairs_NKM, np.asarray(target_N)[:, None, None], 2)[..., 0]


def mismatched_mean(pairs_NKM: np.ndarray, target_N: np.ndarray) -> float:
    """Mean over every pair of a reconstruction with a stimulus that is not its own: the empirical chance level."""
    others = pairs_NKM.sum() - own(pairs_NKM, target_N).sum()
    return float(others / (pairs_NKM.size - pairs_NKM[..., 0].size))


def ssim_rgb(recon_NK: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 (N, K, 3, S, S) reconstructions with uint8 (N, 3, S, S) stimuli: (N, K).

    Source: Wang et al. 2004 as in scikit-image's ``structural_similarity`` with ``channel_axis`` and range 255,
    which is the choice of the n-way protocol's authors. It is not the grey-level SSIM of the NSD tables.
    """
    from skimage.metrics import structural_similarity

    return np.array(
        [
            [structural_similarity(sample, truth, channel_axis=0, data_range=255) for sample in samples]
            for samples, truth in zip(recon_NK, truth_N, strict=True)
        ]
    )


def two_way(pairs_NKM: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Share of the pool's other stimuli that the own stimulus beats in similarity: (N, K), chance 1/2.

    A tie counts half: a reconstruction that resembles nothing scores exactly chance, not 0.

    Raises:
        ConfigError: the pool holds fewer than two stimuli.
    """
    pool = pairs_NKM.shape[2]
    if pool < 2:
        raise ConfigError(f"Identification needs at least 2 different test stimuli, found {pool}. Decode more of them.")
    margin = own(pairs_NKM, target_N)[..., None] - pairs_NKM
    won = (margin > TIE).sum(2) + 0.5 * ((np.abs(margin) <= TIE).sum(2) - 1)  # minus the comparison with itself
    return won / (pool - 1)


def retrieval(pairs_NKM: np.ndarray, target_N: np.ndarray, *, top: int) -> np.ndarray:
    """Chance of finding the own stimulus among the ``top`` most similar of the pool, ties broken at random: (N, K)."""
    margin = own(pairs_NKM, target_N)[..., None] - pairs_NKM
    above, tied = (margin < -TIE).sum(2), (np.abs(margin) <= TIE).sum(2)  # `tied` counts the own stimulus
    return np.clip((top - above) / tied, 0, 1)


def class_accuracy(score_NKC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """1 where the highest-scoring class is the true label, else 0: float64 (N, K)."""
    return (score_NKC.argmax(2) == np.asarray(label_N)[:, None]).astype(np.float64)


def n_way_expected(score_NKC: np.ndarray, class_N: np.ndarray, *, ways: int, top: int) -> np.ndarray:
    """Exact expectation of the sampled n-way top-k score: (N, K).

    With r classes above the true one, the number of them among n - 1 draws without replacement from the C - 1
    other classes is hypergeometric; the trial succeeds if it is below k. Ties count as success, as in the protocol.

    Args:
        score_NKC: logits or probabilities of the reconstruction.
        class_N: the class the classifier reads from the stimulus itself.

    Raises:
        ConfigError: ``ways`` exceeds the classes, or ``top`` is not below ``ways``.

    Source: Chen et al., CVPR 2023 (MinD-Vis), whose sampled score this replaces.
    """
    from scipy.stats import hypergeom

    classes = _check_ways(score_NKC, ways, top)
    truth = np.take_along_axis(score_NKC, np.asarray(class_N)[:, None, None], 2)
    above_NK = (score_NKC > truth).sum(2)
    return hypergeom.cdf(top - 1, classes - 1, above_NK, ways - 1)


def n_way_sampled(
    score_NKC: np.ndarray, class_N: np.ndarray, *, ways: int, top: int, trials: int, seed: int
) -> np.ndarray:
    """The protocol as published: success rate over ``trials`` draws of n - 1 other classes: (N, K).

    Draws are keyed by ``seed`` and shared by all samples of a row.
    """
    classes = _check_ways(score_NKC, ways, top)
    draw, rates = keyed(seed, "n-way"), np.empty(score_NKC.shape[:2])
    for row, true_class in enumerate(np.asarray(class_N)):
        others = np.delete(np.arange(classes), true_class)
        picks_TW = others[draw.random((trials, classes - 1)).argsort(1)[:, : ways - 1]]
        scores_KC = score_NKC[row]
        above_KT = (scores_KC[:, picks_TW] > scores_KC[:, true_class, None, None]).sum(2)
        rates[row] = (above_KT < top).mean(1)
    return rates


def _check_ways(score_NKC: np.ndarray, ways: int, top: int) -> int:
    classes = score_NKC.shape[2]
    if not 1 <= top < ways <= classes:
        raise ConfigError(
            f"{ways}-way top-{top} needs 1 <= top < ways <= classes; the classifier reads {classes} classes. "
            "Choose fewer ways."
        )
    return classes
