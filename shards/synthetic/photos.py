"""A folder of photographs with labels: what is in it, which photos are held out, and crops of them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cadiff.errors import ConfigError, DataError
from cadiff.shards.synthetic.wordnet import WNID, group_of

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
HOLD_OUT = 5  # one photo in so many is a test stimulus, within each class


@dataclass(frozen=True)
class Photo:
    """One labelled photograph."""

    path: Path
    wnid: str  # "n" and eight digits, or "" when the label names none
    label: str


@dataclass(frozen=True)
class Album:
    """Photos sorted by class and name, with the split into training and test stimuli."""

    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    labels: np.ndarray  # int64 (photos,), index into classes
    held_out: np.ndarray  # bool (photos,)

    def fingerprint(self) -> str:
        """Hash of the photos' bytes and classes: part of what a simulated brain depends on."""
        total = hashlib.sha256()
        for photo, label in zip(self.photos, self.labels):
            total.update(f"{photo.path.name}\0{self.classes[label]}\0".encode())
            total.update(hashlib.sha256(photo.path.read_bytes()).digest())
        return total.hexdigest()


def open_album(folder: str | Path) -> Album:
    """Read the labels of a folder of photos.

    Labels come from ``labels.csv`` in the folder or beside it (columns ``file`` and ``label`` or ``class_name``, and
    optionally ``wnid``), else from sub-folder names, else from file names after the first underscore. When there are
    more than half as many labels as photos they are grouped: by WordNet range if every photo has a wnid, else into
    eight classes of increasing warmth of colour. A class of one photo stays in the training set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a folder of photos. Correct the path.")
    photos = list(_find(folder))
    if len(photos) < 4:
        raise ConfigError(f"{folder}: found {len(photos)} labelled photos, expected at least 4. Add photos or labels.")
    names = [photo.label for photo in photos]
    if len(set(names)) > len(photos) / 2:
        names = [group_of(p.wnid, p.label) for p in photos] if all(p.wnid for p in photos) else _by_warmth(photos)
    order = sorted(range(len(photos)), key=lambda i: (names[i], photos[i].path.name))
    classes = sorted(set(names))
    labels = np.array([classes.index(names[i]) for i in order])
    held_out = np.zeros(len(order), dtype=bool)
    for index in range(len(classes)):
        members = np.flatnonzero(labels == index)
        count = max(1, round(len(members) / HOLD_OUT)) if len(members) > 1 else 0
        held_out[members[(np.arange(count) * len(members)) // max(count, 1) + (len(members) > 2)]] = True
    if not held_out.any():
        raise ConfigError(f"{folder}: every class has one photo, so none can be held out. Give classes of two or more.")
    return Album(tuple(photos[i] for i in order), tuple(classes), labels, held_out)


def _find(folder: Path) -> Iterator[Photo]:
    for table in (folder / "labels.csv", folder.parent / "labels.csv"):
        if table.is_file():
            yield from _from_table(table, folder)
            return
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in paths:
        first, _, rest = path.stem.partition("_")
        wnid = first if WNID.fullmatch(first) else ""
        label = path.parent.name if path.parent != folder else rest.replace("_", " ")
        if not label:
            raise ConfigError(
                f"{path}: no label; expected labels.csv, a sub-folder or a name like 1_dog.jpg. Rename it."
            )
        if WNID.fullmatch(label):
            wnid = label
        yield Photo(path, wnid, label)


def _from_table(table: Path, folder: Path) -> Iterator[Photo]:
    with open(table, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        column = next((name for name in ("label", "class_name") if name in columns), None)
        if "file" not in columns or column is None:
            raise ConfigError(f"{table}: found columns {columns}, expected file and label. Correct the first line.")
        for row in reader:
            path = folder / row["file"]
            if not path.is_file():
                raise ConfigError(f"{table}: names {row['file']}, which is not in {folder}. Remove the line or add it.")
            wnid = row.get("wnid") or ""
            yield Photo(path, wnid if WNID.fullmatch(wnid) else "", row[column])


def _by_warmth(photos: list[Photo]) -> list[str]:
    """Eight classes of equal size by mean red minus blue: a poor man's categories, but visible ones."""
    colours = [read_square(photo.path, 32).mean(axis=(0, 1)) for photo in photos]
    warmth = [float(red - blue) for red, _, blue in colours]
    rank = np.argsort(np.argsort(warmth, kind="stable"))
    groups = min(8, len(photos) // 2)
    return [f"warmth{1 + groups * int(place) // len(photos)}" for place in rank]


def read_square(path: Path, size: int) -> np.ndarray:
    """The largest centred square of a photo, uint8 (size, size, 3)."""
    try:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as problem:
        raise DataError(f"{path}: not readable as a picture ({problem}). Replace or remove it.") from None
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))


def crop(square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square of 65 to 100 % of the side, mirrored half of the time, enlarged to the full size again."""
    size = len(square)
    side = size * rng.uniform(0.65, 1.0)
    left, top = rng.uniform(0, size - side, 2)
    box = (float(left), float(top), float(left + side), float(top + side))
    picture = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture
