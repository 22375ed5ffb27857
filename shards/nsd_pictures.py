"""NSD's pictures: one pass that knows them by their pixels, then slices of them stored as JPEG, in units of their own.

The file has tens of gigabytes, so its fingerprint is of the pictures that are used, and is taken once. Subjects need it
too: pictures that are one and the same under two numbers decide the splits. P = pictures.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.nsd_files import hdf5_dataset, stimulus_id
from cadiff.shards.pictures import MAX_PIXELS
from cadiff.shards.record import SPLITS, Progress, silent
from cadiff.shards.writer import Pack, fingerprint

TRAIN, VAL, TEST = range(len(SPLITS))
LEFT_OUT = -1  # of a picture that must not be in any split


class Bricks:
    """Pictures of ``imgBrick``, uint8 (pictures, H, W, 3), that are used: the file, and their numbers, ascending."""

    def __init__(self, path: Path, numbers_P: np.ndarray) -> None:
        self.path, self.numbers_P = path, numbers_P
        self._digests: dict[int, bytes] = {}

    def digests(self, progress: Progress = silent) -> dict[int, bytes]:
        """Picture number -> sha256 of its pixels. Read once; copies sent to other processes know them.

        Raises:
            DataError: the pictures cannot be read.
        """
        if not self._digests:
            found = {}
            for done, (number, pixels_HWC) in enumerate(read_pixels(self.path, self.numbers_P)):
                found[number] = _digest(pixels_HWC)
                if done % 500 == 0:
                    progress("reading pictures", done, len(self.numbers_P))
            self._digests = found
        return self._digests

    def fingerprint(self, name: str, path: Path) -> dict[str, Any]:
        """Name, size and sha256 of a source: of this file, the numbers and pixels of the pictures used, else all."""
        if path != self.path:
            return fingerprint(name, path)
        digest = hashlib.sha256()
        for number, pixels in self.digests().items():
            digest.update(number.to_bytes(8, "little") + pixels)
        return {"name": name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}

    def settle(self, split_P: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Correct the splits, by picture number, where two numbers show one picture; also returns those left out.

        Such twins would leak: one seen in training, the other tested. Twins of a test picture are left out, those of a
        validation picture join it.
        """
        split_P, dropped = split_P.copy(), []
        twins: dict[bytes, list[int]] = {}
        for number, pixels in self.digests().items():
            twins.setdefault(pixels, []).append(number)
        for group in twins.values():
            top = split_P[group].max()
            for number in [number for number in group if split_P[number] != top]:
                split_P[number] = VAL if top == VAL else LEFT_OUT
                if top == TEST:
                    dropped.append(number)
        return split_P, dropped


def pack_pictures(bricks: Bricks, source: str, numbers: np.ndarray, max_side: int, pack: Pack) -> None:
    """Add some of the pictures to a part: JPEG quality 95 without colour subsampling, at most ``max_side`` a side.

    Raises:
        DataError: a picture is not the one that the fingerprint was taken of.
    """
    pack.source(source)
    digests = bricks.digests()
    for number, pixels_HWC in read_pixels(bricks.path, numbers):
        if _digest(pixels_HWC) != digests[number]:
            raise DataError(f"{bricks.path}: {stimulus_id(number)} has changed since packing began. Pack again.")
        pack.picture(stimulus_id(number), _jpeg(pixels_HWC, max_side), "jpg")


def read_pixels(path: Path, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Read pictures of ``imgBrick`` one at a time: (number, uint8 (H, W, 3)).

    Raises:
        DataError: no such dataset, of another shape, or too short.
    """
    with hdf5_dataset(path, ["imgBrick"]) as bricks:
        shape = bricks.shape
        if len(shape) != 4 or shape[3] != 3 or bricks.dtype != np.uint8 or not 0 < shape[1] * shape[2] <= MAX_PIXELS:
            raise DataError(f"{path}: imgBrick is {bricks.dtype} {shape}, expected uint8 (pictures, height, width, 3).")
        if len(numbers) and numbers.max() >= len(bricks):
            raise DataError(f"{path}: {len(bricks):,} pictures, but a trial shows {stimulus_id(numbers.max())}.")
        for number in numbers.tolist():
            yield number, bricks[number]


def _digest(pixels_HWC: np.ndarray) -> bytes:
    return hashlib.sha256(f"{pixels_HWC.shape}".encode() + pixels_HWC.tobytes()).digest()


def _jpeg(pixels_HWC: np.ndarray, max_side: int) -> bytes:
    from PIL import Image

    picture, stream = Image.fromarray(pixels_HWC), io.BytesIO()
    if max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    picture.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
