"""The parts a table is packed in: the runs of some subjects, or some pictures; and the one rule that spans them all.

Shapes: T frames, N samples, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.pictures import read_picture
from cadiff.shards.record import SPLITS, make_records
from cadiff.shards.table_frames import READ, Frames, forget_frames, read_frames, whole_volume
from cadiff.shards.voxels import voxel_stats, window_average, zscore_run
from cadiff.shards.writer import Pack

Run = tuple[str, str, list[dict[str, str]]]  # subject, run, and the table's rows of both
_MAX_SIDE = 512  # larger pictures are shrunk to so many pixels


def pack_runs(table: Path, options: dict[str, Any], runs: Sequence[Run], pack: Pack) -> None:
    """Add the runs of some subjects, all of each, to a part.

    Raises:
        ConfigError: a stimulus in two splits, or a column that is missing. DataError: a file that is not what the
            table says.
    """
    pack.source(table.name)
    forget_frames()
    constant: dict[str, np.ndarray] = {}  # by subject without a mask: voxels that are constant in every run so far
    for subject, run, rows in runs:
        for name in [row[column] for row in rows for column in READ if row[column]]:
            pack.source(name)
        read = [(row, read_frames(row, table.parent, options["roi"], options["lag_s"])) for row in rows]
        for chunk in dict.fromkeys(chunk for _, frames in read for chunk in frames.chunks):
            name = f"{run}-{chunk}" if chunk else run
            flat = _pack_run(pack, subject, name, _in_chunk(read, chunk), options, rows[0]["session"])
            if any(map(whole_volume, rows)):
                constant[subject] = np.intersect1d(constant.get(subject, flat), flat)
    for subject, flat in constant.items():
        if subject in pack.names("subject"):  # not if no sample of it was kept
            voxels = pack.voxels[pack.number("subject", subject)]
            pack.notes.setdefault("no_mask", {})[subject] = {"voxels": voxels, "constant": len(flat)}
    refuse_split_stimuli(pack)


def pack_pictures(table: Path, named_by: Sequence[str], pictures: Sequence[tuple[str, str]], pack: Pack) -> None:
    """Add some stimuli's pictures, (stimulus, file), to a part; the table and ``named_by`` say which there are."""
    for name in (table.name, *named_by):
        pack.source(name)  # so that the part is made again when they may name others
    for stimulus, file in pictures:
        pack.source(file)
        pack.picture(stimulus, *read_picture(table.parent / file, _MAX_SIDE))


def refuse_split_stimuli(pack: Pack) -> None:
    """All samples of a part, or of the whole: a stimulus is in one split.

    Raises:
        ConfigError: naming the first run that shows a stimulus in another split than the runs before.
    """
    split_N, stimulus_N = np.array(pack.sample["split"]), np.array(pack.sample["stimulus"])
    shown = np.flatnonzero(stimulus_N >= 0)
    _, first, which = np.unique(stimulus_N[shown], return_index=True, return_inverse=True)
    before = split_N[shown[first]][which]
    clashes = np.flatnonzero(split_N[shown] != before)
    if len(clashes):
        number = int(shown[clashes[0]])
        columns = ("subject", "run", "stimulus")
        subject, run, stimulus = (pack.names(name)[pack.sample[name][number]] for name in columns)
        splits = SPLITS[split_N[number]], SPLITS[before[clashes[0]]]
        raise two_splits(f"subject {subject}, run {run}", stimulus, *splits)


def two_splits(where: str, stimulus: str, split: str, other: str) -> ConfigError:
    """The error that names a stimulus in two splits."""
    return ConfigError(
        f"{where}: stimulus {stimulus} is in {split} and in {other}. A test of pictures seen in training is none: give "
        "all runs that show it one split, or name no stimuli where only labels are decoded."
    )


def _in_chunk(read: list[tuple[dict[str, str], Frames]], chunk: str) -> list[tuple[str, Frames]]:
    """(split, frames) of each row, cut down to one chunk."""
    parts = []
    for row, frames in read:
        at = [i for i, name in enumerate(frames.chunks) if name == chunk]
        if at:
            columns = [[column[i] for i in at] for column in (frames.labels, frames.stimuli, frames.chunks)]
            parts.append((row["split"] or "train", Frames(frames.signals_TV[at], *columns, frames.tr_s)))
    return parts


def _pack_run(
    pack: Pack,
    subject: str,
    run: str,
    parts: list[tuple[str, Frames]],
    options: dict[str, Any],
    session: str,
) -> np.ndarray:
    """Add one run; returns its voxels that are constant or not finite."""
    where = f"subject {subject}, run {run}"
    if len({frames.signals_TV.shape[1] for _, frames in parts}) > 1:
        raise DataError(f"{where}: its files have different voxel counts. Use one mask for all runs of a subject.")
    signals_TV = np.concatenate([frames.signals_TV for _, frames in parts])
    if options["normalise"] == "run":
        if len(signals_TV) < 2:
            raise DataError(
                f"{where}: one sample alone cannot be z-scored. Give its samples one run name, or normalise='none'."
            )
        signals_TV, flat = zscore_run(signals_TV)
        if len(flat):
            pack.notes.setdefault("flat_voxels", {})[f"{subject}/{run}"] = len(flat)
    else:
        flat = voxel_stats(signals_TV).flat
    start = 0
    for split, frames in parts:
        count, window = len(frames.signals_TV), options["window"]
        if count < window:
            raise DataError(f"{where}: {count} frames, fewer than one window of {window}. Use a smaller window.")
        signals_NV = window_average(signals_TV[start : start + count], window)
        start += count
        labels = [None if label in options["rest"] else label for label in _shared(frames.labels, window)]
        stimuli = _shared(frames.stimuli, window)
        keep = [i for i, label in enumerate(labels) if label is not None or options["unlabelled"] == "keep"]
        if keep:
            columns = [[column[i] for i in keep] for column in (stimuli, labels)]
            # Where chunks were cut out of a file its windows are counted within the chunk.
            begins = [start - count + i * window for i in keep]
            times = {"session": session, "start": begins, "frames": window if frames.tr_s > 0 else 0}
            pack.add(make_records(subject, run, signals_NV[keep], split, *columns, **times))
    return flat


def _shared(values: list[str | None], window: int) -> list[str | None]:
    """The value all frames of a window have, else None."""
    windows = [values[i : i + window] for i in range(0, len(values) - window + 1, window)]
    return [part[0] if len(set(part)) == 1 else None for part in windows]
