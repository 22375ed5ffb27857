"""The judge of an evaluation: its classifier trained on training stimuli, and every score of one method.

Legend: n rows (decoded signals), k samples per row, M distinct stimuli, S pixels per side, C classes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from cadiff import metrics as m
from cadiff.errors import ConfigError
from cadiff.models.classifier import Classifier, fit_classifier
from cadiff.splits import TEST, TRAIN, VAL
from cadiff.statistics import chance_class

if TYPE_CHECKING:
    from cadiff.shards.dataset import Dataset


def train_judge(datasets: list[Dataset], *, size: int, seed: int) -> Classifier:
    """Train the classifier on the train-split stimuli of packed datasets; note its accuracy on validation stimuli.

    Classes are those of the first dataset; pictures of other datasets count where the class name is known there.
    A picture that is, pixel for pixel, also a test stimulus is left out.

    Raises:
        ConfigError: there are no labelled training stimuli.
    """
    names = datasets[0].classes
    held_out = {fingerprint(image) for ds in datasets for image in labelled_pictures(ds, TEST, names, size)[0]}
    images, labels, latest = _joined([labelled_pictures(ds, TRAIN, names, size) for ds in datasets])
    keep = np.array([row for row, image in enumerate(images) if fingerprint(image) not in held_out], dtype=np.int64)
    if not len(keep):
        raise ConfigError("The classifier found no labelled training stimuli in the datasets. Pack some with classes.")
    classifier = fit_classifier(images[keep], labels[keep], classes=len(names), split_B=latest[keep], seed=seed)
    images, labels, _ = _joined([labelled_pictures(ds, VAL, names, size) for ds in datasets])
    if len(images):
        classifier.card["accuracy_on_validation"] = classifier.accuracy(images, labels)
    return classifier


def labelled_pictures(ds: Dataset, split: int, names: list[str], size: int) -> tuple[np.ndarray, ...]:
    """Each stimulus of a split once; stimuli without a picture, or of a class that ``names`` lacks, are left out.

    Returns:
        Pictures uint8 (B, 3, size, size); their class as an index into ``names``, int64 (B); and the latest split code
        of all samples that show the picture, int64 (B): TEST if a single one is a test sample.
    """
    table = ds.table
    index_of = np.array([names.index(name) if name in names else -1 for name in ds.classes] + [-1])
    label_of_row = index_of[table.label]  # -1 picks the last entry: no class
    usable = (table.split == split) & (table.stimulus >= 0) & (label_of_row >= 0)
    stimuli, first = np.unique(table.stimulus[usable], return_index=True)
    shown = ds.has_picture[stimuli]
    stimuli, first = stimuli[shown], first[shown]
    latest = np.zeros(len(ds.stimuli), dtype=np.int64)
    np.maximum.at(latest, table.stimulus[table.stimulus >= 0], table.split[table.stimulus >= 0])
    return ds.images(stimuli, size), label_of_row[usable][first], latest[stimuli]


def _joined(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(columns) for columns in zip(*parts))


def fingerprint(image: np.ndarray) -> bytes:
    """What makes two pictures the same picture: the hash of their pixels."""
    return hashlib.sha256(np.ascontiguousarray(image)).digest()


class Judge:
    """What all methods share: the stimuli, their classes and features, and the pool of distractors.

    Args:
        classifier: reads classes and features.
        truth: uint8 (n, 3, S, S), the stimulus of each row.
        label_N: class of each row, -1 unknown.
        target_N: index of each row's stimulus in the pool; ``first_M``: one row of each stimulus.
        ways: n of the n-way scores.
    """

    def __init__(
        self,
        classifier: Classifier,
        truth: np.ndarray,
        label_N: np.ndarray,
        target_N: np.ndarray,
        first_M: np.ndarray,
        *,
        ways: int,
        seed: int,
    ) -> None:
        self.classifier, self.truth, self.label_N, self.target_N = classifier, truth, label_N, target_N
        self.pool, self.ways = truth[first_M], ways
        logits_MC, self.features_MF = classifier.read(self.pool)
        read_M, label_M = logits_MC.argmax(1), label_N[first_M]
        self.read_N = read_M[target_N]
        known = np.isin(label_M, classifier.card.get("labels", np.arange(classifier.classes)))
        self.labelled = bool(known.all())
        self.class_chance = chance_class(label_M, classifier.classes) if self.labelled else None
        self.accuracy = float((read_M == label_M)[known].mean()) if known.any() else None
        self.notes = []
        if not self.labelled:
            self.notes.append(
                f"Class accuracy is left out: {int((~known).sum())} of {len(known)} test stimuli have a class that the "
                "classifier never saw, or none at all."
            )
        self.shifts = m.keyed(seed, "ssim/others").permutation(np.arange(1, len(first_M)))[:4]

    def score(self, recon: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Scores (n, k) and chance levels of uint8 (n, k, 3, S, S) reconstructions, by metric."""
        scored = {**self._identified(recon), **self._compared(recon)}
        ordered = [key for key in m.METRICS if key in scored]
        return {key: scored[key][0] for key in ordered}, {key: scored[key][1] for key in ordered}

    def _identified(self, recon: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
        """Scores by the classifier's reading."""
        logits, features = self.classifier.read(recon)
        pairs_NKM, size = m.pair_correlation(features, self.features_MF), len(self.pool)
        scored = {"two-way-features": (m.two_way(pairs_NKM, self.target_N), 0.5)}
        for top in (1, 5):
            if self.ways > top:
                expected = m.n_way_expected(logits, self.read_N, ways=self.ways, top=top)
                scored[f"n-way-top{top}"] = (expected, top / self.ways)
            if size > top:
                scored[f"retrieval-top{top}"] = (m.retrieval(pairs_NKM, self.target_N, top=top), top / size)
        if self.labelled:
            scored["class-accuracy"] = (m.class_accuracy(logits, self.label_N), self.class_chance)
        return scored

    def _compared(self, recon: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
        """Scores by pixels. Where no formula gives chance, other stimuli do: all pairs, or for SSIM four shifts."""
        target = self.target_N
        alike_NKM, errors_NKM = m.pair_correlation(recon, self.pool), m.pair_mse(recon, self.pool)
        others = [m.ssim_rgb(recon[:, :1], self.pool[(target + shift) % len(self.pool)]) for shift in self.shifts]
        return {
            "two-way-pixcorr": (m.two_way(alike_NKM, target), 0.5),
            "pixcorr": (m.own(alike_NKM, target), m.mismatched_mean(alike_NKM, target)),
            "ssim_rgb": (m.ssim_rgb(recon, self.truth), float(np.mean(others))),
            "mse": (m.own(errors_NKM, target), m.mismatched_mean(errors_NKM, target)),
        }
