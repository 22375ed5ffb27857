"""One subject of the Natural Scenes Dataset: z-score its sessions one after the other, store trials and means.

A session's statistics are those of its training trials. A voxel without variance among them, or not finite anywhere in
the session (the release has zeros where a session's data are incomplete), is zero in that session's samples.
Shapes: N trials of a session, V voxels, T trials of the design, P pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.nsd_betas import TableBetas, VolumeBetas
from cadiff.shards.nsd_files import TRIALS, stimulus_id
from cadiff.shards.nsd_pictures import TEST, TRAIN, VAL, Bricks
from cadiff.shards.nsd_rois import Rois, Voxels
from cadiff.shards.record import AVERAGED, SPLITS, make_records
from cadiff.shards.scratch import reserve
from cadiff.shards.voxels import Stats, voxel_stats
from cadiff.shards.writer import Pack

_BLOCK = 256  # means written at a time


@dataclass(frozen=True)
class Recipe:
    """What is done to every subject.

    Attributes:
        root: the folder that the names of sources are relative to.
        shared: sources that decide every subject's samples: the trial tables, and the pictures for their twins.
        bricks: the pictures.
        split_P: the split of each picture number, before twins are settled.
        normalise, train, test: see ``pack_nsd``.
    """

    root: Path
    shared: tuple[Path, ...]
    bricks: Bricks
    split_P: np.ndarray
    normalise: str
    train: str
    test: str


@dataclass(frozen=True)
class Person:
    """One subject: betas, what its voxels are (None: not known), its ROIs, and the picture of each trial (T,)."""

    name: str
    betas: VolumeBetas | TableBetas
    voxels: Voxels | None
    rois: Rois
    shown_T: np.ndarray

    def pictures(self, session: int) -> np.ndarray:
        """Numbers of the pictures shown in a session: (N,)."""
        return self.shown_T[(session - 1) * TRIALS : session * TRIALS]

    def all_pictures(self) -> np.ndarray:
        """Numbers of the pictures shown in the sessions that are there, ascending, each once."""
        return np.unique(np.concatenate([self.pictures(session) for session in self.betas.files]))


def pack_subject(recipe: Recipe, person: Person, pack: Pack) -> None:
    """Add one subject's samples to a part."""
    for path in (*recipe.shared, *person.rois.sources):
        pack.source(path.relative_to(recipe.root).as_posix())
    split_P, _ = recipe.bricks.settle(recipe.split_P)
    kept = {TRAIN: recipe.train, VAL: recipe.train, TEST: recipe.test}
    single = [split for split, how in kept.items() if "trials" in how]
    averaged = [split for split, how in kept.items() if "averaged" in how]
    overall = None
    if recipe.normalise != "session":
        parts = (_read(person, session, split_P)[1:] for session in person.betas.files)
        overall = pooled_stats(parts, recipe.normalise, person.name)
        pack.stats(person.name, overall)
    numbers, repeat_T = person.all_pictures(), _showings(person.shown_T)
    with tempfile.TemporaryFile(dir=pack.folder) as file:
        means = _Means(file, numbers[np.isin(split_P[numbers], averaged)], person.betas.width)
        for session, path in person.betas.files.items():
            pack.source(path.relative_to(recipe.root).as_posix())
            scaled_NV = _scale(pack, person, session, split_P, overall)
            shown_N = person.pictures(session)
            at = np.flatnonzero(np.isin(split_P[shown_N], averaged))
            means.add(shown_N[at], scaled_NV[at])
            at = np.flatnonzero(np.isin(split_P[shown_N], single))
            repeats = repeat_T[(session - 1) * TRIALS + at].tolist()
            _add(pack, person, f"ses-{session:02d}", scaled_NV[at], shown_N[at], split_P, repeats)
        for shown_N, rows_NV in means.blocks():
            tested_N = split_P[shown_N] == TEST
            for run, at in (("training", np.flatnonzero(~tested_N)), ("test", np.flatnonzero(tested_N))):
                _add(pack, person, run, rows_NV[at], shown_N[at], split_P, [AVERAGED] * len(at))
        times, pictures = np.unique(means.times_P[split_P[means.numbers_P] == TEST], return_counts=True)
    showings = {str(n): count for n, count in zip(times.tolist(), pictures.tolist())}
    pack.notes.setdefault("test_pictures_by_showings", {})[person.name] = showings


