"""Pack anything a table can describe: arrays, NIfTI series in a mask, CIFTI series, with events, labels, pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

from cadiff.errors import ConfigError
from cadiff.shards.parallel import slices, workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import SPLITS, Progress, silent
from cadiff.shards.table_parts import Run, pack_pictures, pack_runs, refuse_split_stimuli, two_splits
from cadiff.shards.table_rows import read_rows, row_files, row_pictures
from cadiff.shards.writer import Pack

PARTS, PICTURES = 64, 1000  # parts of subjects there are at most, and pictures of a part


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
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack the files a .csv or .parquet table names; docs/data.md explains its columns. Memory: a run for each worker.

    Rows of the same subject, session and run belong together; where an attributes file names chunks, each chunk is a
    run of its own. A run, and a stimulus, belongs to one split. A stimulus's picture is looked for beside the table.
    Samples are in the table's order, subject by subject.

    Args:
        window: frames averaged into one sample; its label is the one all of its frames share, else none.
        lag_s: seconds by which the response follows the label.
        roi: grayordinates taken from .dtseries.nii files.
        rest: labels that mean "nothing was shown".
        unlabelled: keep or drop samples without a label.
        normalise: "run" z-scores each voxel over its run; "none" stores the values as they are.
        workers: processes; None takes every core if the inputs exceed 1 GB. The result is the same.

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
    _refuse_split_runs(rows, folder)
    _refuse_split_rows(rows)
    pictures = row_pictures(rows, folder)
    named_by = tuple(dict.fromkeys(row["events"] for row in rows if row["events"]))
    sources = {table.name: table, **row_files(rows, folder)} | {file: folder / file for file in pictures.values()}
    return pack_folder(
        out,
        "table",
        options,
        sources,
        bind(_read_already, (table.name, *named_by)),
        progress,
        units=_units(table, options, rows, pictures, named_by),
        workers=workers_for(sum(path.stat().st_size for path in sources.values() if path.is_file()), workers),
        after=refuse_split_stimuli,
    )


def _read_already(sources: Sequence[str], pack: Pack) -> None:
    """Hash the table and its events, which said what there is to pack: a part that finds others is refused.

    Names get their numbers as the parts are joined, subject by subject, however many subjects a part has.
    """
    for source in sources:
        pack.source(source)


def _units(
    table: Path,
    options: dict[str, Any],
    rows: list[dict[str, str]],
    pictures: dict[str, str],
    named_by: Sequence[str],
) -> list[Callable[[Pack], None]]:
    """Parts of whole subjects, then parts of pictures.

    It goes by the table, its events and which pictures there are alone, so that a pack that goes on after an
    interruption finds the same parts.
    """
    by_subject: dict[str, dict[str, Run]] = {}
    for row in rows:
        subject, run = row["subject"], _run_name(row)
        by_subject.setdefault(subject, {}).setdefault(run, (subject, run, []))[2].append(row)
    people, most = [list(runs.values()) for runs in by_subject.values()], -(-len(by_subject) // PARTS)
    return [
        *(bind(pack_runs, table, options, list(itertools.chain(*part))) for part in slices(people, most)),
        *(bind(pack_pictures, table, named_by, part) for part in slices(list(pictures.items()), PICTURES)),
    ]


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
        name, split = row["stimulus"] or row["image"], row["split"] or "train"
        if name and not row["events"] and split_of.setdefault(name, split) != split:
            raise two_splits(row["file"], name, split, split_of[name])
