"""A part of the training stimuli, for learning from little data: a smaller part always lies within a larger one.

Legend: M samples, S stimuli.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import Chosen


def part_of_stimuli(datasets: Sequence[Dataset], chosen: Chosen, fraction: float, seed: int, least: int) -> Chosen:
    """Keep of each subject the samples of so large a part of the stimuli it saw (at least one).

    Stimuli come in the order of a hash of the seed and their name, the same for all subjects: 10 % lie within 20 %, and
    subjects who saw the same stimuli keep the same.

    Raises:
        ConfigError: samples without a stimulus, or fewer than ``least`` samples left.
    """
    if fraction == 1:
        return chosen
    kept = np.zeros(len(chosen), dtype=bool)
    for k, ds in enumerate(datasets):
        mine = np.flatnonzero(chosen.which == k)
        stimulus_M, subject_M = ds.table.stimulus[chosen.ids[mine]], ds.table.subject[chosen.ids[mine]]
        if (stimulus_M < 0).any():
            raise ConfigError(
                f"data.stimuli_fraction = {fraction}: {ds.folder} has samples without a stimulus, of which no part can "
                "be taken. Set data.stimuli_fraction=1."
            )
        rank_S = _ranks(ds.stimuli, seed)
        for subject in np.unique(subject_M).tolist():
            rows = np.flatnonzero(subject_M == subject)
            seen_S = np.unique(stimulus_M[rows])
            first_S = seen_S[np.argsort(rank_S[seen_S])][: max(1, round(fraction * len(seen_S)))]
            kept[mine[rows]] = np.isin(stimulus_M[rows], first_S)
    if kept.sum() < least:
        raise ConfigError(
            f"data.stimuli_fraction = {fraction} leaves {kept.sum()} of {len(chosen)} samples, fewer than one batch of "
            f"{least}. Raise it, or lower train.batch."
        )
    return Chosen(chosen.which[kept], chosen.ids[kept])


def _ranks(stimuli: Sequence[str], seed: int) -> np.ndarray:
    """The place of each stimulus among all, by the hash of its name: int64 (S,)."""
    digests = [hashlib.sha256(f"{seed}|stimulus|{name}".encode()).digest() for name in stimuli]
    return np.argsort(np.array(sorted(range(len(stimuli)), key=digests.__getitem__), dtype=np.int64))
