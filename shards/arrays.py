"""Arrays from files that nobody vouches for: .npy and .npz without pickles, and one restricted unpickler."""

from __future__ import annotations

import io
import lzma
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError

# What NumPy and zipfile raise on bytes that are not what they say: absurd sizes, encryption, headers of nonsense.
DAMAGED = (
    OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def open_npz(path: str | Path, required: list[str]) -> dict[str, np.ndarray] | Any:
    """Open an .npz for lazy reading by key.

    Raises:
        DataError: missing, damaged, or without some of the ``required`` keys (all missing ones are named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        archive = np.load(path, allow_pickle=False)
        names = set(archive.files)
    except (*DAMAGED, pickle.UnpicklingError) as problem:
        raise DataError(f"{path}: not a readable .npz archive ({problem}). Download or make it again.") from None
    if missing := [key for key in required if key not in names]:
        raise DataError(
            f"{path}: keys {', '.join(missing)} are missing; it holds {', '.join(sorted(names)) or 'none'}."
        )
    return archive


def npz_array(archive: Any, key: str, path: str | Path) -> np.ndarray:
    """Read one array of an open .npz; object arrays (pickles) are refused."""
    try:
        return archive[key]
    except DAMAGED as problem:
        raise DataError(f"{path}: array {key} cannot be read ({problem}). Pickled objects are never loaded.") from None


def npz_shape(path: str | Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one .npz array, without its values.

    Raises:
        DataError: missing, damaged, or not a C-ordered array of numbers.
    """
    with _npz_member(path, key) as (_, shape, dtype):
        return shape, dtype


def npz_rows(path: str | Path, key: str) -> Iterator[np.ndarray]:
    """Yield the rows of one .npz array in order without holding the array: constant memory."""
    with _npz_member(path, key) as (member, shape, dtype):
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for _ in range(shape[0]):
            data = member.read(size)
            if len(data) != size:
                raise DataError(f"{path}: array {key} is cut short. Download or make the file again.")
            yield np.frombuffer(data, dtype).reshape(shape[1:])


@contextmanager
def _npz_member(path: str | Path, key: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            shape, fortran, dtype = _read_npy_header(member)
            if fortran or dtype.hasobject or not shape:
                raise DataError(f"{path}: array {key} must be a C-ordered array of numbers, found {dtype}, {shape}.")
            yield member, shape, dtype
    except DAMAGED as problem:
        raise DataError(f"{path}: array {key} cannot be read ({problem}). Download or make the file again.") from None


def load_npy(path: str | Path, *, mmap: bool = False) -> np.ndarray:
    """Load one .npy of numbers, or map it.

    Raises:
        DataError: missing, damaged, or holding pickled objects.
    """
    if not Path(path).is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: no such file.")
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if mmap else None)
    except (*DAMAGED, pickle.UnpicklingError) as problem:
        raise DataError(f"{path}: not a readable .npy array ({problem}). Pickled objects are never loaded.") from None


def load_npy_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Load a dictionary of arrays that ``np.save`` pickled, admitting nothing but dictionaries, text and arrays.

    The whole dictionary is held in memory: a pickle cannot be read in parts.

    Raises:
        DataError: missing, damaged, or asking for any other code to be called.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with open(path, "rb") as handle:
            _, _, dtype = _read_npy_header(handle)
            if not dtype.hasobject:
                raise DataError(f"{path}: holds an array of {dtype}, expected a saved dictionary name -> picture.")
            value = _OnlyArrays(handle).load()
    except (*DAMAGED, pickle.UnpicklingError) as problem:
        raise DataError(f"{path}: not a dictionary of arrays ({problem}). Download it again.") from None
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items()
    ):
        raise DataError(f"{path}: expected a dictionary from picture name to array, found {type(value).__name__}.")
    return value


def _read_npy_header(handle: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(handle)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoding {encoding!r} is not admitted")
    return text.encode("latin1")


class _OnlyArrays(pickle.Unpickler):
    """An unpickler that can rebuild numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        multiarray = np._core.multiarray
        admitted: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"it asks to call {module}.{name}, which is not admitted")
        return admitted[module, name]


def npy_bytes(array: np.ndarray) -> tuple[bytes, int]:
    """An array as the bytes of a .npy file, and how many of them come before the data."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue(), stream.tell() - array.nbytes
