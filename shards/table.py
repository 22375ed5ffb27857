"""Pack anything a table can describe: arrays, NIfTI series in a mask, CIFTI series, with events, labels, pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.pictures import read_picture
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import SPLITS, Progress, make_records, silent
from cadiff.shards.table_rows import Frames, read_frames, read_rows, row_files
from cadiff.shards.voxels import window_average, zscore_run
from cadiff.shards.writer import Pack


def pack_table(
    table: str | Path,
    out: str | Path,
    *,
    window: int = 1,
    lag_s: float = 0.0,
    roi: str | list[str] = "VC",
    rest: Sequence[str] = ("rest",),
    unlabelled: Literal["keep", "drop"] = "keep",
    normalise: Literal["run", "none"] = "run",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack the files a .csv or .parquet table names (its columns are explained in docs/data.md). Memory: one run.

    Rows of the same subject, session and run belong together; where an attributes file names chunks, each chunk is a
    run of its own. A run, and a stimulus, belongs to one split. A stimulus's picture is looked for beside the table.

    Args:
        window: frames averaged into one sample; its label is the one all of its frames share, else none.
        lag_s: seconds by which the response follows the label.
        roi: grayordinates taken from .dtseries.nii files.
        rest: labels that mean "nothing was shown".
        unlabelled: keep or drop samples without a label.
        normalise: "run" z-scores each voxel over its run; "none" stores the values as they are.

    Raises:
        ConfigError: a mistake in the table, or a run or stimulus in two splits. DataError: a file that is missing or
            not what the table says, named.
    """
    table = Path(table)
    rows, folder = read_rows(table), table.parent
    if wrong := [row["split"] for row in rows if row["split"] not in ("", *SPLITS)]:
        raise ConfigError(f"{table}: split '{wrong[0]}'; a split is one of {', '.join(SPLITS)}.")
    if window < 1 or unlabelled not in ("keep", "drop") or normalise not in ("run", "none"):
        raise ConfigError(f"window={window}, unlabelled='{unlabelled}', normalise='{normalise}': see pack_table.")
    options = {
        "window": window,
        "lag_s": lag_s,
        "roi": roi,
        "rest": list(rest),
        "unlabelled": unlabelled,
        "normalise": normalise,
    }
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["subject"], _run_name(row)), []).append(row)
    _refuse_split_runs(rows, folder)
    _refuse_split_rows(rows)

    def fill(pack: Pack) -> None:
        split_of: dict[str, str] = {}
        for done, ((subject, run), members) in enumerate(groups.items()):
            pack.progress("packing runs", done, len(groups))
            read = [(row, read_frames(row, folder, roi, lag_s)) for row in members]
            for chunk in dict.fromkeys(chunk for _, frames in read for chunk in frames.chunks):
                name = f"{run}-{chunk}" if chunk else run
                _pack_run(pack, subject, name, _in_chunk(read, chunk), options, split_of, members[0]["session"])
        for name in dict.fromkeys(pack.names("stimulus")):
            if (folder / name).is_file():
                pack.picture(name, *read_picture(folder / name, 512))
        for row in rows:
            if row["image"] and row["stimulus"]:
                pack.picture(row["stimulus"], *read_picture(folder / row["image"], 512))

    return pack_folder(out, "table", options, {table.name: table, **row_files(rows, folder)}, fill, progress)


def _run_name(row: dict[str, str]) -> str:
    parts = [part for part in (row["session"], row["run"]) if part]
    return "_".join(parts) or Path(row["file"]).name.partition(".")[0]


def _refuse_split_runs(rows: list[dict[str, str]], folder: Path) -> None:
    """A run, or a file under whatever name, may lie in two splits only by different chunks of its attributes.

    Raises:
        ConfigError: naming the run or the file.
    """
    chunks_of: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        file = os.path.normpath(folder / row["file"]) + (f", array {row['key']}" if row["key"] else "")
        # The whole run is a chunk without a name.
        chunks = set(row["chunks"].replace(",", " ").split()) if row["attributes"] else set()
        for what in (f"run {_run_name(row)} of subject {row['subject']}", f"file {file}"):
            by_split = chunks_of.setdefault(what, {})
            by_split.setdefault(row["split"] or "train", set()).update(chunks or {""})
    for what, by_split in chunks_of.items():
        for one, other in itertools.combinations(by_split, 2):
            mine, theirs = by_split[one], by_split[other]
            if "" in mine | theirs or mine & theirs:
                raise ConfigError(
                    f"{what} is in {one} and in {other}. Frames next to each other in time are alike, so that leaks: "
                    "give a run to one split, or name different chunks of an attributes file."
                )


def _refuse_split_rows(rows: list[dict[str, str]]) -> None:
    """A stimulus that the rows themselves name in two splits is refused before anything is read."""
    split_of: dict[str, str] = {}
    for row in rows:
        if not row["events"]:
            _claim(split_of, [row["stimulus"] or row["image"] or None], row["split"] or "train", row["file"])


def _claim(split_of: dict[str, str], stimuli: Iterable[str | None], split: str, where: str) -> None:
    """Note the split of each stimulus.

    Raises:
        ConfigError: a stimulus that has another one already.
    """
    for name in dict.fromkeys(stimuli):
        if name is not None and split_of.setdefault(name, split) != split:
            raise ConfigError(
                f"{where}: stimulus {name} is in {split} and in {split_of[name]}. A test of pictures seen in training "
                "is none: give all runs that show it one split, or name no stimuli where only labels are decoded."
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
    split_of: dict[str, str],
    session: str,
) -> None:
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
            _claim(split_of, columns[0], split, where)
            # Where chunks were cut out of a file its windows are counted within the chunk.
            begins = [start - count + i * window for i in keep]
            times = {"session": session, "start": begins, "frames": window if frames.tr_s > 0 else 0}
            pack.add(make_records(subject, run, signals_NV[keep], split, *columns, **times))


def _shared(values: list[str | None], window: int) -> list[str | None]:
    """The value all frames of a window have, else None."""
    windows = [values[i : i + window] for i in range(0, len(values) - window + 1, window)]
    return [part[0] if len(set(part)) == 1 else None for part in windows]
