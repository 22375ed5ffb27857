"""Read the numbers of a pandas frame stored in HDF5, a few rows at a time, without pandas and without its pickles.

pandas' "fixed" format keeps, below the frame's group, one matrix (rows, columns) per number type as block<n>_values,
with the columns' names in block<n>_items; its "table" format keeps one compound dataset with fields values_block_<n>.
Names that mix text and numbers are stored as pickled objects. Those are never loaded: such columns have no names here,
and their order is what counts. Shapes: V rows, T columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError

SLAB_BYTES = 64 * 1024**2  # most that is read at once
_DAMAGED = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError, UnicodeDecodeError)
_REMEDY = "Download the file again, or write it with DataFrame.to_hdf without compression."


@dataclass(frozen=True)
class _Block:
    """The columns of one number type: ``source[a:b]`` gives rows; ``names`` is None where they are pickled."""

    source: Any
    shape: tuple[int, ...]
    kind: str
    names: list[str] | None


class Frame:
    """T columns of floating-point numbers beside one column of row ids.

    Attributes:
        ids: int64 (V,), the id column.
        names: the T columns' names as text; None where the file has them as pickled objects only.
    """

    def __init__(self, path: Path, values: _Block, ids: np.ndarray) -> None:
        self.path, self.ids, self.names = path, ids, values.names
        self._source, self._columns = values.source, values.shape[1]

    def rows(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Read the rows ``wanted`` (ascending) in slabs of at most SLAB_BYTES.

        Yields:
            (number of the slab's first row within ``wanted``, float32 (rows of the slab, T)).

        Raises:
            DataError: the file is damaged there.
        """
        step = max(1, SLAB_BYTES // (8 * self._columns))
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            slab_VT = np.empty((len(part), self._columns), dtype=np.float32)
            # Rows that follow each other are read at once: HDF5 is slow at lists of single rows.
            edges = [0, *(np.flatnonzero(np.diff(part) != 1) + 1).tolist(), len(part)]
            for first, last in pairwise(edges):
                slab_VT[first:last] = self._read(int(part[first]), int(part[last - 1]) + 1)
            yield start, slab_VT

    def _read(self, start: int, stop: int) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                return self._source[start:stop].astype(np.float32, copy=False)
        except _DAMAGED as problem:
            raise DataError(f"{self.path}: rows {start} to {stop - 1} cannot be read ({problem}). {_REMEDY}") from None


@contextmanager
def open_frame(path: Path, rows: int, columns: int, id_column: str) -> Iterator[Frame]:
    """Open the one frame of a file: ``rows`` rows, ``columns`` columns of floats, and an id column of whole numbers.

    Raises:
        DataError: missing, damaged, compressed in a way HDF5 alone cannot read, or of another shape.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        # A cache of the size of a slab: compressed files are then unpacked once.
        file = h5py.File(path, "r", rdcc_nbytes=SLAB_BYTES)
    except _DAMAGED as problem:
        raise DataError(f"{path}: not a readable HDF5 file ({problem}). Download it again.") from None
    with file:
        try:
            frame = _choose(path, _blocks(file, path), rows, columns, id_column)
        except _DAMAGED as problem:
            raise DataError(f"{path}: not a readable pandas frame ({problem}). {_REMEDY}") from None
        yield frame


def _blocks(file: Any, path: Path) -> list[_Block]:
    groups = [group for group in file.values() if _text(group.attrs.get("pandas_type")) in ("frame", "frame_table")]
    if len(groups) != 1:
        raise DataError(f"{path}: holds {len(groups)} pandas frames ({', '.join(file) or 'empty'}), expected one.")
    group = groups[0]
    if "table" in group:
        table = _inside(group["table"], path)
        fields = [name for name in table.dtype.names if re.fullmatch(r"values_block_\d+", name)]
        types = {name: table.dtype[name] for name in fields}
        return [_Block(table.fields(name), table.shape + t.shape, t.base.kind, None) for name, t in types.items()]
    found = []
    for key in sorted(key for key in group if re.fullmatch(r"block\d+_values", key)):
        values, items = _inside(group[key], path), _inside(group[key.replace("values", "items")], path)
        found.append(_Block(values, values.shape, values.dtype.kind, _names(items)))
    return found


def _inside(dataset: Any, path: Path) -> Any:
    """A dataset whose bytes lie in this file: HDF5 can point at any other file of the machine."""
    if dataset.external or dataset.is_virtual or Path(dataset.file.filename) != path:
        raise ValueError(f"{dataset.name} points to another file")
    return dataset


def _names(items: Any) -> list[str] | None:
    if items.dtype.kind not in "Siu":
        return None
    return [_text(item) for item in items[:].tolist()]


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _choose(path: Path, blocks: list[_Block], rows: int, columns: int, id_column: str) -> Frame:
    floats = [block for block in blocks if block.kind == "f"]
    whole = [block for block in blocks if block.kind in "iu"]
    if (
        [block.shape for block in floats] != [(rows, columns)]
        or [block.shape for block in whole] != [(rows, 1)]
        or whole[0].names not in (None, [id_column])
    ):
        seen = ", ".join(f"{' x '.join(map(str, b.shape))} ({b.kind})" for b in blocks) or "none"
        raise DataError(
            f"{path}: blocks of numbers {seen}; expected {rows} x {columns} (f) and {rows} x 1 (i) for {id_column}, as "
            "the metadata beside it say. Are these files of one release?"
        )
    if floats[0].names is not None and len(floats[0].names) != columns:
        raise ValueError(f"{len(floats[0].names)} names for {columns} columns")
    return Frame(path, floats[0], whole[0].source[:].reshape(-1).astype(np.int64))
