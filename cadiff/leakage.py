"""Subject leakage: how much of telling samples apart is only telling subjects apart.

A contrast between samples of many people can be won by recognising the person: the anatomy, the networks and the noise
of a brain are the same in all of its samples. Three questions measure that. Is a sample's nearest neighbour of its own
subject more often than by chance (``nearest_subject``)? When a prediction takes another sample for its own, is it one
of its own subject's (``confusions``)? And does a sample find another subject's sample of the same stimulus
(``stimulus_retrieval``), where the subject is of no help?

Similarity is the cosine, as in the loss. Ties are broken at random, in expectation: features that are all alike score
exactly chance.

Legend: N samples, F features, M candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.metrics import TIE

MOST = 2048  # samples that validation compares with each other: a table of 16 MB


@dataclass(frozen=True)
class Score:
    """How often something was found, sample by sample.

    Attributes:
        row: int64, the samples that could be asked; the others have nothing to find, or nothing else to find.
        hit: float64 in 0..1, one entry for each of ``row``.
        chance: float64, what guessing among the same candidates scores there.
    """

    row: np.ndarray
    hit: np.ndarray
    chance: np.ndarray

    @property
    def value(self) -> float:
        """Mean of ``hit``; NaN where no sample could be asked."""
        return float(self.hit.mean()) if len(self.row) else float("nan")

    @property
    def expected(self) -> float:
        """Mean of ``chance``."""
        return float(self.chance.mean()) if len(self.row) else float("nan")

    @property
    def lift(self) -> float:
        """0 at chance, 1 if always found."""
        return above_chance(self.value, self.expected)


@dataclass(frozen=True)
class Confusions:
    """What predictions take for their own targets.

    Attributes:
        found: the own target among all candidates.
        found_within: the own target among the candidates of the own subject: what is left without the subject's help.
        stays: of the wrong first choices, the share that is another sample of the same subject; NaN without any.
        stays_chance: the same if wrong choices ignored subjects.
        leak: the softmax mass on wrong candidates that stays with the subject, 0 at chance and 1 if all of it does.
            Unlike ``stays`` it sees how near the wrong candidates came, so it is defined where no choice is wrong.
    """

    found: Score
    found_within: Score
    stays: float
    stays_chance: float
    leak: float


def nearest_subject(features_NF: np.ndarray, subject_N: np.ndarray, run_N: np.ndarray | None = None) -> Score:
    """Whether each sample's nearest other sample is of the same subject.

    Chance is the share of the subject among the sample's candidates. A pure signature of the subject scores 1.

    Args:
        features_NF: any float type.
        subject_N: whose sample it is.
        run_N: if given, samples of one's own subject and run are no candidates: frames next to each other in time are
            alike, whoever's they are. Samples whose subject has one run only are not asked.

    Raises:
        ConfigError: lengths differ, or there are fewer than two samples.
    """
    similarity_NN = cosines(features_NF, features_NF)
    subject_N = _codes(subject_N, len(similarity_NN))
    same_NN = subject_N[:, None] == subject_N
    allowed_NN = ~np.eye(len(same_NN), dtype=bool)
    if run_N is not None:
        run_N = _codes(run_N, len(same_NN))
        allowed_NN &= ~(same_NN & (run_N[:, None] == run_N))
    return best_of(similarity_NN, allowed_NN, same_NN)


def confusions(
    prediction_NF: np.ndarray, target_NF: np.ndarray, subject_N: np.ndarray, *, temperature: float
) -> Confusions:
    """Find each prediction's own target among all targets, and see whose the wrong choices are.

    Args:
        prediction_NF, target_NF: row i of one belongs to row i of the other.
        temperature: of the softmax over cosines behind ``leak``; the loss's.

    Raises:
        ConfigError: lengths differ, fewer than two samples, or all of one subject.
    """
    similarity_NN = cosines(prediction_NF, target_NF)
    count = len(similarity_NN)
    subject_N = _codes(subject_N, count)
    if (subject_N == subject_N[0]).all():
        raise ConfigError("Subject leakage needs samples of at least 2 subjects, found 1. Name more subjects.")
    own_NN, same_NN = np.eye(count, dtype=bool), subject_N[:, None] == subject_N
    found, found_within = best_of(similarity_NN, np.ones_like(own_NN), own_NN), best_of(similarity_NN, same_NN, own_NN)
    first_NN = _firsts(similarity_NN, np.ones_like(own_NN))
    mass_NN = np.exp((similarity_NN - similarity_NN.max(1, keepdims=True)) / temperature)
    mass_NN /= mass_NN.sum(1, keepdims=True)
    others_N = (same_NN.sum(1) - 1) / (count - 1)
    stays, chance = _staying(first_NN * ~own_NN, same_NN, others_N)
    soft, soft_chance = _staying(mass_NN * ~own_NN, same_NN, others_N)
    return Confusions(found, found_within, stays, chance, above_chance(soft, soft_chance))


def stimulus_retrieval(
    features_NF: np.ndarray, subject_N: np.ndarray, stimulus_N: np.ndarray, *, own_subject: bool = False
) -> Score:
    """Whether each sample's nearest candidate is another subject's sample of the same stimulus.

    Args:
        features_NF: any float type.
        stimulus_N: what was shown; negative numbers mean nothing, and such samples are only candidates.
        own_subject: let the own subject's samples of other stimuli be candidates too. They win where features tell who
            somebody is before what he saw, so the difference to False is what a subject's signature costs.

    Raises:
        ConfigError: lengths differ, or there are fewer than two samples.
    """
    similarity_NN = cosines(features_NF, features_NF)
    subject_N, stimulus_N = _codes(subject_N, len(similarity_NN)), _codes(stimulus_N, len(similarity_NN))
    other_NN = subject_N[:, None] != subject_N
    alike_NN = (stimulus_N[:, None] == stimulus_N) & (stimulus_N >= 0)
    allowed_NN = other_NN | ~alike_NN if own_subject else other_NN
    return best_of(similarity_NN, allowed_NN & ~np.eye(len(other_NN), dtype=bool), alike_NN & other_NN)


def validation_leak(batches: Iterable[dict[str, Tensor]], temperature: float) -> dict[str, float]:
    """What a validation reports of a phase 1, from what ``Pretrain.features`` gives for its batches.

    Predictions from the first mask are compared with the signals themselves, so trainings with and without a contrast
    are measured alike. Of more than 2,048 samples the first are taken. Batches are copied before the next is asked
    for, so a stream may fill its memory again.

    Returns:
        ``val/subject_leak`` (see ``Confusions.leak``), ``val/subject_stays`` and its chance, ``val/own_top1`` and
        ``val/own_top1_within``, ``val/subject_nearest`` and its chance (of the predictions), and, where subjects saw
        the same stimuli, ``val/stimulus_top1`` and its chance. NaN where there is nothing to ask; empty with one
        subject or fewer than three samples.
    """
    first, signal, subject, stimulus = _gathered(batches, "first", "signal", "subject", "stimulus")
    if len(first) < 3 or len(np.unique(subject)) < 2:
        return {}
    mixed, nearest = confusions(first, signal, subject, temperature=temperature), nearest_subject(first, subject)
    told = {
        "subject_leak": mixed.leak,
        "subject_stays": mixed.stays,
        "subject_stays_chance": mixed.stays_chance,
        "own_top1": mixed.found.value,
        "own_top1_within": mixed.found_within.value,
        "subject_nearest": nearest.value,
        "subject_nearest_chance": nearest.expected,
    }
    seen = stimulus_retrieval(first, subject, stimulus)
    if len(seen.row):
        told |= {"stimulus_top1": seen.value, "stimulus_top1_chance": seen.expected}
    return {f"val/{name}": value for name, value in told.items()}


def above_chance(value: float, chance: float) -> float:
    """Scale a share so that 0 is chance and 1 is 1; NaN where chance is 1."""
    return (value - chance) / (1 - chance) if chance < 1 else float("nan")


def cosines(rows_NF: np.ndarray, candidates_MF: np.ndarray) -> np.ndarray:
    """Cosine of every row with every candidate, float32 (N, M); a row of zeros is like nothing.

    Raises:
        ConfigError: fewer than two samples, or numbers of samples or features that differ.
    """
    rows_NF, candidates_MF = np.asarray(rows_NF), np.asarray(candidates_MF)
    if rows_NF.ndim != 2 or rows_NF.shape != candidates_MF.shape or len(rows_NF) < 2:
        raise ConfigError(
            f"Leakage compares at least 2 samples of equal size; got {rows_NF.shape} and {candidates_MF.shape}."
        )
    units = [rows.astype(np.float32) for rows in (rows_NF, candidates_MF)]
    rows_NF, candidates_MF = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in units)
    return rows_NF @ candidates_MF.T


def best_of(similarity_NM: np.ndarray, allowed_NM: np.ndarray, good_NM: np.ndarray) -> Score:
    """Whether the most similar allowed candidate is a good one; rows without a choice between both are not asked."""
    count_N, good_N = allowed_NM.sum(1), (allowed_NM & good_NM).sum(1)
    row = np.flatnonzero((good_N > 0) & (good_N < count_N))
    share_NM = _firsts(similarity_NM[row], allowed_NM[row])
    return Score(row, (share_NM * good_NM[row]).sum(1), good_N[row] / count_N[row])


def _firsts(similarity_NM: np.ndarray, allowed_NM: np.ndarray) -> np.ndarray:
    """The probability that each candidate is the first choice: 1, or shared between those that tie."""
    similarity_NM = np.where(allowed_NM, similarity_NM, -np.inf)
    first_NM = similarity_NM >= similarity_NM.max(1, keepdims=True) - TIE
    return first_NM / first_NM.sum(1, keepdims=True)


def _staying(wrong_NN: np.ndarray, same_NN: np.ndarray, others_N: np.ndarray) -> tuple[float, float]:
    """The share of what went to wrong candidates that stays with the subject, and what it would be by chance."""
    total = wrong_NN.sum()
    if not total:
        return float("nan"), float("nan")
    return float((wrong_NN * same_NN).sum() / total), float((wrong_NN.sum(1) * others_N).sum() / total)


def _codes(code_N: np.ndarray, count: int) -> np.ndarray:
    code_N = np.asarray(code_N)
    if code_N.shape != (count,):
        raise ConfigError(f"Leakage got {count} samples and {code_N.shape} subjects, runs or stimuli; give one each.")
    return code_N


def _gathered(batches: Iterable[dict[str, Tensor]], *names: str) -> list[np.ndarray]:
    """These values of all batches, copied to the host: float32 (N, F) or int64 (N,)."""
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in names}
    left = MOST
    for batch in batches:
        for name in names:
            value = batch[name][:left].detach()
            part = (value.float() if value.is_floating_point() else value).cpu().numpy().copy()
            parts[name] = [*(one for one in parts[name] if len(one)), part]
        left -= len(part)
        if left == 0:
            break
    return [np.concatenate(parts[name]) for name in names]
