"""Pictures of a packed folder: checked, decoded to squares, kept decoded while they fit. S = pixels per side."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.checks import BlockChecks
from cadiff.shards.home import Home
from cadiff.shards.pictures import decode_square

CACHE_BYTES = 4 * 1024**3  # decoded pictures kept per size; a larger set is decoded anew each time


class PictureStore:
    """One picture per stimulus, stored encoded; ``has`` is bool, one entry per stimulus."""

    def __init__(self, home: Home, image: dict[str, np.ndarray], stimuli: list[str]) -> None:
        self._home, self._image, self._stimuli = home, image, stimuli
        self.has, self.digest = image["shard"] >= 0, image["digest"]
        self.checks = BlockChecks(home, image, image["bytes"], "picture")
        self.cache_bytes = CACHE_BYTES
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def damaged(self, stimuli: np.ndarray, size: int) -> np.ndarray:
        """Of these stimuli, the ones whose stored bytes are not as packed."""
        kept = self._kept.get(size)
        unseen = stimuli if kept is None else stimuli[~kept[1][stimuli]]
        return self.checks.damaged(unseen)

    def read(self, stimuli: np.ndarray, out_NSS3: np.ndarray) -> None:
        """Decode, or copy from what is kept, into uint8 (n, S, S, 3).

        Raises:
            DataError: a stimulus without a picture, a damaged one, or one that does not decode.
        """
        if not self.has[stimuli].all():
            name = self._stimuli[stimuli[~self.has[stimuli]][0]]
            none = "" if self.has.any() else ", as the set holds none"
            raise DataError(
                f"{self._home.name}: stimulus {name} has no picture{none}. Pack again with the folder of pictures."
            )
        size = out_NSS3.shape[1]
        if int(self.has.sum()) * 3 * size * size > self.cache_bytes:
            for row, number in enumerate(stimuli.tolist()):
                self._decode(number, out_NSS3[row])
            return
        pictures, ready = self._keep(size)
        for number in np.unique(stimuli[~ready[stimuli]]).tolist():
            self._decode(number, pictures[number])
            ready[number] = True
        np.take(pictures, stimuli, axis=0, out=out_NSS3, mode="clip")

    def _keep(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if size not in self._kept:
                # Memory is touched, and so taken, only as pictures are decoded.
                pictures = np.empty((len(self._stimuli), size, size, 3), dtype=np.uint8)
                self._kept[size] = pictures, np.zeros(len(self._stimuli), dtype=bool)
            return self._kept[size]

    def _decode(self, stimulus: int, out_SS3: np.ndarray) -> None:
        self.checks.require(np.array([stimulus]))
        where = f"{self._home.name}/{self._home.shards[self._image['shard'][stimulus]].path}"
        decode_square(self.encoded(stimulus), out_SS3, f"{where}: stimulus {self._stimuli[stimulus]}")

    def encoded(self, stimulus: int) -> bytes:
        """The stored bytes of a picture, JPEG or PNG."""
        shard, offset, length = (int(self._image[name][stimulus]) for name in ("shard", "offset", "bytes"))
        return os.pread(self._file(shard), length, offset)

    def place(self, stimulus: int) -> dict[str, Any]:
        """Where a picture's stored bytes lie, and their CRC-32C; None four times for a stimulus, or -1, without one."""
        if stimulus < 0 or not self.has[stimulus]:
            return dict.fromkeys(("shard", "offset", "bytes", "crc32c"))
        place = {name: int(self._image[name][stimulus]) for name in ("shard", "offset", "bytes", "crc32c")}
        return place | {"shard": self._home.shards[place["shard"]].path}

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            with self._lock:
                if shard not in self._files:
                    self._files[shard] = os.open(self._home.path(shard), os.O_RDONLY)
        return self._files[shard]
