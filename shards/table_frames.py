"""One row of a table: its frames, read from a file of any known kind, and what was on the screen at each of them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.arrays import load_npy, npz_array, open_npz
from cadiff.shards.cifti import locate, read_columns, read_header, read_nifti
from cadiff.shards.mmp import roi_columns

READ = ("file", "mask", "events", "attributes")  # columns that name the files read here


@dataclass(frozen=True)
class Frames:
    """Frames of one row: float32 (T, V), and per frame its label, stimulus and chunk (run within the file)."""

    signals_TV: np.ndarray
    labels: list[str | None]
    stimuli: list[str | None]
    chunks: list[str]
    tr_s: float


def read_frames(row: dict[str, str], folder: Path, roi: str | list[str], lag_s: float) -> Frames:
    """Read one row's frames and what each of them shows.

    Args:
        lag_s: the label of the moment t is given to the frame at t + lag_s: the delay of the blood response.

    Raises:
        ConfigError, DataError: a missing column, a damaged file, or lengths that differ.
    """
    key = (row["file"], row["key"], row["mask"])
    signals_TV, tr_s = _read_signals(folder, *key, roi if isinstance(roi, str) else tuple(roi))
    tr_s = _number(row["tr_s"], f"{row['file']}: tr_s") if row["tr_s"] else tr_s
    count = len(signals_TV)
    labels: list[str | None] = [row["label"] or None] * count
    stimuli: list[str | None] = [row["stimulus"] or row["image"] or None] * count
    chunks = [""] * count
    if row["attributes"]:
        labels, chunks = _read_attributes(folder / row["attributes"], count)
    if (row["events"] or lag_s) and tr_s <= 0:
        raise ConfigError(f"{row['file']}: its TR is not known, so events and lag cannot be placed. Fill in tr_s.")
    if row["events"]:
        labels, stimuli = _read_events(folder / row["events"], np.arange(count) * tr_s - lag_s)
    elif row["attributes"] and lag_s:
        labels = _delay(labels, chunks, round(lag_s / tr_s))
    keep = np.ones(count, dtype=bool)
    if row["chunks"]:
        wanted = {part.strip() for part in row["chunks"].replace(",", " ").split()}
        if lost := sorted(wanted - set(chunks)):
            raise ConfigError(f"{row['file']}: no chunk {lost[0]} in its attributes. Correct the column chunks.")
        keep = np.isin(chunks, list(wanted))
    chosen = np.flatnonzero(keep)
    columns = [[column[i] for i in chosen] for column in (labels, stimuli, chunks)]
    return Frames(signals_TV[chosen], *columns, tr_s)


def stimulus_files(events: Path) -> list[str | None]:
    """The stim_file of each event."""
    return [_given(event.get("stim_file")) for event in _event_rows(events)]


def whole_volume(row: dict[str, str]) -> bool:
    """Whether a row names a NIfTI file and no mask, so that every voxel of its grid is taken."""
    return row["file"].endswith((".nii", ".nii.gz")) and not row["file"].endswith(".dtseries.nii") and not row["mask"]


def forget_frames() -> None:
    """Let go of the file that was read last: it may have changed before another pack."""
    _read_signals.cache_clear()


@lru_cache(maxsize=1)
def _read_signals(folder: Path, file: str, key: str, mask: str, roi: str | tuple[str, ...]) -> tuple[np.ndarray, float]:
    """Frames (T, V) and TR of a file of any known kind; the last one is kept, as several rows may name it."""
    path, tr_s = folder / file, 0.0
    if file.endswith(".dtseries.nii"):
        header = read_header(path)
        columns_V = roi_columns(roi if isinstance(roi, str) else list(roi))
        return read_columns(header, locate(header, columns_V)), header.tr_s
    if file.endswith((".nii", ".nii.gz")):
        return read_nifti(path, folder / mask if mask else None)
    if file.endswith(".npz"):
        if not key:
            raise ConfigError(f"{path}: an .npz file needs the column key, the name of its array.")
        values = npz_array(open_npz(path, [key]), key, path)
    elif file.endswith(".npy"):
        values = load_npy(path)
    else:
        raise ConfigError(f"{path}: unknown kind of file. Use .npy, .npz, .nii, .nii.gz or .dtseries.nii.")
    values = values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise DataError(f"{path}: {values.dtype} {values.shape}, expected numbers (samples, voxels) or (voxels,).")
    return values.astype(np.float32), tr_s


def _read_attributes(path: Path, count: int) -> tuple[list[str | None], list[str]]:
    """One line per frame: ``label chunk``, as in PyMVPA's attribute files."""
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    if len(lines) != count or any(len(fields) != 2 for fields in lines):
        raise DataError(f"{path}: {len(lines)} lines for {count} frames; expected 'label chunk' for each frame.")
    return [fields[0] for fields in lines], [fields[1] for fields in lines]


def _read_events(path: Path, moment_T: np.ndarray) -> tuple[list[str | None], list[str | None]]:
    """Label and stimulus at each moment (s) from a BIDS events.tsv: onset, duration, trial_type, stim_file."""
    rows = _event_rows(path)
    if rows and (lost := [name for name in ("onset", "duration") if name not in rows[0]]):
        raise DataError(
            f"{path}: no column {lost[0]}. A BIDS events file is tab-separated: onset, duration, trial_type."
        )
    labels: list[str | None] = [None] * len(moment_T)
    stimuli: list[str | None] = [None] * len(moment_T)
    for line, row in enumerate(rows, 2):
        onset, duration = (_number(row[name] or "", f"{path}, line {line}: {name}") for name in ("onset", "duration"))
        for frame in np.flatnonzero((moment_T >= onset - 1e-6) & (moment_T < onset + duration - 1e-6)).tolist():
            labels[frame] = _given(row.get("trial_type"))
            stimuli[frame] = _given(row.get("stim_file"))
    return labels, stimuli


def _event_rows(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(_text(path).splitlines(), delimiter="\t")
        if not reader.fieldnames:
            raise DataError(f"{path}: empty. A BIDS events file begins with a line of columns: onset, duration, …")
        return list(reader)
    except csv.Error as problem:
        raise DataError(f"{path}: not a readable table ({problem}).") from None


def _delay(labels: list[str | None], chunks: list[str], frames: int) -> list[str | None]:
    """Shift labels later (earlier if negative) by whole frames, never across the border of a chunk."""
    source = np.arange(len(labels)) - frames
    inside = (source >= 0) & (source < len(labels))
    return [
        labels[s] if ok and chunks[s] == chunks[i] else None for i, (s, ok) in enumerate(zip(source.tolist(), inside))
    ]


def _given(text: str | None) -> str | None:
    return None if text in (None, "", "n/a") else text


def _number(text: str, what: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
        raise ValueError
    except ValueError:
        raise DataError(f"{what} = '{text[:30]}', expected a number of seconds.") from None


def _text(path: Path) -> str:
    if not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: no such file.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: not a readable text file ({problem}).") from None
