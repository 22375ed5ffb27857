"""Write a folder of image features: shard by shard into a hidden folder that becomes the real one when it is whole.

Finished shards survive an interruption: the same command goes on after them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError
from cadiff.files import read_json, sync_folder, whole_file, write_json
from cadiff.shards.features import MANIFEST, Features
from cadiff.shards.manifest import manifest_checksum

log = logging.getLogger(__name__)

_RECIPE = "recipe.json"
_ROOM = 16 * 1024**2  # beside the shards: the manifest, and what a file system keeps for itself


class FeatureWriter:
    """Takes the records of one shard after another.

    Attributes:
        missing: numbers of the shards that have to be computed yet.
        shards: how many there are to be.
    """

    def __init__(self, out: Path, recipe: dict[str, Any], record_bytes: int) -> None:
        """Open or continue the hidden folder beside ``out``.

        Args:
            recipe: the manifest's content without files and checksum; parts of another recipe are removed.

        Raises:
            ConfigError: another process writes there, or the disk lacks room.
        """
        self.out, self._recipe, self._record_bytes = out, json.loads(json.dumps(recipe)), record_bytes
        self._partial = out.parent / f".{out.name}.partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._partial, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"{out}: another process is packing features there. Wait for it, or stop it.") from None
        self._begin()
        self._counts = _counts(len(recipe["digests"]), recipe["rows"])
        self.shards = len(self._counts)
        self.missing = [number for number in range(self.shards) if self._entry(number) is None]

    def __enter__(self) -> FeatureWriter:
        try:
            self._check_room()
        except ConfigError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._partial.is_dir():
            finished = self.shards - sum(self._entry(number) is None for number in range(self.shards))
            if finished:
                log.warning("%d finished shards are kept; the same command continues after them", finished)
            else:
                shutil.rmtree(self._partial)
        os.close(self._lock)

    def _begin(self) -> None:
        path = self._partial / _RECIPE
        if path.is_file() and read_json(path) == self._recipe:
            for leftover in self._partial.glob(".*.tmp"):
                leftover.unlink()
            return
        for leftover in self._partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_json(path, self._recipe)

    def _check_room(self) -> None:
        needed = sum(self._counts[number] for number in self.missing) * self._record_bytes
        free = shutil.disk_usage(self._partial).free
        if free < needed + _ROOM:
            raise ConfigError(
                f"{self.out}: {needed / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free there. Make "
                "room, choose another disk, store float16, or keep fewer masks."
            )

    def records(self, number: int) -> int:
        """Pictures of a shard."""
        return self._counts[number]

    def write(self, number: int, blocks: Iterable[np.ndarray]) -> None:
        """Write shard ``number``, given its records in pieces of whole records."""
        path, hashed, written = self._shard(number), hashlib.sha256(), 0
        with whole_file(path) as beside, open(beside, "wb") as handle:
            for block in blocks:
                data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
                hashed.update(data)
                handle.write(data)
                written += len(data)
            if written != self._counts[number] * self._record_bytes:
                raise ValueError(f"shard {number}: {written} bytes for {self._counts[number]} records")
        entry = {"path": path.name, "bytes": written, "sha256": hashed.hexdigest()}
        write_json(path.with_suffix(".json"), entry)

    def finish(self) -> None:
        """Write the manifest and let the folder appear."""
        tree = {**self._recipe, "files": [self._entry(number) for number in range(len(self._counts))]}
        write_json(self._partial / MANIFEST, {**tree, "checksum": manifest_checksum(tree)})
        for number in range(len(self._counts)):
            self._shard(number).with_suffix(".json").unlink()
        (self._partial / _RECIPE).unlink()
        try:
            os.rename(self._partial, self.out)
        except OSError as problem:
            raise ConfigError(f"{self.out}: appeared while packing ({problem}). Remove it and try again.") from None
        sync_folder(self.out.parent)

    def _shard(self, number: int) -> Path:
        return self._partial / f"features-{number:05d}.bin"

    def _entry(self, number: int) -> dict[str, Any] | None:
        """The manifest's entry of a shard that is finished, else None."""
        path = self._shard(number)
        told = path.with_suffix(".json")
        if not told.is_file() or not path.is_file():
            return None
        entry = read_json(told)
        return entry if entry["bytes"] == path.stat().st_size else None


def packed_before(out: Path, recipe: dict[str, Any]) -> bool:
    """Whether ``out`` holds just these features.

    Raises:
        ConfigError: it holds something else, or features of another recipe.
        DataError: it holds damaged ones.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out}: exists and holds no features. Choose another output folder, or remove it.")
    was = Features(out).manifest.model_dump()
    names = [name for name in sorted(recipe) if name != "made_by" and was[name] != recipe[name]]
    if names:
        told = "; ".join(f"{name} was {was[name]}, now {recipe[name]}" for name in names if name != "digests")
        if "digests" in names:
            told += f"{told and '; '}{len(was['digests']):,} pictures were others than these {len(recipe['digests']):,}"
        raise ConfigError(f"{out}: packed otherwise before: {told}. Remove it to pack again, or choose another folder.")
    return True


def _counts(pictures: int, rows: int) -> list[int]:
    """Records of each shard."""
    return [min(rows, pictures - start) for start in range(0, pictures, rows)]
