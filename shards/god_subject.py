"""Pack one subject of GOD into a part: training rows, mean test responses and, if asked for, single test trials.

sbj_<k>.npz: arr_0 training fMRI (rows, voxels), arr_1 single test trials, arr_2 their means in the order of the test
pictures, arr_3 training picture of each row, arr_4 test picture of each trial, and boolean region masks by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.arrays import npz_array, open_npz
from cadiff.shards.god_stimuli import TABLES, Stimuli
from cadiff.shards.record import AVERAGED, make_records
from cadiff.shards.voxels import Stats
from cadiff.shards.writer import Pack


@dataclass(frozen=True)
class Recipe:
    """What is done to every subject of ``folder``.

    Attributes:
        held: training stimuli held out for validation.
        measure: the statistics of training rows that all rows are z-scored with.
        test: "averaged" or "averaged+trials".
    """

    folder: Path
    stimuli: dict[str, Stimuli]
    held: set[str]
    roi: str | list[str]
    measure: Callable[[np.ndarray], Stats]
    test: str


def pack_subject(recipe: Recipe, name: str, pack: Pack) -> None:
    """Add one subject's responses to a part.

    Raises:
        DataError: missing keys, or numbers that do not fit together.
    """
    for source in (*TABLES, f"{name}.npz"):  # label files too: they name the rows and decide the split
        pack.source(source)
    subject = _Subject(recipe.folder / f"{name}.npz", name, recipe.roi)
    stimuli = recipe.stimuli
    train_ids, train_labels = _by_number(stimuli["train"], subject.picture_of_row, subject.path, "arr_3")
    if len(subject.average) != len(stimuli["test"].ids):
        raise DataError(
            f"{subject.path}: arr_2 has {len(subject.average)} rows for {len(stimuli['test'].ids)} pictures."
        )
    split = ["val" if stimulus in recipe.held else "train" for stimulus in train_ids]
    tables = {"training": subject.train, "test": subject.average}
    if recipe.test == "averaged+trials":
        subject.require(["arr_1", "arr_4"])
        tables["test-trials"] = subject.rows("arr_1")
    finite_V = np.logical_and.reduce([np.isfinite(rows).all(axis=0) for rows in tables.values()])
    if not finite_V.all():
        pack.notes.setdefault("voxels_not_finite", {})[subject.name] = int((~finite_V).sum())
        tables = {run: np.where(finite_V, rows, np.float32(0)) for run, rows in tables.items()}
    stats = recipe.measure(tables["training"][np.array(split) == "train"])
    scaled = {run: stats.apply(rows) for run, rows in tables.items()}

    def add(run: str, *columns: Any) -> None:
        pack.add(make_records(subject.name, run, scaled[run], *columns))

    add("training", split, train_ids, train_labels, _repeats(train_ids))
    add("test", "test", stimuli["test"].ids, stimuli["test"].labels, [AVERAGED] * len(subject.average))
    if recipe.test == "averaged+trials":
        numbers = subject.numbers("arr_4", len(scaled["test-trials"]))
        ids, labels = _by_number(stimuli["test"], numbers, subject.path, "arr_4")
        _check_pairing(scaled["test-trials"], numbers, scaled["test"], subject.path)
        add("test-trials", "test", ids, labels, _repeats(ids))
    pack.stats(subject.name, stats)
    pack.rois(subject.name, {region: columns for region, columns in subject.regions.items() if len(columns)})


class _Subject:
    """One sbj_<k>.npz restricted to its region: rows of float32 (rows, V)."""

    def __init__(self, path: Path, name: str, roi: str | list[str]) -> None:
        self.path, self.name = path, name
        self._archive = open_npz(path, ["arr_0", "arr_2", "arr_3"])
        train = npz_array(self._archive, "arr_0", path)
        masks = {
            key: npz_array(self._archive, key, path).ravel()
            for key in self._archive.files
            if not key.startswith("arr_")
        }
        regions = {
            key: mask for key, mask in masks.items() if mask.shape == train.shape[1:] and mask.dtype.kind in "bui"
        }
        chosen = np.zeros(train.shape[1:], dtype=bool)
        for region in [roi] if isinstance(roi, str) else roi:
            if region not in regions:
                raise DataError(f"{path}: no mask '{region}'; it holds {', '.join(sorted(regions)) or 'none'}.")
            chosen |= regions[region].astype(bool)
        self.columns = np.flatnonzero(chosen)
        if not len(self.columns):
            raise DataError(f"{path}: region {roi} has no voxels. Choose another region.")
        self.regions = {key: np.flatnonzero(mask[self.columns]) for key, mask in sorted(regions.items())}
        self.train, self.average = self._cut(train), self.rows("arr_2")
        self.picture_of_row = self.numbers("arr_3", len(self.train))

    def rows(self, key: str) -> np.ndarray:
        return self._cut(npz_array(self._archive, key, self.path))

    def require(self, keys: list[str]) -> None:
        if missing := [key for key in keys if key not in self._archive.files]:
            raise DataError(f"{self.path}: keys {', '.join(missing)} are missing. Pack with test='averaged'.")

    def numbers(self, key: str, count: int) -> np.ndarray:
        values = npz_array(self._archive, key, self.path).ravel()
        if values.shape != (count,) or not (values == values.astype(np.int64)).all():
            raise DataError(f"{self.path}: {key} is {values.dtype} {values.shape}, expected {count} whole numbers.")
        return values.astype(np.int64)

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        if rows.ndim != 2 or (len(self.columns) and rows.shape[1] <= self.columns[-1]):
            raise DataError(f"{self.path}: an array is {rows.shape}; all responses have the same voxels as arr_0.")
        return rows[:, self.columns].astype(np.float32)


def _check_pairing(trials_NV: np.ndarray, numbers: np.ndarray, average_NV: np.ndarray, path: Path) -> None:
    """arr_4 must lead from each trial to the row of arr_2 that its mean went into."""
    means_NV = np.stack([trials_NV[numbers == i].mean(axis=0) for i in np.unique(numbers)])
    seen_NV = average_NV[np.unique(numbers)]
    alike = np.corrcoef(means_NV, seen_NV)[: len(means_NV), len(means_NV) :]
    right = int((alike.argmax(axis=1) == np.arange(len(means_NV))).sum())
    if right * 2 < len(means_NV):
        raise DataError(
            f"{path}: only {right} of {len(means_NV)} trial means resemble their row of arr_2; arr_4 is wrong."
        )


def _by_number(stimuli: Stimuli, numbers: np.ndarray, path: Path, key: str) -> tuple[list[str], list[str]]:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(stimuli.ids)):
        raise DataError(
            f"{path}: {key} runs from {numbers.min()} to {numbers.max()}, but there are {len(stimuli.ids)} pictures, "
            "numbered from 0. Are these files of one release?"
        )
    return [stimuli.ids[i] for i in numbers], [stimuli.labels[i] for i in numbers]


def _repeats(ids: list[str]) -> list[int]:
    seen: dict[str, int] = {}
    repeats = []
    for name in ids:
        repeats.append(seen.get(name, 0))
        seen[name] = repeats[-1] + 1
    return repeats
