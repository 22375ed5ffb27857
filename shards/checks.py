"""The first look at every block and picture: its CRC-32C is checked before the first row of it is used."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.encoding import crc32c
from cadiff.shards.home import Home

log = logging.getLogger(__name__)

READERS = 4  # reads in flight: what keeps a disk or a network file system busy
_TOGETHER = 4 * 1024**2  # neighbouring blocks are read in one go of at most this many bytes
_GAP = 64 * 1024  # what may lie between two blocks that are read together: headers and .json members


class BlockChecks:
    """Which byte ranges of a set have been read and found as packed, in this process.

    Checking reads with pread: it brings the range into the page cache in large pieces, where a mapped row would be
    fetched page by page, and a read error is an error, not a crash.

    Attributes:
        lengths: int64, bytes of each block.
    """

    def __init__(self, home: Home, table: dict[str, np.ndarray], lengths: np.ndarray, what: str) -> None:
        self._home, self._what, self.lengths = home, what, lengths
        self._shard, self._offset, self._crc = table["shard"], table["offset"], table["crc32c"]
        self._state = np.zeros(len(lengths), dtype=np.int8)  # 0 not looked at, 1 sound, 2 damaged
        self._lock, self._noting = threading.Lock(), threading.Lock()
        self._local = threading.local()
        self.bytes_read = 0
        self.all_sound = False  # every block or picture has been looked at and found as packed

    def damaged(self, blocks: np.ndarray) -> np.ndarray:
        """Of these blocks, the ones whose bytes are not as packed; each block is read at most once for this.

        Raises:
            DataError: a file is missing or ends early; that is never passed over.
        """
        if self.all_sound:
            return blocks[:0]
        state = self._state[blocks]
        if state.all() and not (state == 2).any():
            return blocks[:0]
        new = np.unique(blocks[state == 0])
        if len(new):
            with self._lock:  # another thread may have looked at some of them meanwhile
                self.look(new[self._state[new] == 0])
        return np.unique(blocks[self._state[blocks] == 2])

    def require(self, blocks: np.ndarray) -> None:
        """Raise DataError, naming the first, if any of these blocks is damaged."""
        bad = self.damaged(blocks)
        if len(bad):
            raise DataError(self.describe(int(bad[0])))

    def describe(self, block: int) -> str:
        """Where a damaged block lies, and what to do about it."""
        shard, at = int(self._shard[block]), int(self._offset[block])
        return (
            f"{self._home.name}/{self._home.shards[shard].path}: {self._what} {block} at byte {at:,} is damaged (its "
            f"crc32c differs, or the disk cannot read it). {self._home.remedy(shard)}, or train with "
            "data.on_damage=quarantine."
        )

    def look(self, blocks: np.ndarray) -> None:
        """Read blocks (ascending) and note what was found, whether they were looked at before or not."""
        order = np.lexsort((self._offset[blocks], self._shard[blocks]))
        blocks = blocks[order]
        pieces, start = [], 0
        while start < len(blocks):
            stop = self._end_of_piece(blocks, start)
            pieces.append(blocks[start:stop])
            start = stop
        if len(pieces) <= READERS:
            for piece in pieces:
                self._note(piece, self._look_at_piece(piece))
            return
        # A first batch in random order touches many pieces: several requests at once keep a disk busy.
        with ThreadPoolExecutor(READERS, thread_name_prefix="look") as pool:
            for piece, sound in zip(pieces, pool.map(self._look_at_piece, pieces)):
                self._note(piece, sound)

    def mark(self, blocks: np.ndarray) -> None:
        """Note that blocks are damaged, however that was found."""
        self._note(blocks, np.zeros(len(blocks), dtype=bool))

    def _note(self, blocks: np.ndarray, sound: np.ndarray) -> None:
        with self._noting:  # several threads look at once; none may take back what another has found
            self._state[blocks] = np.where(sound, 1, 2)
            self.all_sound = bool((self._state[self._shard >= 0] == 1).all())

    def _end_of_piece(self, blocks: np.ndarray, start: int) -> int:
        first, end = self._offset[blocks[start]], self._offset[blocks[start]] + self.lengths[blocks[start]]
        stop = start + 1
        while stop < len(blocks):
            block = blocks[stop]
            begins, ends = self._offset[block], self._offset[block] + self.lengths[block]
            same = self._shard[block] == self._shard[blocks[start]]
            if not same or begins < end or begins - end > _GAP or ends - first > _TOGETHER:
                break
            end, stop = ends, stop + 1
        return stop

    def _look_at_piece(self, blocks: np.ndarray) -> np.ndarray:
        """Which of these neighbouring blocks are as packed: bool; none where the disk cannot read them."""
        shard, first = int(self._shard[blocks[0]]), int(self._offset[blocks[0]])
        length = int(self._offset[blocks[-1]] + self.lengths[blocks[-1]]) - first
        path = self._home.path(shard)
        data = self._buffer(length)
        try:
            with open(path, "rb", buffering=0) as handle:
                found = os.preadv(handle.fileno(), [data], first)
        except FileNotFoundError:
            raise DataError(f"{path}: missing. Copy the packed folder again or pack again.") from None
        except OSError as problem:
            log.warning("%s: cannot be read at byte %s (%s)", path, f"{first:,}", problem)
            return np.zeros(len(blocks), dtype=bool)
        if found != length:
            raise DataError(f"{path}: ends at byte {first + found:,}, expected more. Copy the packed folder again.")
        self.bytes_read += length
        places = zip((self._offset[blocks] - first).tolist(), self.lengths[blocks].tolist())
        found_crcs = [crc32c(data[begins : begins + length]) for begins, length in places]
        return np.array(found_crcs, dtype=np.int64) == self._crc[blocks].astype(np.int64)

    def _buffer(self, length: int) -> np.ndarray:
        """Memory of this thread that is used again: touching fresh pages costs as much as reading."""
        held = getattr(self._local, "held", None)
        if held is None or len(held) < length:
            held = self._local.held = np.empty(max(length, _TOGETHER), dtype=np.uint8)
        return held[:length]
