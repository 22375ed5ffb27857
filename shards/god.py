"""Pack Generic Object Decoding (Kamitani lab) in the npz layout of the paper's code: sbj_<k>.npz, images_256.npz.

sbj_<k>.npz: arr_0 training fMRI (rows, voxels), arr_1 single test trials, arr_2 their means in the order of the test
pictures, arr_3 training picture of each row, arr_4 test picture of each trial, and boolean region masks by name.
Training statistics come from training rows alone; validation takes whole training stimuli, the same for all subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.arrays import npz_array, npz_rows, npz_shape, open_npz
from cadiff.shards.god_stimuli import CLASS_INDEX, LABELS, Stimuli, read_stimuli, require
from cadiff.shards.legacy import legacy_stats, normalisation
from cadiff.shards.pictures import encode_png, to_uint8
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import AVERAGED, Progress, make_records, silent
from cadiff.shards.splits import held_out
from cadiff.shards.voxels import STATS, Stats
from cadiff.shards.writer import Pack

IMAGES = "images_256.npz"
PLACES = (".", "npz", "Kamitani/npz", "data/Kamitani/npz")  # where the files may lie below the folder given


def pack_god(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    roi: str | list[str] = "VC",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    normalise: Literal["voxel", "scalar"] | None = None,
    legacy: bool = False,
    test: Literal["averaged", "averaged+trials"] = "averaged",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack GOD's training and test responses and pictures.

    Args:
        subjects: such as ["sbj_1", "sbj_3"]; None takes all that are there.
        roi: a region mask in the files, or several whose union is taken.
        val_fraction: part of the training stimuli held out, for all subjects alike.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject; None is "voxel", or
            "scalar" with ``legacy``.
        legacy: compute mean and deviation as the paper's code does, over wrap-padded training rows.
        test: "averaged" has one sample per test picture with repeat -1; "+trials" adds every single trial.

    Raises:
        ConfigError: files of the release that are missing, no such subject or option.
        DataError: missing keys, or numbers that do not fit together.
    """
    folder = _find_folder(Path(root))
    available = sorted((path.stem for path in folder.glob("sbj_*.npz")), key=lambda name: (len(name), name))
    names = available if not subjects else [str(name) for name in subjects]
    if lost := [name for name in names if name not in available]:
        raise ConfigError(f"{folder}: no subject '{lost[0]}'; there are {', '.join(available)}.")
    normalise = normalisation(normalise, legacy)
    if test not in ("averaged", "averaged+trials"):
        raise ConfigError(f"test = '{test}': use averaged or averaged+trials.")
    require(folder, [IMAGES])
    stimuli = read_stimuli(folder)
    held = held_out(stimuli["train"].ids, val_fraction, split_seed)
    files = [IMAGES, CLASS_INDEX, *LABELS.values(), *(f"{name}.npz" for name in names)]
    options = {
        "subjects": names,
        "roi": roi,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "legacy": legacy,
        "test": test,
    }

    def fill(pack: Pack) -> None:
        for half in ("train", "test"):
            pack.declare("stimulus", stimuli[half].ids)
            pack.declare("label", stimuli[half].labels)
        for name in names:
            subject = _Subject(folder / f"{name}.npz", name, roi)
            _pack_subject(pack, subject, stimuli, held, legacy_stats if legacy else STATS[normalise], test)
            pack.progress("packing subjects", names.index(name) + 1, len(names))
        for half in ("train", "test"):
            _pack_pictures(pack, folder / IMAGES, f"{half}_images", stimuli[half].ids)

    return pack_folder(out, "god", options, {name: folder / name for name in files}, fill, progress)


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


def _pack_subject(
    pack: Pack,
    subject: _Subject,
    stimuli: dict[str, Stimuli],
    held: set[str],
    measure: Callable[[np.ndarray], Stats],
    test: str,
) -> None:
    train_ids, train_labels = _by_number(stimuli["train"], subject.picture_of_row, subject.path, "arr_3")
    if len(subject.average) != len(stimuli["test"].ids):
        raise DataError(
            f"{subject.path}: arr_2 has {len(subject.average)} rows for {len(stimuli['test'].ids)} pictures."
        )
    split = ["val" if stimulus in held else "train" for stimulus in train_ids]
    tables = {"training": subject.train, "test": subject.average}
    if test == "averaged+trials":
        subject.require(["arr_1", "arr_4"])
        tables["test-trials"] = subject.rows("arr_1")
    finite_V = np.logical_and.reduce([np.isfinite(rows).all(axis=0) for rows in tables.values()])
    if not finite_V.all():
        pack.notes.setdefault("voxels_not_finite", {})[subject.name] = int((~finite_V).sum())
        tables = {run: np.where(finite_V, rows, np.float32(0)) for run, rows in tables.items()}
    stats = measure(tables["training"][np.array(split) == "train"])
    scaled = {run: stats.apply(rows) for run, rows in tables.items()}

    def add(run: str, *columns: Any) -> None:
        pack.add(make_records(subject.name, run, scaled[run], *columns))

    add("training", split, train_ids, train_labels, _repeats(train_ids))
    add("test", "test", stimuli["test"].ids, stimuli["test"].labels, [AVERAGED] * len(subject.average))
    if test == "averaged+trials":
        numbers = subject.numbers("arr_4", len(scaled["test-trials"]))
        ids, labels = _by_number(stimuli["test"], numbers, subject.path, "arr_4")
        _check_pairing(scaled["test-trials"], numbers, scaled["test"], subject.path)
        add("test-trials", "test", ids, labels, _repeats(ids))
    pack.stats(subject.name, stats)
    pack.rois(subject.name, {region: columns for region, columns in subject.regions.items() if len(columns)})


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


def _pack_pictures(pack: Pack, path: Path, key: str, ids: list[str]) -> None:
    shape, dtype = npz_shape(path, key)
    if len(shape) != 4 or shape[3] != 3 or shape[0] != len(ids):
        raise DataError(f"{path}: {key} is {shape}, expected ({len(ids)}, height, width, 3) as the label file says.")
    # Pictures are stored as 0..255 or as 0..1; only the largest value of all tells which.
    top = 255.0 if dtype == np.uint8 else max(float(pixels.max()) for pixels in npz_rows(path, key))
    for done, (name, pixels) in enumerate(zip(ids, npz_rows(path, key), strict=True)):
        pack.picture(name, encode_png(to_uint8(pixels, top, f"{path}: {key}")), "png")
        if done % 50 == 0:
            pack.progress("packing pictures", done, len(ids))


def _find_folder(root: Path) -> Path:
    for place in PLACES:
        if any((root / place).glob("sbj_*.npz")):
            return root / place
    raise ConfigError(
        f"{root}: no sbj_<k>.npz here nor in {', '.join(PLACES[1:])}. Give the folder with GOD's npz files."
    )
