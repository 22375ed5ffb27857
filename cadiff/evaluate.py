"""Score several decoders on the same test stimuli: means, intervals, chance and paired differences.

Legend: n rows (decoded signals), k samples per row, M distinct stimuli, S pixels per side, R resamples, J metrics.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.judge import Judge, fingerprint
from cadiff.metrics import METRICS
from cadiff.models.classifier import Classifier
from cadiff.statistics import COVERAGE, RESAMPLES, Interval, best_column, interval_of, resampled_means

FORMAT = "cadiff-metrics/1"
MAIN = "cadiff"
WAYS = 50  # of the published protocol; a classifier of fewer classes makes it that many
BEST = "n-way-top1-best-column"


def evaluate(
    methods: dict[str, np.ndarray],
    truth: np.ndarray,
    labels: np.ndarray,
    classifier: Classifier,
    *,
    seed: int,
    stimulus: np.ndarray | None = None,
    ways: int = WAYS,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Score every method; the first one (or the one called "cadiff") is compared with each other one.

    Args:
        methods: name -> uint8 (n, k, 3, S, S) reconstructions; k may differ between methods.
        truth: uint8 (n, 3, S, S), the stimulus of each row.
        labels: integer (n), -1 where the class is unknown.
        classifier: reads classes and features; trained on no test stimulus.
        seed: keys the bootstrap.
        stimulus: integer (n); rows of one stimulus (subjects, repeats) are averaged before any interval, and never
            serve as each other's distractors. Default: rows with the same picture are one stimulus.
        ways: n of the n-way scores, lowered to the number of classes.

    Returns:
        JSON-able dict: definitions, methods[name][metric] = {value, low, high, chance, protocol, n, samples},
        differences["cadiff - other"][metric], rows (scores of each row for the report), classifier, notes.

    Raises:
        ConfigError: fewer than two stimuli, no method, or arrays that do not fit each other.
    """
    labels = np.asarray(labels)
    _check(methods, truth, labels)
    identity = [fingerprint(image) for image in truth] if stimulus is None else np.asarray(stimulus)
    _, first_M, target_N = np.unique(identity, return_index=True, return_inverse=True)
    if len(first_M) < 2:
        raise ConfigError(f"Evaluation needs at least 2 different test stimuli, found {len(first_M)}. Decode more.")
    judge = Judge(classifier, truth, labels, target_N, first_M, ways=min(ways, classifier.classes), seed=seed)
    scored = {name: judge.score(recon) for name, recon in methods.items()}
    averaged = {
        name: {key: _per_stimulus(rows_NK, target_N) for key, rows_NK in scores.items()}
        for name, (scores, _) in scored.items()
    }
    main = MAIN if MAIN in methods else next(iter(methods))
    results, differences = _summaries(
        averaged, {name: chance for name, (_, chance) in scored.items()}, main, seed, resamples
    )
    return {
        "format": FORMAT,
        "seed": seed,
        "main": main,
        "stimuli": len(first_M),
        "classes": classifier.classes,
        "ways": judge.ways,
        "interval": f"{COVERAGE:.0%} percentile bootstrap over stimuli, {resamples} resamples",
        "definitions": {key: vars(METRICS[key]) for key in METRICS if key in results[main]},
        "methods": results,
        "differences": differences,
        "rows": {
            "stimulus": target_N.tolist(),
            "label": labels.tolist(),
            "scores": {
                name: {key: rows_NK.mean(1).tolist() for key, rows_NK in scores.items()}
                for name, (scores, _) in scored.items()
            },
        },
        "classifier": {**classifier.card, "accuracy_on_stimuli": judge.accuracy},
        "notes": judge.notes,
    }


def _summaries(
    averaged: dict[str, dict[str, np.ndarray]],
    chances: dict[str, dict[str, float]],
    main: str,
    seed: int,
    resamples: int,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Intervals of every method and metric, and of main minus each other method, all from the same resamples."""
    names, keys = list(averaged), list(averaged[main])
    scores_MNJ = np.array([[averaged[name][key].mean(1) for key in keys] for name in names]).transpose(2, 0, 1)
    means_RNJ = resampled_means(scores_MNJ.reshape(len(scores_MNJ), -1), seed=seed, resamples=resamples)
    means_RNJ, value_NJ = means_RNJ.reshape(resamples, len(names), len(keys)), scores_MNJ.mean(0)
    results: dict[str, dict] = {name: {} for name in names}
    differences: dict[str, dict] = {f"{main} - {name}": {} for name in names if name != main}
    ours, count = names.index(main), len(scores_MNJ)
    for row, name in enumerate(names):
        for at, key in enumerate(keys):
            found = interval_of(value_NJ[row, at], means_RNJ[:, row, at])
            results[name][key] = _entry(found, key, chances[name][key], averaged[name][key])
            if name != main:
                ahead = interval_of(
                    value_NJ[ours, at] - value_NJ[row, at], means_RNJ[:, ours, at] - means_RNJ[:, row, at]
                )
                differences[f"{main} - {name}"][key] = {**ahead._asdict(), "n": count, "better": METRICS[key].better}
        columns = averaged[name]["n-way-top1"]
        best = best_column(columns, seed=seed, resamples=resamples)
        results[name][BEST] = _entry(best, BEST, chances[name]["n-way-top1"], columns)
    return results, differences


def _entry(scored: Interval, key: str, chance: float, columns_MK: np.ndarray) -> dict[str, Any]:
    stimuli, samples = columns_MK.shape
    about = {"chance": float(chance), "protocol": METRICS[key].protocol, "n": stimuli, "samples": samples}
    return {**scored._asdict(), **about}


def _per_stimulus(rows_NK: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Average the rows of each stimulus: (M, k)."""
    summed = np.zeros((target_N.max() + 1, rows_NK.shape[1]))
    np.add.at(summed, target_N, rows_NK)
    return summed / np.bincount(target_N)[:, None]


def _check(methods: dict[str, np.ndarray], truth: np.ndarray, labels: np.ndarray) -> None:
    if not methods:
        raise ConfigError("Evaluation got no reconstructions. Run `cadiff sample` first.")
    for name, recon in {"truth": truth[:, None], **methods}.items():
        if recon.ndim != 5 or recon.dtype != np.uint8 or recon.shape[2:] != truth.shape[1:] or recon.shape[1] < 1:
            raise ConfigError(
                f"'{name}' is {recon.dtype} {recon.shape}; expected uint8 (rows, samples, 3, S, S) with pictures like "
                f"the stimuli's {truth.shape[1:]}. Resize them alike."
            )
        if not len(recon) == len(labels) == len(truth):
            raise ConfigError(
                f"'{name}' has {len(recon)} rows, with {len(labels)} labels and {len(truth)} stimuli; expected as "
                "many of each. Evaluate one list of test samples."
            )
