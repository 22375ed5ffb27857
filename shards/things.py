"""Pack THINGS-fMRI (Hebart et al., eLife 2023): single-trial responses in table format, and THINGS' pictures.

Each subject's voxels are read a few at a time and written, turned into rows of trials, to a nameless scratch file in
the folder being made; runs are then read from there, so memory hardly grows with the region.
Shapes: N trials, V voxels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.pandas_hdf import open_frame
from cadiff.shards.pictures import read_picture
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import AVERAGED, Progress, make_records, silent
from cadiff.shards.splits import held_out
from cadiff.shards.things_files import Trials, find_subjects, read_trials
from cadiff.shards.things_voxels import Voxels, read_voxels
from cadiff.shards.voxels import STATS, Stats, voxel_stats
from cadiff.shards.writer import Pack

TESTS = ("averaged", "averaged+trials")
MAX_SIDE = 512  # larger pictures are shrunk


def pack_things(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    roi: str | list[str] = "visual",
    images: str | Path | None = None,
    val_fraction: float = 0.05,
    split_seed: int = 0,
    normalise: Literal["voxel", "scalar"] = "voxel",
    test: Literal["averaged", "averaged+trials"] = "averaged",
    min_noise_ceiling: float = 0.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack one sample per training trial and one per test stimulus: the mean over its repeats (repeat -1).

    Validation holds out whole training stimuli, the same for all subjects; their concepts stay in training. The label
    is the concept. Statistics come from training trials alone.

    Args:
        root: the folder with ``sub-<k>_ResponseData.h5`` and its two tables, or one above it.
        subjects: such as ["sub-01"]; None takes all that are there.
        roi: columns of the table of voxels whose union is taken, an area such as "FFA" for both hemispheres,
            "visual" (all regions of THINGS' localisers and IT) or "all".
        images: folder of THINGS' pictures as ``<concept>/<file>``; every stimulus must be there.
        val_fraction: part of the training stimuli held out.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject.
        test: "averaged+trials" adds every single test trial, in its run, with its number of repeat.
        min_noise_ceiling: least nc_singletrial of a voxel, in per cent. Ceilings are estimated from the test stimuli's
            repeats, so a threshold chooses voxels by how reliable their test responses are.

    Raises:
        ConfigError: no such files, subject, region or option. DataError: tables and responses that do not fit
        together, betas that are not finite, or missing pictures.
    """
    files = find_subjects(Path(root))
    names = sorted(set(subjects or files))
    if lost := [name for name in names if name not in files]:
        raise ConfigError(f"{root}: no subject '{lost[0]}'; there are {', '.join(files)}.")
    if normalise not in STATS or test not in TESTS or not 0 <= min_noise_ceiling < 100:
        raise ConfigError(
            f"normalise='{normalise}', test='{test}', min_noise_ceiling={min_noise_ceiling}: use voxel or scalar, "
            f"{' or '.join(TESTS)}, and 0 to below 100 per cent."
        )
    trials = {name: read_trials(files[name]["trials"]) for name in names}
    tested = {stimulus for part in trials.values() for stimulus in part.names(tested=True)}
    trained = {stimulus: None for part in trials.values() for stimulus in part.names(tested=False)}
    if both := [stimulus for stimulus in trained if stimulus in tested]:
        raise DataError(f"{root}: {both[0]} is a test stimulus of one subject and a training stimulus of another.")
    held = held_out(trained, val_fraction, split_seed)
    concepts = {s: c for part in trials.values() for s, c in zip(part.stimulus, part.concept)}
    pictures = {} if images is None else _find_pictures(Path(images), concepts)
    sources = {path.relative_to(root).as_posix(): path for name in names for path in files[name].values()}
    sources |= {f"images/{concepts[stimulus]}/{stimulus}": path for stimulus, path in pictures.items()}
    options = {
        "subjects": names,
        "roi": roi,
        "images": images is not None,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "test": test,
        "min_noise_ceiling": min_noise_ceiling,
    }

    def fill(pack: Pack) -> None:
        pack.declare("label", sorted(set(concepts.values())))
        for name in names:
            voxels = read_voxels(files[name]["voxels"], roi, min_noise_ceiling)
            if voxels.below:
                pack.drop(f"{name}: {voxels.below:,} voxels", f"nc_singletrial below {min_noise_ceiling} per cent")
            _pack_subject(pack, name, files[name]["responses"], trials[name], voxels, held, normalise, test)
        for done, (stimulus, path) in enumerate(pictures.items()):
            pack.picture(stimulus, *read_picture(path, MAX_SIDE))
            if done % 50 == 0:
                pack.progress("packing pictures", done, len(pictures))

    return pack_folder(out, "things", options, sources, fill, progress)


