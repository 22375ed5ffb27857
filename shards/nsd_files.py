"""Files of the Natural Scenes Dataset: which picture each trial showed, and which are shared.

Names, shapes and counting are those of the NSD Data Manual (cvnlab.slite.page) and of the dataset's own examples
(github.com/cvnlab/nsdexamples). In the files pictures, trials and 10k numbers count from 1; here they count from 0, as
in ``nsdId`` and in the rows of ``imgBrick``. Shapes: S subjects, P pictures of a subject, T trials of the design.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards import arrays

TRIALS = 750  # of a session
MOST_TRIALS = 40 * TRIALS
SUBJECTS = tuple(f"subj{number:02d}" for number in range(1, 9))
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

# What readers of files that nobody vouches for raise on damage.
DAMAGED = (*arrays.DAMAGED, csv.Error)


@dataclass(frozen=True)
class Design:
    """Which picture each trial showed.

    Attributes:
        shown: of each subject, int64 (T,): the picture's number, 0 to 72,999; -1 where the files do not say.
        shared: numbers of the pictures all subjects were to see, the test set.
        pictures: all numbers of the design, ascending.
    """

    shown: dict[str, np.ndarray]
    shared: frozenset[int]
    pictures: np.ndarray


def stimulus_id(number: int) -> str:
    """A picture's id: ``nsd-00042`` is row 42 of ``imgBrick``, ``nsdId`` 42, and 73k-ID 43 of the MATLAB files."""
    return f"nsd-{number:05d}"


def place(root: Path, name: str) -> Path | None:
    """A file of the release: where the release has it, or directly in ``root``."""
    return next((path for path in (root / name, root / Path(name).name) if path.is_file()), None)


def read_design(root: Path) -> tuple[Design, list[Path]]:
    """Read the trial table from nsd_expdesign.mat, nsd_stim_info_merged.csv or, if both are there, from both.

    Returns:
        The design, and the files it was read from.

    Raises:
        ConfigError: neither file is there. DataError: a damaged one, or two that contradict each other.
    """
    found = [(path, read) for name, read in ((DESIGN, _read_mat), (TABLE, _read_csv)) if (path := place(root, name))]
    if not found:
        raise ConfigError(f"{root}: neither {DESIGN} nor {TABLE}. Give the folder that holds nsddata/.")
    designs = [read(path) for path, read in found]
    if not designs[0].shared:
        raise DataError(f"{found[0][0]}: no shared pictures, so nothing could be tested. Download the file again.")
    if len(designs) == 2:
        _check_agreement(designs[0], designs[1], found[1][0])
    return designs[0], [path for path, _ in found]


def _read_mat(path: Path) -> Design:
    from scipy.io.matlab import MatReadError, loadmat

    names = ("subjectim", "masterordering", "sharedix")
    try:
        found = loadmat(path, variable_names=names)
        images_SP, order_T, shared = (np.asarray(found[name]).astype(np.int64) for name in names)
        whole = all((np.asarray(found[name]) == np.asarray(found[name]).astype(np.int64)).all() for name in names)
    except (*DAMAGED, MatReadError) as problem:
        raise DataError(
            f"{path}: {', '.join(names)} cannot be read ({problem}). Download the file again; it is of MATLAB 5 or 7."
        ) from None
    order_T, shared = order_T.ravel(), shared.ravel()
    if images_SP.ndim != 2 or len(images_SP) != len(SUBJECTS) or not images_SP.size or not whole:
        raise DataError(f"{path}: subjectim is {images_SP.shape}, expected whole numbers ({len(SUBJECTS)}, pictures).")
    if not len(order_T) or len(order_T) > MOST_TRIALS or order_T.min() < 1 or order_T.max() > images_SP.shape[1]:
        raise DataError(f"{path}: masterordering must hold up to {MOST_TRIALS:,} numbers of columns of subjectim.")
    if images_SP.min() < 1 or any(np.setdiff1d(shared, row).size for row in images_SP):
        raise DataError(f"{path}: subjectim counts from 1 and holds the pictures of sharedix in each of its rows.")
    shown = {name: images_SP[row, order_T - 1] - 1 for row, name in enumerate(SUBJECTS)}
    return Design(shown, frozenset((shared - 1).tolist()), np.unique(images_SP) - 1)


def _read_csv(path: Path) -> Design:
    trials: dict[str, dict[int, int]] = {name: {} for name in SUBJECTS}
    shared, pictures = set(), set()
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            table = csv.DictReader(handle)
            columns = [(c, re.fullmatch(r"subject([1-8])_rep\d+", c)) for c in table.fieldnames or ()]
            repeats = [(column, f"subj{int(match[1]):02d}") for column, match in columns if match]
            if not repeats:
                raise DataError(f"{path}: no columns subject1_rep0 and so on. Use nsd_stim_info_merged.csv.")
            for row in table:
                number = int(row["nsdId"])
                pictures.add(number)
                if row["shared1000"].strip().lower() in ("true", "1"):
                    shared.add(number)
                for column, name in repeats:
                    trial = int(float(row[column] or 0))
                    if trial > MOST_TRIALS or (trial > 0 and trial in trials[name]):
                        raise DataError(
                            f"{path}: {name}'s trial {trial} has two pictures or is no trial of the design."
                        )
                    if trial > 0:
                        trials[name][trial] = number
    except DAMAGED as problem:
        raise DataError(f"{path}: not a readable table of stimuli ({problem}). Download it again.") from None
    if min(pictures, default=-1) < 0:
        raise DataError(f"{path}: nsdId counts from 0, found {min(pictures, default='no rows')}. Download it again.")
    shown = {}
    for name, of_trial in trials.items():
        shown[name] = np.full(max(of_trial, default=0), -1, dtype=np.int64)
        shown[name][np.fromiter(of_trial, np.int64, len(of_trial)) - 1] = list(of_trial.values())
    return Design(shown, frozenset(shared), np.array(sorted(pictures), dtype=np.int64))


def _check_agreement(mat: Design, table: Design, path: Path) -> None:
    remedy = "Are both of one release? Keep one of the two files."
    if mat.shared != table.shared:
        raise DataError(f"{path}: its {len(table.shared)} shared pictures differ from sharedix. {remedy}")
    for name in SUBJECTS:
        count = min(len(mat.shown[name]), len(table.shown[name]))
        left, right = mat.shown[name][:count], table.shown[name][:count]
        if len(wrong := np.flatnonzero((right >= 0) & (left != right))):
            at = int(wrong[0])
            raise DataError(
                f"{path}: {name}'s trial {at + 1} showed {stimulus_id(right[at])}, but {stimulus_id(left[at])} "
                f"according to {Path(DESIGN).name}. {remedy}"
            )


@contextmanager
def hdf5_dataset(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """Open one dataset of an HDF5 file, the first of ``names`` that is there, for reading parts of it.

    Raises:
        DataError: missing, damaged, without such a dataset, or one whose values lie in other files.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with h5py.File(path, "r") as handle:
            name = next((name for name in names if name in handle), None)
            data = handle[name] if name else None
            if not isinstance(data, h5py.Dataset):
                raise DataError(f"{path}: no dataset {' or '.join(names)}; it holds {', '.join(handle) or 'nothing'}.")
            # A link to another file would bring in what is not hashed.
            if not isinstance(handle.get(name, getlink=True), h5py.HardLink) or data.external or data.is_virtual:
                raise DataError(f"{path}: dataset {name} lies in other files. Copy the values into one file.")
            yield data
    except DAMAGED as problem:
        raise DataError(f"{path}: not readable as HDF5 ({problem}). Download or make the file again.") from None
