"""Pack BOLD5000 in parts: the trials of one subject, some hundred picture files, or the dictionary of all pictures.

A part depends on every list: they decide which stimuli are held out, and their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.arrays import load_npy, load_npy_dict
from cadiff.shards.bold5000_files import PICTURES, TABLE
from cadiff.shards.legacy import legacy_stats
from cadiff.shards.parallel import slices
from cadiff.shards.pictures import encode_png, read_picture, to_uint8
from cadiff.shards.record import AVERAGED, make_records
from cadiff.shards.voxels import STATS
from cadiff.shards.writer import Pack

_PART_PICTURES = 500  # of 5,000


@dataclass(frozen=True)
class Recipe:
    """What is done to every subject.

    Attributes:
        root: the folder that sources are named relative to.
        lists: every file that stimuli are read from.
        stimuli: all that were shown, in the order of their numbers.
        tested: stimuli of the test set; ``held``: those held out for validation.
    """

    root: Path
    lists: tuple[Path, ...]
    stimuli: list[str]
    tested: set[str]
    held: set[str]
    normalise: str
    legacy: bool


def declare(recipe: Recipe, pack: Pack) -> None:
    """Number all stimuli and their classes."""
    pack.declare("stimulus", recipe.stimuli)
    pack.declare("label", [label for label in map(_category, recipe.stimuli) if label])


def pack_subject(
    recipe: Recipe, name: str, shown: tuple[list[Path], list[str]], files: dict[str, Path], pack: Pack
) -> None:
    """Add one subject's trials to a part.

    Args:
        shown: the subject's lists, and the stimuli of its trials that were read from them.
        files: the betas of each region and hemisphere.

    Raises:
        DataError: betas that do not fit the lists.
    """
    _depend(recipe, files.values(), pack)
    lists, ids = shown
    parts = {part: load_npy(path) for part, path in files.items()}
    for part, values in parts.items():
        if values.ndim != 2 or len(values) != len(ids):
            raise DataError(
                f"{files[part]}: betas {values.shape} for {len(ids)} presented pictures; rows must agree with those of "
                f"{len(lists)} lists, {lists[0]} the first."
            )
    signals_NV = np.concatenate([np.asarray(values, dtype=np.float32) for values in parts.values()], axis=1)
    finite_V = np.isfinite(signals_NV).all(axis=0)
    if not finite_V.all():
        pack.notes.setdefault("voxels_not_finite", {})[name] = int((~finite_V).sum())
        signals_NV[:, ~finite_V] = 0
    split = ["test" if i in recipe.tested else "val" if i in recipe.held else "train" for i in ids]
    train_NV = signals_NV[np.array(split) == "train"]
    stats = legacy_stats(signals_NV) if recipe.legacy else STATS[recipe.normalise](train_NV)
    signals_NV = stats.apply(signals_NV)
    rows = [row for row, part in enumerate(split) if part != "test"]
    chosen = [ids[row] for row in rows]
    labels = [_category(i) for i in chosen]
    pack.add(make_records(name, "training", signals_NV[rows], [split[row] for row in rows], chosen, labels))
    rows_of: dict[str, list[int]] = {}
    for row, stimulus in enumerate(ids):
        if stimulus in recipe.tested:
            rows_of.setdefault(stimulus, []).append(row)
    for stimulus in sorted(recipe.tested - rows_of.keys()):
        pack.drop(f"{name}: {stimulus}", "a test picture this subject was never shown")
    if rows_of:
        means_NV = np.stack([signals_NV[rows].mean(axis=0) for rows in rows_of.values()])
        repeats = [AVERAGED] * len(rows_of)
        pack.add(make_records(name, "test", means_NV, "test", list(rows_of), [_category(i) for i in rows_of], repeats))
    pack.stats(name, stats)
    edges = np.cumsum([0, *(values.shape[1] for values in parts.values())])
    columns: dict[str, np.ndarray] = {}
    for part, start, stop in zip(parts, edges, edges[1:]):
        columns[part] = np.arange(start, stop)
        both = part[2:]
        columns[both] = np.concatenate([columns.get(both, np.empty(0, np.int64)), columns[part]])
    pack.rois(name, columns)


def picture_units(recipe: Recipe, files: dict[str, Path]) -> list[Callable[[Pack], None]]:
    """What packs the pictures, in parts.

    Raises:
        DataError: picture files that the lists name and that are missing.
    """
    if TABLE in files:
        return [bind(_pack_table, recipe, files[TABLE])]
    _refuse_missing(recipe.stimuli, files)
    parts = slices(recipe.stimuli, _PART_PICTURES)
    return [bind(_pack_pictures, recipe, {name: files[name] for name in part}) for part in parts]


def _pack_pictures(recipe: Recipe, files: dict[str, Path], pack: Pack) -> None:
    _depend(recipe, files.values(), pack)
    declare(recipe, pack)  # a picture's key holds its number, which is that of the whole set
    for name, path in files.items():
        pack.picture(name, *read_picture(path, 512))


def _pack_table(recipe: Recipe, path: Path, pack: Pack) -> None:
    _depend(recipe, [path], pack)
    declare(recipe, pack)
    table = load_npy_dict(path)
    _refuse_missing(recipe.stimuli, table)
    top = max(float(np.max(table[name])) for name in recipe.stimuli)
    for name in recipe.stimuli:
        if table[name].ndim != 3 or table[name].shape[2] != 3:
            raise DataError(f"{path}: {name} is {table[name].shape}, expected (height, width, 3).")
        pack.picture(name, encode_png(to_uint8(table[name], top, name)), "png")


def _refuse_missing(stimuli: list[str], known: Container[str]) -> None:
    if lost := [name for name in stimuli if name not in known]:
        raise DataError(
            f"{len(lost)} of {len(stimuli)} pictures are missing, first {lost[0]}. Complete {PICTURES}, or its {TABLE}."
        )


def _depend(recipe: Recipe, paths: Iterable[Path], pack: Pack) -> None:
    """Make the part depend on the lists and on ``paths``: it is made anew if one of them has changed."""
    for path in (*recipe.lists, *paths):
        pack.source(path.relative_to(recipe.root).as_posix())


def _category(stimulus: str) -> str | None:
    """ImageNet pictures carry their category in the name; COCO and scene pictures have none."""
    match = re.match(r"(n\d{8})_", stimulus)
    return match[1] if match else None
