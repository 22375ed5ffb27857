"""A linear probe on a frozen phase-1 encoder's features, beside the same probe on what went into the encoder.

One group of samples (a run, or a subject) is held out at a time; the probe, its penalty, the z-scores and the principal
components are fitted on the other groups. Whether the encoder itself had seen the held-out runs is looked up in its
export, fold by fold.

Legend: N samples, V voxels, F features, G folds, M methods.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError
from cadiff.frozen import Seen, lineage, load_encoder, runs_of, runs_trained_on, untrained_encoder
from cadiff.logistic import Components, centroid_decode, logistic_decode
from cadiff.shards.dataset import Dataset
from cadiff.shards.record import Progress, silent
from cadiff.shards.voxels import padded_width
from cadiff.statistics import chance_class, interval_of, resampled_means

Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows to fit, rows to decode -> classes of the latter


def decoders(
    signals_NV: np.ndarray, features: dict[str, np.ndarray], label_N: np.ndarray, group_N: np.ndarray, components: int
) -> dict[str, Decode]:
    """Every method of the comparison, as a function of the rows to fit on and the rows to decode."""

    def probe(features_NF: np.ndarray) -> Decode:
        return lambda fit, out: logistic_decode(features_NF[fit], label_N[fit], group_N[fit], features_NF[out])[0]

    def components_probe(fit: np.ndarray, out: np.ndarray) -> np.ndarray:
        reduce = Components.of(signals_NV[fit], components)
        return logistic_decode(reduce(signals_NV[fit]), label_N[fit], group_N[fit], reduce(signals_NV[out]))[0]

    return {
        **{name: probe(values) for name, values in features.items()},
        "voxels": probe(signals_NV),
        "pca": components_probe,
        "centroid": lambda fit, out: centroid_decode(signals_NV[fit], label_N[fit], signals_NV[out]),
    }


def probe(
    export: str | Path,
    dataset: Dataset,
    *,
    hold_out: Literal["run", "subject"] = "run",
    seed: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Decode the labels of a packed set from frozen features, one held-out run or subject at a time.

    The methods are the probe on "frozen mean", "frozen cls" and "frozen patches" (see ``Encoder.features``), on the
    same of the untrained network, on "voxels", and on as many principal components as the encoder is wide ("pca"); and
    the nearest class mean of voxels by correlation ("centroid"). Samples without a label are left out, and splits are
    ignored: the folds take their place.

    Returns:
        JSON values: ``methods`` (accuracy over folds with the ends of its 95 % bootstrap interval over folds, the
        paired difference to "voxels", each fold's), ``folds`` with what the encoder had seen of each, ``unseen`` (the
        same for folds of which it had seen nothing; None without two of them), ``chance`` and ``warnings``.

    Raises:
        ConfigError: fewer than three labelled groups, or a subject wider than the encoder. DataError: damaged data.
    """
    ids = np.flatnonzero(dataset.table.label >= 0)
    runs, label_N = runs_of(dataset, ids), dataset.table.label[ids]
    groups = [subject if hold_out == "subject" else run for subject, run in runs]
    names, group_N = np.unique(np.array(groups, dtype=str), return_inverse=True)
    if len(names) < 3:
        raise ConfigError(
            f"{dataset.folder}: labelled samples of {len(names)} {hold_out}s; leaving one out, and choosing a penalty "
            "on the rest, takes at least 3. Pack more of them with labels."
        )
    encoder = load_encoder(export)
    features = {f"frozen {name}": value for name, value in encoder.features(dataset, ids).items()}
    blank = untrained_encoder(export, seed).features(dataset, ids)
    features |= {f"untrained {name}": value for name, value in blank.items()}
    signals_NV = dataset.signals(ids, padded_width(dataset.voxels, 1))
    width = features["frozen mean"].shape[1]
    right: dict[str, list[float]] = {}
    for fold, name in enumerate(names):
        progress(f"held out: {name}", fold, len(names))
        fit, out = np.flatnonzero(group_N != fold), np.flatnonzero(group_N == fold)
        for method, decode in decoders(signals_NV, features, label_N, group_N, width).items():
            right.setdefault(method, []).append(float((decode(fit, out) == label_N[out]).mean()))
    seen = runs_trained_on(export, dataset)
    shares = [_share_seen(seen, runs, group_N == fold) for fold in range(len(names))]
    unseen = [fold for fold, share in enumerate(shares) if share == 0]
    return {
        "protocol": "linear-probe/1",
        "hold_out": hold_out,
        "samples": len(ids),
        "classes": dataset.classes,
        "chance": chance_class(label_N, len(dataset.classes)),
        "components": width,
        "folds": [{"name": name, "seen": share} for name, share in zip(names.tolist(), shares)],
        "methods": summarise(right, seed),
        "unseen": summarise({m: [v[i] for i in unseen] for m, v in right.items()}, seed) if len(unseen) > 1 else None,
        "trained_on": lineage(export),
        "warnings": warnings_of(shares, hold_out),
    }


def summarise(right: dict[str, list[float]], seed: int) -> dict[str, Any]:
    """Accuracy of each method with its interval, and the paired difference to "voxels", over the same folds."""
    methods = list(right)
    score_GM = np.array([right[name] for name in methods]).T
    means_RM, base = resampled_means(score_GM, seed=seed), methods.index("voxels")
    told = {}
    for i, name in enumerate(methods):
        value, low, high = interval_of(score_GM[:, i].mean(), means_RM[:, i])
        paired = interval_of((score_GM[:, i] - score_GM[:, base]).mean(), means_RM[:, i] - means_RM[:, base])
        told[name] = {
            "accuracy": value, "low": low, "high": high, "minus_voxels": list(paired), "folds": right[name]
        }  # fmt: skip
    return told


def _share_seen(seen: Seen | None, runs: list[tuple[str, str]], out_N: np.ndarray) -> float | None:
    """The share of a fold's samples whose run the encoder was trained on; None if that is not known."""
    asked = [runs[i] for i in np.flatnonzero(out_N)]
    return None if seen is None else sum(run in seen for run in asked) / len(asked)


def warnings_of(shares: list[float | None], hold_out: str) -> list[str]:
    """What keeps the probe's numbers from being what they seem."""
    if None in shares:
        return [
            "what the encoder was trained on cannot be looked up (its packed folders are gone or have changed, or it "
            "was imported), so it may have seen the runs it is tested on"
        ]
    told, known = [], sum(share > 0 for share in shares)
    if known:
        told.append(
            f"the encoder was trained on runs of {known} of the {len(shares)} held-out {hold_out}s, without labels; "
            "their accuracies are not those of new data. Train on the other runs only"
        )
        if known < len(shares) - 1:
            told[0] += ", or read `unseen`"
    return told
