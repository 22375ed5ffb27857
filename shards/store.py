"""Where the signals of a packed folder lie while it is read: mapped files, or one table in RAM or GPU memory.

Mapped files are one flat tensor and a start per sample, so that one call gathers a batch. N samples of a batch, M of
the set, V voxels, W width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import DataError
from cadiff.shards.address import AddressRange, roomy
from cadiff.shards.checks import BlockChecks
from cadiff.shards.encoding import ITEM_BYTES
from cadiff.shards.home import Home

_TORCH = {"float16": torch.float16, "float32": torch.float32, "int16": torch.int16, "int8": torch.int8}
_PLAIN = {torch.float16: np.float16, torch.float32: np.float32}
_ROWS = 1024  # rows gathered at once: bounds the staging memory of large requests
_WATCH_S = 1.0
_SLACK_BYTES = 1024  # a row may be read this far beyond its end where that saves a second pass over the batch


class Store:
    """Rows of one packed folder behind one flat tensor.

    Attributes:
        flat: all values, (M,) of the storage type; block b's rows begin at element ``starts[b]``.
        starts: int64, one entry per block.
        device: where batches are put together.
        table_MW: all rows, decoded and padded to a width, once ``hold`` was called.
    """

    def __init__(self, home: Home, dtype: str, block: dict[str, np.ndarray], checks: BlockChecks) -> None:
        self._home, self._checks, self.dtype = home, checks, _TORCH[dtype]
        self.device = torch.device("cpu")
        self._item, self._block = ITEM_BYTES[dtype], block
        self._scaled = not (block["scale"] == 1).all()
        self._scale = torch.from_numpy(block["scale"].astype(np.float32))
        self._range = AddressRange(home.sizes)
        self.flat = self._range.flat(self.dtype)
        self._views: dict[int, Tensor] = {}
        self.starts = (self._range.starts[block["shard"]] + block["offset"]) // self._item
        self._block_of = np.repeat(np.arange(len(block["rows"])), block["rows"])
        self._voxels_of = np.repeat(checks.lengths // self._item // block["rows"], block["rows"])
        self._start_of = self._rows()
        self._mapped = np.zeros(len(home.sizes), dtype=bool)
        self._all_mapped = False
        self.table_MW: Tensor | None = None  # all rows, decoded and padded, if they are held
        self._watched_s = 0.0
        self._lock = threading.Lock()
        self._local = threading.local()

    def _rows(self) -> np.ndarray:
        """The element of ``flat`` at which each sample begins: int64, one entry per sample."""
        row_N = np.arange(len(self._block_of)) - self._block["first"][self._block_of]
        return self.starts[self._block_of] + row_N * self._voxels_of

    def map(self, shards: np.ndarray) -> None:
        """Make the files of these shards readable; a remote one is fetched first."""
        with self._lock:
            for shard in np.unique(shards[~self._mapped[shards]]).tolist():
                self._map(shard)
                self._mapped[shard] = True
            self._all_mapped = bool(self._mapped[self._block["shard"]].all())

    def _map(self, shard: int) -> None:
        path = self._home.path(shard)
        try:
            self._range.map(shard, path)
        except DataError:
            if path.exists():
                raise
            # Another process that needed room in the cache has just removed it; once mapped it cannot be lost.
            self._range.map(shard, self._home.path(shard))

    def hold(self, device: torch.device | str, width: int, pad: str = "wrap", *, whole: bool = True) -> None:
        """Keep all rows, decoded and padded to ``width``, in one table on ``device``: reading needs the files no more.

        The table is float16 where the rows are stored so, else float32.

        Args: ``whole``: a damaged block is an error; else its rows are not to be read, as ``checks`` says.

        Raises:
            DataError: a damaged block.
        """
        blocks = np.arange(len(self.starts))
        if whole:
            self._checks.require(blocks)
        self._checks.damaged(blocks)
        self.map(self._block["shard"])
        device, count = torch.device(device), len(self._block_of)
        if device.type == "cpu":
            table_MW = roomy((count, width), self._kept())
        else:
            table_MW = torch.empty((count, width), dtype=self._kept(), device=device)
        for block, first in enumerate(self._block["first"].tolist()):
            stored_NV = self._stored(block)
            target_NW = table_MW[first : first + len(stored_NV)]
            on_cpu = device.type == "cpu"
            rows_NW = target_NW.numpy() if on_cpu else np.empty(target_NW.shape, _PLAIN[target_NW.dtype])
            rows_NW[:, : stored_NV.shape[1]] = stored_NV
            if self._scaled:
                rows_NW *= self._scale[block].item()
            _pad(rows_NW, stored_NV.shape[1], pad)
            if not on_cpu:
                target_NW.copy_(torch.from_numpy(rows_NW))
        self.table_MW, self._table_pad, self.device = table_MW, pad, device

    def _stored(self, block: int) -> np.ndarray:
        """A block's rows as they are stored: a view, (N, V)."""
        rows, start = int(self._block["rows"][block]), int(self.starts[block])
        values = int(self._checks.lengths[block]) // self._item
        return self.flat.numpy()[start : start + values].reshape(rows, values // rows)

    def held_bytes(self, width: int) -> int:
        """What ``hold`` would take."""
        return len(self._block_of) * width * self._kept().itemsize

    def _kept(self) -> torch.dtype:
        return torch.float16 if self.dtype == torch.float16 and not self._scaled else torch.float32

    def has(self, width: int, pad: str) -> bool:
        """Whether a table holds the rows just so."""
        return self.table_MW is not None and (self.table_MW.shape[1], self._table_pad) == (width, pad)

    def take(self, ids: np.ndarray, out_NW: Tensor) -> None:
        """Copy rows of the table into a float32 batch on its device."""
        if self.device.type != "cpu":
            out_NW.copy_(torch.index_select(self.table_MW, 0, torch.from_numpy(ids).to(self.device)))
        elif self.table_MW.dtype == torch.float32:
            np.take(self.table_MW.numpy(), ids, axis=0, out=out_NW.numpy(), mode="clip")
        else:
            stage_NW = self._stage(*out_NW.shape)
            np.take(self.table_MW.numpy(), ids, axis=0, out=stage_NW.numpy(), mode="clip")
            out_NW.copy_(stage_NW)

    def gather(self, ids: np.ndarray, voxels: int, out_NW: Tensor, pad: str) -> None:
        """Copy rows of equally wide samples into ``out_NW`` (N, W) float32, padded on the right to W.

        Args:
            pad: "wrap" repeats the signal's own beginning, "zero" fills with zeros.
        """
        if out_NW.device.type != "cpu":
            rows_NW = torch.empty(out_NW.shape)
            self.gather(ids, voxels, rows_NW, pad)
            out_NW.copy_(rows_NW)
            return
        if not self._all_mapped:
            self.map(self._block["shard"][self._block_of[ids]])
        self._watch()
        for first in range(0, len(ids), _ROWS):
            part = ids[first : first + _ROWS]
            rows_NW = out_NW if len(part) == len(ids) else out_NW[first : first + _ROWS]
            self._gather(self._start_of[part], voxels, rows_NW, pad)
            if self._scaled:
                rows_NW.mul_(self._scale[torch.from_numpy(self._block_of[part]), None])

    def _watch(self) -> None:
        """Once a second, see that mapped files have kept their size: a row beyond a file's end would be a crash."""
        now = time.monotonic()
        if now - self._watched_s < _WATCH_S:
            return
        self._watched_s = now
        for shard in np.flatnonzero(self._mapped).tolist():
            found = self._range.found_size(shard)
            if found != self._home.sizes[shard]:
                raise DataError(
                    f"{self._home.name}/{self._home.shards[shard].path}: is {found:,} bytes now, was "
                    f"{self._home.sizes[shard]:,}: it is being changed while it is read. Copy the packed folder again."
                )

    def raw(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """Each sample's row as it is stored (V,), read-only."""
        self.map(self._block["shard"][self._block_of[ids]])
        flat = self.flat.numpy()
        for start, voxels in zip(self._start_of[ids].tolist(), self._voxels_of[ids].tolist()):
            yield flat[start : start + voxels]

    def _gather(self, starts_N: np.ndarray, voxels: int, out_NW: Tensor, pad: str) -> None:
        rows, width = out_NW.shape
        # Reading a few values too many and overwriting them is one pass over contiguous memory; else there are two.
        extra = width - voxels
        fits = 0 < extra * self._item <= _SLACK_BYTES and starts_N.max() + width <= len(self.flat)
        read = width if fits else voxels
        if self.dtype == torch.float32 and read == width:
            torch.index_select(self._view(read), 0, torch.from_numpy(starts_N), out=out_NW)
        else:
            stage_NR = self._stage(rows, read)
            torch.index_select(self._view(read), 0, torch.from_numpy(starts_N), out=stage_NR)
            (out_NW if read == width else out_NW[:, :read]).copy_(stage_NR)
        if extra:
            _pad(out_NW.numpy(), voxels, pad)

    def _stage(self, rows: int, width: int) -> Tensor:
        """A buffer of this thread, used again and again: fresh memory would cost more than the copy."""
        held = getattr(self._local, "stage", None)
        if held is None or held.shape != (rows, width):
            whole = getattr(self._local, "whole", None)
            if whole is None or whole.numel() < rows * width:
                whole = self._local.whole = roomy((rows * width,), self.dtype)
            held = self._local.stage = whole[: rows * width].view(rows, width)
        return held

    def _view(self, width: int) -> Tensor:
        """``flat`` as rows of ``width`` values that begin at every element: (M - width + 1, width)."""
        if width not in self._views:
            shape = (max(len(self.flat) - width + 1, 0), width)
            self._views[width] = torch.as_strided(self.flat, shape, (1, 1))
        return self._views[width]


def _pad(out_NW: np.ndarray, voxels: int, pad: str) -> None:
    """Fill what lies right of the voxels."""
    width = out_NW.shape[1]
    if pad == "zero":
        out_NW[:, voxels:] = 0
        return
    for column in range(voxels, width, voxels):
        out_NW[:, column : column + voxels] = out_NW[:, : min(voxels, width - column)]