def pooled_stats(parts: Iterable[tuple[Stats, int]], normalise: str, subject: str) -> Stats:
    """Combine the statistics of sessions, (Stats, training trials) each, as if their trials were one sample.

    A voxel counts in the sessions where it has variance. ``normalise``: "voxel", or "scalar" for one number for all.

    Raises:
        DataError: no voxel has variance in any session.
    """
    # Chan, Golub and LeVeque (1983): pairwise updating of counts, means and sums of squared deviations.
    count_V, mean_V, square_V = (np.zeros(1) for _ in range(3))
    for stats, trials in parts:
        new_V = np.full(len(stats.mean), float(trials))
        new_V[stats.flat] = 0
        total_V = np.maximum(count_V + new_V, 1)
        away_V = stats.mean.astype(np.float64) - mean_V
        square_V = square_V + new_V * stats.std.astype(np.float64) ** 2 + away_V**2 * count_V * new_V / total_V
        mean_V = mean_V + away_V * new_V / total_V
        count_V = count_V + new_V
    if not square_V.any():
        raise DataError(f"{subject}: no voxel has variance in any session. Check the betas and the ROI.")
    if normalise == "scalar":
        mean = (count_V * mean_V).sum() / count_V.sum()
        square_V = np.array([square_V.sum() + (count_V * (mean_V - mean) ** 2).sum()])
        count_V, mean_V = count_V.sum(keepdims=True), np.array([mean])
    flat_V = square_V == 0
    std_V = np.where(flat_V, 1, np.sqrt(square_V / np.maximum(count_V, 1)))
    return Stats(mean_V.astype(np.float32), std_V.astype(np.float32), np.flatnonzero(flat_V))


def _read(person: Person, session: int, split_P: np.ndarray) -> tuple[np.ndarray, Stats, int]:
    """Betas of a session (N, V), and the statistics and the number of its training trials."""
    rows_NV = person.betas.read(session)
    rows_NV[:, ~np.isfinite(rows_NV).all(axis=0)] = 0
    train_N = split_P[person.pictures(session)] == TRAIN
    if train_N.sum() < 2:
        path = person.betas.files[session]
        raise DataError(f"{path}: session {session} has {train_N.sum()} training trials, too few to z-score it.")
    return rows_NV, voxel_stats(rows_NV[train_N]), int(train_N.sum())


def _scale(pack: Pack, person: Person, session: int, split_P: np.ndarray, overall: Stats | None) -> np.ndarray:
    """z-score a session with its own statistics, which are kept, or with those of all sessions."""
    rows_NV, stats, _ = _read(person, session, split_P)
    run = f"ses-{session:02d}"
    if overall is None:
        pack.attach(person.name, "session_mean", stats.mean, run)
        pack.attach(person.name, "session_std", stats.std, run)
    if len(stats.flat):
        pack.notes.setdefault("voxels_zeroed", {}).setdefault(person.name, {})[run] = len(stats.flat)
    scaled_NV = (overall or stats).apply(rows_NV)
    scaled_NV[:, stats.flat] = 0
    return scaled_NV


def _add(
    pack: Pack,
    person: Person,
    run: str,
    rows_NV: np.ndarray,
    shown_N: np.ndarray,
    split_P: np.ndarray,
    repeats: list[int],
) -> None:
    if len(rows_NV):
        splits = [SPLITS[split] for split in split_P[shown_N].tolist()]
        names = [stimulus_id(number) for number in shown_N.tolist()]
        session = run if run.startswith("ses-") else ""  # means are of several sessions
        pack.add(make_records(person.name, run, rows_NV, splits, names, None, repeats, session=session))


def _showings(shown_T: np.ndarray) -> np.ndarray:
    """How often each trial's picture was shown before it: 0, 1, 2."""
    seen: dict[int, int] = {}
    repeats = np.zeros(len(shown_T), dtype=np.int64)
    for trial, number in enumerate(shown_T.tolist()):
        repeats[trial] = seen.get(number, 0)
        seen[number] = repeats[trial] + 1
    return repeats


class _Means:
    """Means over a picture's trials, gathered session by session in a file: they may be larger than the memory."""

    def __init__(self, file: Any, numbers_P: np.ndarray, voxels: int) -> None:
        self.numbers_P, self.times_P = numbers_P, np.zeros(len(numbers_P), dtype=np.int64)
        shape = (max(1, len(numbers_P)), voxels)
        reserve(file.fileno(), 4 * shape[0] * shape[1])
        self._sums_PV = np.memmap(file, np.float32, "r+", shape=shape)

    def add(self, shown_N: np.ndarray, rows_NV: np.ndarray) -> None:
        for place, row_V in zip(np.searchsorted(self.numbers_P, shown_N).tolist(), rows_NV):
            self._sums_PV[place] += row_V
            self.times_P[place] += 1

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(numbers, means) of pictures with trials, ascending by number."""
        shown = np.flatnonzero(self.times_P)
        for start in range(0, len(shown), _BLOCK):
            at = shown[start : start + _BLOCK]
            yield self.numbers_P[at], self._sums_PV[at] / self.times_P[at, None].astype(np.float32)
