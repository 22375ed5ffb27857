"""Pack a folder of pictures: every picture is a sample without fMRI, labelled by labels.csv, by sub-folder, or not."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.parallel import slices, workers_for
from cadiff.shards.pictures import read_picture
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import SPLITS, Progress, make_records, silent
from cadiff.shards.splits import held_out
from cadiff.shards.writer import Pack

EXTENSIONS = (".jpg", ".jpeg", ".png")
LABELS = "labels.csv"
LABEL_COLUMNS = ("class_name", "label", "class", "wnid")  # the first that labels.csv has
SLICE = 1000  # pictures of a part


@dataclass(frozen=True)
class Labels:
    """What is known of the pictures, by id: class (None: none) and, where given, split; and the file that says so."""

    label: dict[str, str | None] = field(default_factory=dict)
    split: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    others: int = 0  # lines of a file beside the folder that name other pictures


@dataclass(frozen=True)
class Picture:
    """One file to pack; its name is its path below the folder."""

    name: str
    path: Path
    split: str
    label: str | None


def pack_images(
    folder: str | Path,
    out: str | Path,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    max_side: int = 512,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack all .jpg, .jpeg and .png files below ``folder``.

    Labels come from ``labels.csv`` in the folder (column ``file``, a label column, optionally ``split``), or from one
    beside the folder if it names pictures of it, else from the first sub-folder's name, else there are none. A
    stimulus's id is its path below the folder.

    Args:
        val_fraction: part of the pictures held out, by a hash of their ids; not used where labels.csv has ``split``.
        max_side: larger pictures are shrunk to this many pixels.
        skip_bad: leave out undecodable files and report them, instead of stopping.
        workers: processes; None takes every core if the pictures exceed 1 GB. The result is the same.

    Raises:
        ConfigError: no such folder, no pictures, or pictures of the same content in two splits.
        DataError: an undecodable picture, or labels.csv naming a missing file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file. Give the folder it is in.")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give a folder of pictures.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise ConfigError(f"{folder}: no {', '.join(EXTENSIONS)} files here. Give a folder of pictures.")
    if max_side < 16:
        raise ConfigError(f"max_side = {max_side}: at least 16 pixels.")
    names = {path.relative_to(folder).as_posix(): path for path in files}
    known = _find_labels(folder, names)
    held = held_out(names, val_fraction, split_seed)
    options = {"val_fraction": val_fraction, "split_seed": split_seed, "max_side": max_side, "skip_bad": skip_bad}
    tables = {LABELS: known.path} if known.path else {}
    pictures = [
        Picture(name, path, known.split.get(name) or ("val" if name in held else "train"), known.label.get(name))
        for name, path in names.items()
    ]

    def fill(pack: Pack) -> None:
        for table in tables:
            pack.source(table)  # as read above: a part that finds another is refused
        pack.declare("label", sorted({label for label in known.label.values() if label}))
        if known.others:
            pack.notes["label_lines_of_other_pictures"] = known.others

    return pack_folder(
        out,
        "images",
        options,
        names | tables,
        fill,
        progress,
        units=[bind(pack_slice, tuple(tables), max_side, skip_bad, part) for part in slices(pictures, SLICE)],
        workers=workers_for(sum(path.stat().st_size for path in files), workers),
        after=bind(_compare_contents, pictures),
    )


def pack_slice(tables: Sequence[str], max_side: int, skip_bad: bool, pictures: Sequence[Picture], pack: Pack) -> None:
    """Add some pictures to a part. ``tables`` are sources, beside the pictures, that decide labels and splits.

    Raises:
        DataError: an undecodable picture, unless bad ones are skipped.
    """
    for table in tables:
        pack.source(table)  # so that the part is made again when the table has changed
    for picture in pictures:
        pack.source(picture.name)
        try:
            data, kind = read_picture(picture.path, max_side)
        except DataError as problem:
            if not skip_bad:
                raise
            pack.drop(picture.name, str(problem).replace(str(picture.path), picture.path.name))
            continue
        no_signal = np.empty((1, 0), np.float32)
        pack.add(make_records("", "", no_signal, picture.split, [picture.name], [picture.label]))
        pack.picture(picture.name, data, kind)


def _compare_contents(pictures: Sequence[Picture], pack: Pack) -> None:
    """Note pictures that are there under another name, and refuse them in another split: in all parts together."""
    left_out = {entry["what"] for entry in pack.dropped}
    first: dict[str, Picture] = {}
    for picture in pictures:
        if picture.name in left_out:
            continue
        other = first.setdefault(pack.source(picture.name), picture)
        if other.split != picture.split:
            raise ConfigError(
                f"{picture.name} ({picture.split}) and {other.name} ({other.split}) are the same picture, byte for "
                f"byte: the test would show what was trained on. Remove one, or give both one split in {LABELS}."
            )
        if other is not picture:
            pack.notes.setdefault("duplicates", {})[picture.name] = other.name


def _find_labels(folder: Path, names: dict[str, Path]) -> Labels:
    """Read labels.csv in the folder, or beside it if that names pictures of the folder, or the sub-folders' names."""
    of_file: dict[str, list[str]] = {}
    for name, path in names.items():
        of_file.setdefault(path.name, []).append(name)
    ids = of_file | {name: [name] for name in names}
    if (folder / LABELS).exists():
        return _read_labels(folder / LABELS, ids)
    here = folder.resolve()
    ids |= {f"{here.name}/{name}": [name] for name in names}
    if (path := here.parent / LABELS).is_file() and _mentions(path, ids):
        return _read_labels(path, ids, beside=True)
    return Labels({name: name.split("/")[0] if "/" in name else None for name in names})


def _mentions(path: Path, ids: dict[str, list[str]]) -> bool:
    """Whether a labels.csv outside the folder is about its pictures; it may be anything."""
    try:
        return any(row.get("file") in ids for row in _read_lines(path)[1])
    except DataError:
        return False


def _read_labels(path: Path, ids: dict[str, list[str]], *, beside: bool = False) -> Labels:
    """Class and, where given, split of each picture; a file beside the folder may name other pictures, too."""
    columns, lines = _read_lines(path)
    column = next((name for name in LABEL_COLUMNS if name in columns), None)
    if column is None or "file" not in columns:
        raise DataError(f"{path}: needs a column file and one of {', '.join(LABEL_COLUMNS)} in its first line.")
    label: dict[str, str | None] = {}
    split: dict[str, str] = {}
    others = 0
    for number, line in enumerate(lines, 2):
        found = ids.get(line["file"] or "", [])
        if not found and beside:
            others += 1
            continue
        if len(found) != 1 or found[0] in label:
            problem = ("no picture", "already a line for", "several pictures called")[min(len(found), 2)]
            raise DataError(f"{path}, line {number}: {problem} '{line['file']}' in this folder. Correct the line.")
        label[found[0]] = line[column] or None
        if line.get("split"):
            split[found[0]] = line["split"]
    if wrong := sorted(set(split.values()) - set(SPLITS)):
        raise DataError(f"{path}: split '{wrong[0]}'; a split is one of {', '.join(SPLITS)}.")
    return Labels(label, split, path, others)


def _read_lines(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    if not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: not a file. Remove it, or put the labels there.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a readable CSV file ({problem}).") from None
