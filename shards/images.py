"""Pack a folder of pictures: every picture is a sample without fMRI, labelled by labels.csv, by sub-folder, or not."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.pictures import read_picture
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import SPLITS, Progress, make_records, silent
from cadiff.shards.splits import held_out
from cadiff.shards.writer import Pack

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")
LABEL_COLUMNS = ("class_name", "label", "class", "wnid")  # the first that labels.csv has


def pack_images(
    folder: str | Path,
    out: str | Path,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    max_side: int = 512,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack all .jpg, .jpeg and .png files below ``folder``.

    Labels come from ``labels.csv`` in the folder (column ``file``, a label column, optionally ``split``), else from
    the first sub-folder's name, else there are none. A stimulus's id is its path below the folder.

    Args:
        val_fraction: part of the pictures held out, by a hash of their ids; not used where labels.csv has ``split``.
        max_side: larger pictures are shrunk to this many pixels.
        skip_bad: leave out undecodable files and report them, instead of stopping.

    Raises:
        ConfigError: no pictures. DataError: an undecodable picture, or labels.csv naming a missing file.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise ConfigError(f"{folder}: no {', '.join(EXTENSIONS)} files here. Give a folder of pictures.")
    if max_side < 16:
        raise ConfigError(f"max_side = {max_side}: at least 16 pixels.")
    names = {path.relative_to(folder).as_posix(): path for path in files}
    labels, splits = _read_labels(folder / "labels.csv", names)
    held = held_out(names, val_fraction, split_seed)
    options = {"val_fraction": val_fraction, "split_seed": split_seed, "max_side": max_side, "skip_bad": skip_bad}
    sources = dict(names)
    if (folder / "labels.csv").is_file():
        sources["labels.csv"] = folder / "labels.csv"

    def fill(pack: Pack) -> None:
        pack.declare("label", sorted({label for label in labels.values() if label}))
        for done, (name, path) in enumerate(names.items()):
            pack.progress("packing pictures", done, len(names))
            try:
                data, kind = read_picture(path, max_side)
            except DataError as problem:
                if not skip_bad:
                    raise
                log.warning("left out: %s", problem)
                pack.drop(name, str(problem).replace(str(path), path.name))
                continue
            split = splits.get(name) or ("val" if name in held else "train")
            pack.add(make_records("", "", np.empty((1, 0), np.float32), split, [name], [labels.get(name)]))
            pack.picture(name, data, kind)

    return pack_folder(out, "images", options, sources, fill, progress)


def _read_labels(path: Path, names: dict[str, Path]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Label and, where given, split of each picture."""
    if not path.is_file():
        return {name: name.split("/")[0] if "/" in name else None for name in names}, {}
    by_file = {file.name: name for name, file in names.items()} | {name: name for name in names}
    labels: dict[str, str | None] = {}
    splits: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            column = next((c for c in LABEL_COLUMNS if c in (reader.fieldnames or ())), None)
            if column is None or "file" not in reader.fieldnames:
                raise DataError(f"{path}: needs a column file and one of {', '.join(LABEL_COLUMNS)} in its first line.")
            for line, row in enumerate(reader, 2):
                name = by_file.get(row["file"] or "")
                if name is None:
                    raise DataError(f"{path}, line {line}: no picture '{row['file']}' in this folder.")
                labels[name] = row[column] or None
                if row.get("split"):
                    splits[name] = row["split"]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a readable CSV file ({problem}).") from None
    if wrong := sorted(set(splits.values()) - set(SPLITS)):
        raise DataError(f"{path}: split '{wrong[0]}'; a split is one of {', '.join(SPLITS)}.")
    return labels, splits
