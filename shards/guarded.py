"""Splits that stay closed: what of a packed set cannot be read by a dataset that was opened without them.

The guard sits where bytes are read, so that no way round it is left: whole blocks of closed samples are never mapped,
checked or held, and rows and pictures are looked up among the open ones before they are given. A stimulus lies in one
split only (``leaks`` sees to that), so a picture is closed with the samples that show it.

Legend: N samples of the set, B blocks, S stimuli, n samples asked for, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.shards.checks import BlockChecks
from cadiff.shards.home import Home
from cadiff.shards.picture_store import PictureStore
from cadiff.shards.record import SPLITS
from cadiff.shards.store import Store


class Closed:
    """What of a set is closed.

    Attributes:
        splits: the open ones.
        sample_N, stimulus_S, block_B: bool; a block counts if all of its rows are closed.
    """

    def __init__(
        self, name: str, splits: Sequence[str], table: SimpleNamespace, block: dict[str, np.ndarray], stimuli: int
    ) -> None:
        """Raises: ConfigError: an unknown split."""
        if unknown := [split for split in splits if split not in SPLITS]:
            raise ConfigError(f"split '{unknown[0]}': one of {', '.join(SPLITS)}.")
        self._name, self.splits = name, tuple(splits)
        self.sample_N = ~np.isin(table.split, [SPLITS.index(split) for split in splits])
        self._any = bool(self.sample_N.any())
        self.stimulus_S = np.zeros(stimuli, dtype=bool)
        shown_N = table.stimulus[self.sample_N]
        self.stimulus_S[shown_N[shown_N >= 0]] = True
        self.block_B = np.zeros(len(block["rows"]), dtype=bool)
        if len(self.block_B):
            self.block_B = np.logical_and.reduceat(self.sample_N, block["first"])

    def refuse_split(self, split: str) -> None:
        """Raise ConfigError if this split is closed."""
        if split not in self.splits:
            raise ConfigError(f"{self._name}: the {split} split is asked for. {self._remedy()}")

    def refuse_samples(self, ids: np.ndarray) -> None:
        """Raise ConfigError if any of these samples is closed."""
        if self._any and (bad := self.sample_N[ids]).any():
            raise ConfigError(f"{self._name}: sample {np.asarray(ids)[bad][0]} is of a closed split. {self._remedy()}")

    def refuse_stimuli(self, stimuli: np.ndarray) -> None:
        """Raise ConfigError if any of these stimuli belongs to closed samples."""
        if self._any and (bad := self.stimulus_S[stimuli]).any():
            number = np.asarray(stimuli)[bad][0]
            raise ConfigError(f"{self._name}: stimulus {number} belongs to a closed split. {self._remedy()}")

    def _remedy(self) -> str:
        return (
            f"It was opened for {' and '.join(self.splits)} only, as training opens it, so that no test data can "
            "reach a trained weight or a choice between checkpoints. To evaluate, open the set by itself."
        )


class GuardedChecks(BlockChecks):
    """Never reads the blocks, or pictures, that are closed; they count as sound, since nobody will use them."""

    def __init__(
        self, home: Home, table: dict[str, np.ndarray], lengths: np.ndarray, what: str, closed_B: np.ndarray
    ) -> None:
        super().__init__(home, table, lengths, what)
        self._closed_B = closed_B
        self._state[closed_B] = 1

    def look(self, blocks: np.ndarray) -> None:
        super().look(blocks[~self._closed_B[blocks]])


class GuardedStore(Store):
    """Gives rows of open samples only, and maps no file that holds no other."""

    def __init__(
        self, home: Home, dtype: str, block: dict[str, np.ndarray], checks: BlockChecks, closed: Closed
    ) -> None:
        super().__init__(home, dtype, block, checks)
        self._closed = closed
        self._needed = np.zeros(len(home.sizes), dtype=bool)  # shards with an open block
        self._needed[block["shard"][~closed.block_B]] = True

    def map(self, shards: np.ndarray) -> None:
        super().map(shards[self._needed[shards]])
        self._all_mapped = bool(self._mapped[self._needed].all())

    def take(self, ids: np.ndarray, out_NW: Tensor) -> None:
        self._closed.refuse_samples(ids)
        super().take(ids, out_NW)

    def gather(self, ids: np.ndarray, voxels: int, out_NW: Tensor, pad: str) -> None:
        self._closed.refuse_samples(ids)
        super().gather(ids, voxels, out_NW, pad)

    def raw(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        self._closed.refuse_samples(ids)
        return super().raw(ids)

    def _stored(self, block: int) -> np.ndarray:
        """As the parent's; closed rows are NaN in a table that is held, and those of closed blocks are not read."""
        rows, first = int(self._block["rows"][block]), int(self._block["first"][block])
        if self._closed.block_B[block]:
            values = int(self._checks.lengths[block]) // self._item
            return np.full((rows, values // rows), np.nan, dtype=np.float32)
        stored_NV, closed_N = super()._stored(block), self._closed.sample_N[first : first + rows]
        return np.where(closed_N[:, None], np.float32(np.nan), stored_NV) if closed_N.any() else stored_NV


class GuardedPictures(PictureStore):
    """Gives pictures of open stimuli only."""

    def __init__(self, home: Home, image: dict[str, np.ndarray], stimuli: list[str], closed: Closed) -> None:
        super().__init__(home, image, stimuli)
        self._closed = closed
        self.checks = GuardedChecks(home, image, image["bytes"], "picture", closed.stimulus_S)

    def read(self, stimuli: np.ndarray, out_NSS3: np.ndarray) -> None:
        self._closed.refuse_stimuli(stimuli)
        super().read(stimuli, out_NSS3)

    def encoded(self, stimulus: int) -> bytes:
        self._closed.refuse_stimuli(np.array([stimulus]))
        return super().encoded(stimulus)
