"""The one contract between disk and model: what a stored sample is, and what names may look like."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cadiff.errors import DataError

SPLITS = ("train", "val", "test")  # stored as 0, 1, 2
AVERAGED = -1  # the ``repeat`` of a sample that is the mean over a stimulus's repeats

Progress = Callable[[str, int, int], None]  # label, done, total


def silent(label: str, done: int, total: int) -> None:
    """The progress report of a caller that wants none."""


@dataclass(frozen=True)
class Record:
    """One sample: what one person's brain did at one moment, and what was on the screen if that is known.

    Attributes:
        signal: float32 (V,), V = this subject's own voxel count, z-scored; empty for a picture without fMRI.
        stimulus: id of the picture shown, a string kept verbatim; None at rest.
        label: class name, or None.
        split: "train", "val" or "test".
        repeat: 0 for the first showing of the stimulus to this subject, ``AVERAGED`` for a mean over showings.
    """

    signal: np.ndarray
    subject: str
    run: str
    stimulus: str | None
    label: str | None
    split: str
    repeat: int


@dataclass(frozen=True)
class Records:
    """Samples of one subject and one run, row by row: ``signals_NV`` float (N, V) and N entries of everything else."""

    subject: str
    run: str
    signals_NV: np.ndarray
    split: list[str]
    stimulus: list[str | None]
    label: list[str | None]
    repeat: list[int]
    session: str = ""
    start: list[int] | None = None  # first frame (TR) of each sample's window within its run; None: not known
    frames: int = 0  # frames (TRs) averaged into one sample; 0: a beta or another estimate

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> Record:
        signal_V = np.asarray(self.signals_NV[row], dtype=np.float32)
        columns = (self.stimulus[row], self.label[row], self.split[row], self.repeat[row])
        return Record(signal_V, self.subject, self.run, *columns)


def make_records(
    subject: str,
    run: str,
    signals_NV: np.ndarray,
    split: str | list[str],
    stimulus: list[str | None] | None = None,
    label: list[str | None] | None = None,
    repeat: list[int] | None = None,
    *,
    session: str = "",
    start: list[int] | None = None,
    frames: int = 0,
) -> Records:
    """Fill in what was left out (no stimulus, no label, repeat 0) and check that all columns are equally long.

    Raises:
        DataError: a column of another length, an unknown split, or a signal that is not finite.
    """
    n = len(signals_NV)
    splits = [split] * n if isinstance(split, str) else list(split)
    nothing: list[str | None] = [None] * n
    records = Records(
        subject,
        run,
        signals_NV,
        splits,
        nothing if stimulus is None else list(stimulus),
        nothing if label is None else list(label),
        [0] * n if repeat is None else [int(value) for value in repeat],
        session,
        None if start is None else [int(value) for value in start],
        int(frames),
    )
    where = f"subject {subject}, run {run}"
    lengths = {len(records.split), len(records.stimulus), len(records.label), len(records.repeat)}
    lengths |= set() if records.start is None else {len(records.start)}
    if lengths != {n}:
        raise DataError(f"{where}: {n} signals but columns of {sorted(lengths)} entries; they must pair one to one.")
    if unknown := set(splits) - set(SPLITS):
        raise DataError(f"{where}: split {sorted(unknown)[0]!r}; a split is one of {', '.join(SPLITS)}.")
    if signals_NV.ndim != 2 or not np.isfinite(signals_NV).all():
        raise DataError(f"{where}: signals must be a finite table (samples, voxels); found NaN, infinity or no table.")
    return records


def check_name(name: str, what: str) -> str:
    """A name that is stored: printable, not empty, at most 200 characters.

    Raises:
        DataError: it is not such a name.
    """
    if not name or len(name) > 200 or not name.isprintable():
        raise DataError(f"{what} {name[:60]!r}: a name has 1 to 200 printable characters. Rename it in the source.")
    return name


def safe_key(name: str) -> str:
    """A tar-member key: letters, digits, ``_`` and ``-`` only, at most 80 characters.

    Dots go too: WebDataset splits a member's name at its first dot and would merge samples.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "x"
