"""GOD's pictures: stimulus numbers from the label files, class names from the class index, pixels from one npz."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.files import read_json
from cadiff.shards.arrays import npz_rows, npz_shape
from cadiff.shards.pictures import encode_png, to_uint8
from cadiff.shards.writer import Pack

IMAGES = "images_256.npz"
CLASS_INDEX = "imagenet_class_index.json"
LABELS = {"train": "imagenet_training_label.csv", "test": "imagenet_testing_label.csv"}
TABLES = (CLASS_INDEX, *LABELS.values())  # the files that stimuli are read from


@dataclass(frozen=True)
class Stimuli:
    """Pictures of one half, in the order of images_256.npz: their ids ("1518878.010042") and class names."""

    ids: list[str]
    labels: list[str]


def read_stimuli(folder: Path) -> dict[str, Stimuli]:
    """Read both halves, "train" and "test".

    Raises:
        ConfigError: a missing file. DataError: a damaged one, a category without a class, or a stimulus listed twice.
    """
    require(folder, TABLES)
    names = _class_names(folder / CLASS_INDEX)
    halves = {}
    for half, file in LABELS.items():
        ids = _read_ids(folder / file)
        wnids = [f"n{int(name.partition('.')[0]):08d}" for name in ids]
        if unknown := sorted(set(wnids) - names.keys()):
            raise DataError(
                f"{folder / file}: {len(unknown)} categories are not in {CLASS_INDEX}, first {unknown[0]}. "
                "Use the class index that came with these labels; dropping rows would misalign all that follow."
            )
        halves[half] = Stimuli(ids, [names[wnid] for wnid in wnids])
    if shared := set(halves["train"].ids) & set(halves["test"].ids):
        raise DataError(f"{folder}: stimulus {sorted(shared)[0]} is listed for training and for test.")
    return halves


def declare(stimuli: dict[str, Stimuli], pack: Pack) -> None:
    """Number stimuli and classes in the order of the label files, training first."""
    for half in stimuli.values():
        pack.declare("stimulus", half.ids)
        pack.declare("label", half.labels)


def pack_pictures(folder: Path, stimuli: dict[str, Stimuli], half: str, pack: Pack) -> None:
    """Add the pictures of one half to a part, one at a time.

    Raises:
        DataError: another number of pictures than the label file has, or pixels outside 0..1 and 0..255.
    """
    for source in (*TABLES, IMAGES):
        pack.source(source)
    declare(stimuli, pack)  # a picture's key holds its number, which is that of the whole set
    path, key, ids = folder / IMAGES, f"{half}_images", stimuli[half].ids
    shape, dtype = npz_shape(path, key)
    if len(shape) != 4 or shape[3] != 3 or shape[0] != len(ids):
        raise DataError(f"{path}: {key} is {shape}, expected ({len(ids)}, height, width, 3) as the label file says.")
    # Pictures are stored as 0..255 or as 0..1; only the largest value of all tells which.
    top = 255.0 if dtype == np.uint8 else max(float(pixels.max()) for pixels in npz_rows(path, key))
    for name, pixels in zip(ids, npz_rows(path, key), strict=True):
        pack.picture(name, encode_png(to_uint8(pixels, top, f"{path}: {key}")), "png")


def require(folder: Path, files: Sequence[str]) -> None:
    """Check that files of the release are there.

    Raises:
        ConfigError: naming all that are not.
    """
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ConfigError(f"{folder}: no {', no '.join(missing)}. Complete the folder with GOD's npz files.")


def _read_ids(path: Path) -> list[str]:
    """First field of each line, as text: read as a number, 1621127.019020 would lose its last digit."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            fields = [line[0].strip() for line in csv.reader(handle) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a readable CSV file ({problem}).") from None
    ids = []
    for number, field in enumerate(fields, 1):
        category, dot, picture = field.partition(".")
        if not (category.isdigit() and dot and picture.isdigit() and len(picture) <= 6 and len(category) <= 8):
            raise DataError(f"{path}, line {number}: '{field[:40]}', expected a stimulus number like 1518878.010042.")
        ids.append(f"{category}.{picture:0<6}")
    if not ids or len(set(ids)) != len(ids):
        raise DataError(f"{path}: {len(ids)} stimuli, {len(set(ids))} different ones; expected each once.")
    return ids


def _class_names(path: Path) -> dict[str, str]:
    """WordNet id -> class name. Entries are [id, (more ids,) name]; a name used twice gets its id appended."""
    table = read_json(path)
    entries = list(table.values()) if isinstance(table, dict) else []
    valid = [e for e in entries if isinstance(e, list) and len(e) >= 2 and all(isinstance(part, str) for part in e)]
    if not valid or len(valid) != len(entries):
        raise DataError(f"{path}: expected a dictionary of entries [wordnet id, …, name].")
    uses: dict[str, int] = {}
    for entry in valid:
        uses[entry[-1]] = uses.get(entry[-1], 0) + 1
    return {wnid: e[-1] if uses[e[-1]] == 1 else f"{e[-1]} ({e[0]})" for e in valid for wnid in e[:-1]}
