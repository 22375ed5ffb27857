"""One subject of THINGS-fMRI: read its voxels a few at a time, z-score them, store trials and means.

Slabs of voxels are written, turned into rows of trials, to a nameless scratch file in the part being made; runs are
then read from there, so memory hardly grows with the region. Shapes: N trials, V voxels.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.pandas_hdf import open_frame
from cadiff.shards.record import AVERAGED, make_records
from cadiff.shards.scratch import Scratch
from cadiff.shards.things_files import Trials
from cadiff.shards.things_voxels import Voxels, read_voxels
from cadiff.shards.voxels import Stats, voxel_stats
from cadiff.shards.writer import Pack


@dataclass(frozen=True)
class Recipe:
    """What is done to every subject.

    Attributes:
        root: the folder that the names of sources are relative to.
        tables: every subject's table of trials, as all of them decide which stimuli are held out.
        held: the training stimuli held out for validation.
        roi, min_noise_ceiling, normalise, test: see ``pack_things``.
    """

    root: Path
    tables: tuple[Path, ...]
    held: frozenset[str]
    roi: str | list[str]
    min_noise_ceiling: float
    normalise: str
    test: str


def pack_subject(recipe: Recipe, name: str, files: dict[str, Path], trials: Trials, pack: Pack) -> None:
    """Add one subject's samples to a part; ``files`` are its responses and tables.

    Raises:
        ConfigError: an unknown region, or none of its voxels is left. DataError: files that do not fit together.
    """
    for path in (*recipe.tables, files["voxels"], files["responses"]):
        pack.source(path.relative_to(recipe.root).as_posix())
    voxels = read_voxels(files["voxels"], recipe.roi, recipe.min_noise_ceiling)
    if voxels.below:
        pack.drop(f"{name}: {voxels.below:,} voxels", f"nc_singletrial below {recipe.min_noise_ceiling} per cent")
    split = ["test" if t else "val" if s in recipe.held else "train" for s, t in zip(trials.stimulus, trials.tested)]
    with tempfile.TemporaryFile(dir=pack.folder) as file:
        signals = Scratch(file.fileno(), len(trials), len(voxels.rows_V))
        moments = _turn(files["responses"], voxels, np.array(split) == "train", signals)
        stats = moments.scalar() if recipe.normalise == "scalar" else moments.voxel()
        _add_runs(pack, name, trials, split, stats, signals, recipe.test)
        _add_means(pack, name, trials, stats, signals)
    if len(stats.flat):
        pack.notes.setdefault("flat_voxels", {})[name] = len(stats.flat)
    pack.stats(name, stats)
    pack.rois(name, voxels.regions)
    pack.space(name, voxels.ids_A[voxels.rows_V], voxels.xyz_V3)
    pack.attach(name, "noise_ceiling", voxels.ceiling_V2)


def _turn(path: Path, voxels: Voxels, learnt_N: np.ndarray, signals: Scratch) -> _Moments:
    """Read the chosen voxels and write them to ``signals``; returns the moments of the trials ``learnt_N``."""
    trials, moments = len(learnt_N), _Moments()
    with open_frame(path, len(voxels.ids_A), trials, "voxel_id") as frame:
        if (frame.ids != voxels.ids_A).any():
            raise DataError(f"{path}: its voxel_id differ from those of the table of voxels. Download both again.")
        if frame.names not in (None, [str(number) for number in range(trials)]):
            raise DataError(f"{path}: its columns are not named 0 to {trials - 1} in this order, as trials are.")
        for start, slab_VN in frame.rows(voxels.rows_V):
            if not np.isfinite(slab_VN).all():
                row, trial = np.argwhere(~np.isfinite(slab_VN))[0].tolist()
                raise DataError(
                    f"{path}: trial {trial} of voxel {voxels.ids_A[voxels.rows_V[start + row]]} is "
                    f"{slab_VN[row, trial]}; betas are finite numbers. Download the file again, or choose regions "
                    "without that voxel."
                )
            slab_NV = np.ascontiguousarray(slab_VN.T)
            moments.see(slab_NV[learnt_N])
            signals.put(start, slab_NV)
    return moments


class _Moments:
    """Mean and deviation of training trials, of each voxel and of all together, from slabs of voxels."""

    def __init__(self) -> None:
        self._parts: list[Stats] = []
        self._flat: list[np.ndarray] = []
        self._voxels, self._count, self._mean, self._squares = 0, 0, 0.0, 0.0

    def see(self, train_NV: np.ndarray) -> None:
        self._parts.append(voxel_stats(train_NV))
        self._flat.append(self._parts[-1].flat + self._voxels)
        self._voxels += train_NV.shape[1]
        # Chan's update of a mean and a sum of squares by those of further values.
        count, mean = train_NV.size, float(train_NV.mean(dtype=np.float64))
        apart, total = mean - self._mean, self._count + count
        squares = float(train_NV.var(dtype=np.float64)) * count
        self._squares += squares + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total

    def voxel(self) -> Stats:
        joined = [np.concatenate([getattr(part, what) for part in self._parts]) for what in ("mean", "std")]
        return Stats(*joined, np.concatenate(self._flat))

    def scalar(self) -> Stats:
        std = float(np.sqrt(self._squares / self._count))
        if std == 0:
            raise DataError("The betas of all training trials are the same number. Download the responses again.")
        pair = [np.array([value], dtype=np.float32) for value in (self._mean, std)]
        return Stats(*pair, np.empty(0, dtype=np.int64))


def _add_runs(
    pack: Pack, name: str, trials: Trials, split: list[str], stats: Stats, signals: Scratch, test: str
) -> None:
    """Add the trials of each run, in the order of the table; test trials only where they are wanted."""
    shown: dict[str, int] = {}
    rows_of: dict[tuple[str, str], list[int]] = {}
    repeat: list[int] = []
    for row, stimulus in enumerate(trials.stimulus):
        repeat.append(shown.get(stimulus, 0))
        shown[stimulus] = repeat[-1] + 1
        if split[row] != "test" or test == "averaged+trials":
            rows_of.setdefault((trials.session[row], trials.run[row]), []).append(row)
    for (session, run), rows in rows_of.items():
        columns = ([column[row] for row in rows] for column in (split, trials.stimulus, trials.concept, repeat))
        pack.add(make_records(name, run, stats.apply(signals.take(rows)), *columns, session=session))


def _add_means(pack: Pack, name: str, trials: Trials, stats: Stats, signals: Scratch) -> None:
    """Add the mean over the repeats of each test stimulus."""
    rows_of: dict[str, list[int]] = {stimulus: [] for stimulus in trials.names(tested=True)}
    for row, (stimulus, tested) in enumerate(zip(trials.stimulus, trials.tested)):
        if tested:
            rows_of[stimulus].append(row)
    means = [signals.take(rows).mean(axis=0, dtype=np.float64).astype(np.float32) for rows in rows_of.values()]
    labels = [trials.concept[rows[0]] for rows in rows_of.values()]
    repeats = [AVERAGED] * len(rows_of)
    pack.add(make_records(name, "test", stats.apply(np.stack(means)), "test", list(rows_of), labels, repeats))