def _pack_subject(
    pack: Pack, name: str, path: Path, trials: Trials, voxels: Voxels, held: set[str], normalise: str, test: str
) -> None:
    split = ["test" if t else "val" if s in held else "train" for s, t in zip(trials.stimulus, trials.tested)]
    with tempfile.TemporaryFile(dir=pack.folder) as file:
        signals = _Scratch(file.fileno(), len(voxels.rows_V))
        moments = _turn(pack, name, path, voxels, np.array(split) == "train", signals)
        stats = moments.scalar() if normalise == "scalar" else moments.voxel()
        _add_runs(pack, name, trials, split, stats, signals, test)
        _add_means(pack, name, trials, stats, signals)
    if len(stats.flat):
        pack.notes.setdefault("flat_voxels", {})[name] = len(stats.flat)
    pack.stats(name, stats)
    pack.rois(name, voxels.regions)
    pack.space(name, voxels.ids_A[voxels.rows_V], voxels.xyz_V3)
    pack.attach(name, "noise_ceiling", voxels.ceiling_V2)


class _Scratch:
    """Signals, float32 (N, V), in a file: written some voxels at a time, read some trials at a time."""

    def __init__(self, descriptor: int, voxels: int) -> None:
        self._descriptor, self._voxels = descriptor, voxels

    def put(self, start: int, slab_NV: np.ndarray) -> None:
        for trial, row_V in enumerate(slab_NV):
            os.pwrite(self._descriptor, row_V, 4 * (trial * self._voxels + start))

    def take(self, trials: list[int]) -> np.ndarray:
        rows_NV = np.empty((len(trials), self._voxels), dtype=np.float32)
        for row_V, trial in zip(rows_NV, trials):
            os.preadv(self._descriptor, [row_V], 4 * trial * self._voxels)
        return rows_NV


def _turn(pack: Pack, name: str, path: Path, voxels: Voxels, learnt_N: np.ndarray, signals: _Scratch) -> _Moments:
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
            pack.progress(f"reading {name}", start + slab_NV.shape[1], len(voxels.rows_V))
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
    pack: Pack, name: str, trials: Trials, split: list[str], stats: Stats, signals: _Scratch, test: str
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
    for done, ((session, run), rows) in enumerate(rows_of.items()):
        columns = ([column[row] for row in rows] for column in (split, trials.stimulus, trials.concept, repeat))
        pack.add(make_records(name, run, stats.apply(signals.take(rows)), *columns, session=session))
        pack.progress(f"packing runs of {name}", done + 1, len(rows_of))


def _add_means(pack: Pack, name: str, trials: Trials, stats: Stats, signals: _Scratch) -> None:
    """Add the mean over the repeats of each test stimulus."""
    rows_of: dict[str, list[int]] = {stimulus: [] for stimulus in trials.names(tested=True)}
    for row, (stimulus, tested) in enumerate(zip(trials.stimulus, trials.tested)):
        if tested:
            rows_of[stimulus].append(row)
    means = [signals.take(rows).mean(axis=0, dtype=np.float64).astype(np.float32) for rows in rows_of.values()]
    labels = [trials.concept[rows[0]] for rows in rows_of.values()]
    repeats = [AVERAGED] * len(rows_of)
    pack.add(make_records(name, "test", stats.apply(np.stack(means)), "test", list(rows_of), labels, repeats))


def _find_pictures(folder: Path, concepts: dict[str, str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give the folder of THINGS' pictures, one sub-folder a concept.")
    found = {stimulus: folder / concept / stimulus for stimulus, concept in sorted(concepts.items())}
    if lost := [path for path in found.values() if not path.is_file()]:
        raise DataError(f"{folder}: {len(lost)} of {len(found)} pictures are missing, first {lost[0]}. Complete it.")
    return found
