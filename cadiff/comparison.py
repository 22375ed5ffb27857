"""Put a decoder beside its controls on the same held-out stimuli: ridge, nearest training stimulus, shuffled fMRI.

Legend: N rows (decoded samples), K pictures per row, S pixels per side.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.baselines import nearest_training_stimulus, ridge_decode, rows_of
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate import evaluate
from cadiff.files import read_json, whole_file, write_json
from cadiff.judge import train_judge
from cadiff.sample import decode_latents, encode_images
from cadiff.shards.dataset import Dataset
from cadiff.shards.record import Progress, silent
from cadiff.shards.voxels import padded_width


@dataclass(frozen=True)
class Samples:
    """What ``cadiff sample`` wrote: pictures uint8 (N, K, 3, S, S) with their truth, ids and facts."""

    truth: np.ndarray
    reconstruction: np.ndarray
    sample_id: np.ndarray
    stimulus: np.ndarray
    label: np.ndarray
    facts: dict[str, Any]


def read_samples(folder: str | Path) -> Samples:
    """Read a folder written by ``write_samples``.

    Raises:
        DataError: the folder is unfinished or damaged.
    """
    folder = Path(folder)
    facts = read_json(folder / "samples.json")
    try:
        with np.load(folder / "samples.npz", allow_pickle=False) as stored:
            names = ("truth", "reconstruction", "sample_id", "stimulus", "label")
            return Samples(*(stored[name] for name in names), facts=facts)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as problem:
        raise DataError(f"{folder}/samples.npz: not readable ({problem}). Run `cadiff sample` again.") from None


def compare(
    samples: Samples,
    shuffled: Samples | None,
    export: str | Path,
    dataset: Dataset,
    judge_sets: list[Dataset],
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score the samples and their controls.

    Args:
        export: any export that holds the first stage; ridge predicts its latents, so both decode alike.
        dataset: the set the samples were decoded from; its training rows fit the baselines.
        judge_sets: sets whose training pictures teach the classifier; ``dataset`` first.

    Returns:
        The metrics (JSON values) and every method's pictures, uint8 (N, K, 3, S, S).

    Raises:
        ConfigError: the samples come from another version of the set, or their shuffled control does not pair.
    """
    if samples.facts["dataset"] != dataset.hash:
        raise ConfigError(f"{dataset.folder}: is not the version the samples were decoded from. Sample again.")
    progress("ridge regression and nearest training stimulus", 0, 3)
    methods = {"cadiff": samples.reconstruction, **baseline_pictures(samples, export, dataset, seed)}
    if shuffled is not None:
        if not np.array_equal(shuffled.sample_id, samples.sample_id):
            raise ConfigError("The shuffled control has other stimuli than the samples. Sample both with one limit.")
        methods["shuffled"] = shuffled.reconstruction
    progress("classifier", 1, 3)
    judge = train_judge(judge_sets, size=samples.truth.shape[-1], seed=seed)
    progress("scores with intervals", 2, 3)
    metrics = evaluate(methods, samples.truth, samples.label, judge, seed=seed, stimulus=samples.stimulus)
    progress("done", 3, 3)
    return metrics, methods


def baseline_pictures(samples: Samples, export: str | Path, dataset: Dataset, seed: int) -> dict[str, np.ndarray]:
    """Ridge to first-stage latents, and the picture of the nearest training response; both fitted on train only."""
    size, width = samples.truth.shape[-1], padded_width(dataset.voxels, 1)
    subjects = [dataset.subjects[number] for number in np.unique(dataset.table.subject[samples.sample_id])]
    train_ids = dataset.ids(split="train", subjects=subjects)
    train, test = rows_of(dataset, train_ids, width), rows_of(dataset, samples.sample_id, width)
    shown, row_of = np.unique(train.stimulus_N, return_inverse=True)
    latents = encode_images(export, dataset.images(shown, size))
    predicted, _ = ridge_decode(train, latents.reshape(len(latents), -1)[row_of], test, seed=seed)
    ridge = decode_latents(export, predicted.reshape(-1, *latents.shape[1:]).astype(np.float32))
    nearest = dataset.images(nearest_training_stimulus(train, test), size)
    return {"ridge": ridge[:, None], "nearest": nearest[:, None]}


def write_comparison(folder: str | Path, metrics: dict[str, Any], methods: dict[str, np.ndarray]) -> None:
    """Write ``metrics.json`` last, beside ``methods.npz`` with every method's pictures."""
    folder = Path(folder)
    with whole_file(folder / "methods.npz") as beside, open(beside, "wb") as handle:
        np.savez_compressed(handle, **methods)
    write_json(folder / "metrics.json", metrics)
