"""CIFTI-2 dense time series and NIfTI volumes: headers by nibabel, values by one positioned read per vertex run.

A .dtseries.nii is stored with time fastest: each grayordinate's series is contiguous. So a ROI is read vertex-first,
which is much faster than reading frames and cutting columns. Shapes: T frames, G grayordinates, V chosen.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.mmp import CORTEX, GRAYORDINATES, parcellation

# nibabel checks little before it computes with a header, so a damaged one surfaces as almost any of these.
_GARBAGE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, ArithmeticError, OSError, EOFError,
    MemoryError, NotImplementedError, RuntimeError, struct.error, zlib.error, ExpatError,
)  # fmt: skip


@dataclass(frozen=True)
class DenseHeader:
    """What is known of a dense time series before its values are read."""

    path: Path
    frames: int
    grayordinates: int
    tr_s: float
    offset: int  # bytes before the first value
    dtype: np.dtype
    slope: float
    inter: float
    axis: Any  # nibabel BrainModelAxis


def read_header(path: str | Path) -> DenseHeader:
    """Read the header of a .dtseries.nii and check the file's length against it.

    Raises:
        DataError: no such file, not CIFTI, not a dense time series (parcellated, scalar, label), or cut short.
    """
    import nibabel as nib

    path = Path(path)
    image = _load(path)
    if not isinstance(image, nib.Cifti2Image):
        raise DataError(f"{path}: a {type(image).__name__}, expected a CIFTI-2 dense time series (.dtseries.nii).")
    try:
        axes = [image.header.get_axis(i) for i in range(image.ndim)]
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        offset, dtype = int(image.dataobj.offset), np.dtype(image.get_data_dtype())
        dtype = dtype.newbyteorder(image.nifti_header.endianness)
    except _GARBAGE as problem:
        raise DataError(f"{path}: its CIFTI header is damaged ({problem}). Download the file again.") from None
    kinds = [type(axis).__name__ for axis in axes]
    if kinds != ["SeriesAxis", "BrainModelAxis"]:
        raise DataError(
            f"{path}: its axes are {' x '.join(kinds)}, expected SeriesAxis x BrainModelAxis. Parcellated, scalar and "
            "label files hold no grayordinate time series; use the run's .dtseries.nii."
        )
    frames, grayordinates = image.shape
    header = DenseHeader(path, frames, grayordinates, float(axes[0].step), offset, dtype, slope, inter, axes[1])
    _check_length(header)
    return header


def locate(header: DenseHeader, columns_V: np.ndarray) -> np.ndarray:
    """Where standard grayordinates lie in this file, by its own brain-model axis: int64 (V,).

    Args:
        columns_V: numbers in the 91,282-grayordinate HCP space (``mmp.roi_columns``).

    Raises:
        DataError: another surface mesh, missing vertices, or subcortex asked of a file of another voxel grid.
    """
    axis, path, table = header.axis, header.path, parcellation()
    if len(columns_V) and columns_V.max() >= CORTEX:
        _require_standard_volume(header)
    left_right = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
    position_C = np.full(CORTEX, -1, dtype=np.int64)
    for side, name in enumerate(left_right):
        mesh = int(axis.nvertices.get(name, 0))
        if mesh != 32_492:
            raise DataError(f"{path}: {name} has {mesh:,} mesh vertices, expected 32,492 (32k fs_LR). Resample it.")
        here = np.flatnonzero(np.asarray(axis.name) == name)
        column_of_vertex = np.full(mesh, -1, dtype=np.int64)
        column_of_vertex[np.asarray(axis.vertex)[here]] = here
        part = slice(0, table.left) if side == 0 else slice(table.left, CORTEX)
        position_C[part] = column_of_vertex[table.vertex_C[part]]
    places_G = np.concatenate([position_C, np.arange(CORTEX, GRAYORDINATES)])
    places_V = places_G[columns_V]
    if (missing := int((places_V < 0).sum())) > 0:
        raise DataError(
            f"{path}: {missing:,} of the {len(columns_V):,} grayordinates asked for are not in this file "
            f"({header.grayordinates:,} grayordinates). Choose another ROI, or a file with the whole cortex."
        )
    return places_V


def _require_standard_volume(header: DenseHeader) -> None:
    """Subcortical grayordinates are only comparable on HCP's own 2 mm grid of 91,282."""
    sizes = [len(np.arange(header.grayordinates)[part]) for _, part, _ in header.axis.iter_structures()]
    structure_G = parcellation().structure_G
    edges = np.flatnonzero(np.diff(structure_G)) + 1
    expected = np.diff(np.concatenate([[0], edges, [GRAYORDINATES]])).tolist()
    if sizes != expected:
        raise DataError(
            f"{header.path}: {header.grayordinates:,} grayordinates in {len(sizes)} structures, expected HCP's "
            f"{GRAYORDINATES:,} in {len(expected)}. Its subcortex lies on another grid: use roi 'cortex' or areas."
        )


def read_columns(header: DenseHeader, places_V: np.ndarray) -> np.ndarray:
    """Read chosen grayordinates, one positioned read per contiguous run: float32 (T, V), in the order of ``places_V``.

    Values that are not finite are kept; ``voxels.zscore_run`` turns such grayordinates into zeros and reports them.
    """
    ascending = np.argsort(places_V, kind="stable")
    sorted_V = places_V[ascending]
    starts = np.flatnonzero(np.diff(sorted_V, prepend=-2) != 1)
    series_VT = np.empty((len(places_V), header.frames), dtype=header.dtype)
    width = header.frames * header.dtype.itemsize
    with open(header.path, "rb") as handle:
        for start, stop in zip(starts, [*starts[1:], len(sorted_V)]):
            target = memoryview(series_VT[start:stop]).cast("B")
            found = _read_fully(handle.fileno(), target, header.offset + int(sorted_V[start]) * width)
            if found != len(target):
                raise DataError(f"{header.path}: became shorter while it was read. Is it still being copied?")
    frames_TV = np.empty((header.frames, len(places_V)), dtype=np.float32)
    frames_TV[:, ascending] = series_VT.T
    if (header.slope, header.inter) != (1.0, 0.0):
        frames_TV = frames_TV * np.float32(header.slope) + np.float32(header.inter)
    return frames_TV


def _read_fully(descriptor: int, target: memoryview, offset: int) -> int:
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_nifti(path: str | Path, mask: str | Path | None) -> tuple[np.ndarray, float]:
    """Read a NIfTI volume or series inside a mask: float32 (T, V) with T = 1 for a single volume, and TR in seconds.

    Without a mask every voxel of the grid is taken. Voxels come in the mask's C order. Memory: one run.

    Raises:
        DataError: a missing or damaged file, or a mask of another grid.
    """
    values = _values(Path(path))
    data, zooms = values
    if data.ndim not in (3, 4):
        raise DataError(f"{path}: shape {data.shape}, expected a volume (x, y, z) or a series (x, y, z, time).")
    series = data if data.ndim == 4 else data[..., None]
    chosen = np.ones(series.shape[:3], dtype=bool)
    if mask is not None:
        grid, _ = _values(Path(mask))
        grid = grid[..., 0] if grid.ndim == 4 and grid.shape[-1] == 1 else grid
        if grid.shape != series.shape[:3]:
            raise DataError(f"{mask}: mask grid {grid.shape} differs from {series.shape[:3]} of {path}. Resample it.")
        chosen = np.nan_to_num(grid) > 0
        if not chosen.any():
            raise DataError(f"{mask}: the mask is empty. A mask has values above 0 inside.")
    return np.ascontiguousarray(series[chosen].T, dtype=np.float32), float(zooms[3]) if len(zooms) > 3 else 0.0


def _values(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = _load(path)
    try:
        return np.asarray(image.dataobj, dtype=np.float32), tuple(float(zoom) for zoom in image.header.get_zooms())
    except _GARBAGE as problem:
        raise DataError(f"{path}: its values cannot be read ({problem}). Download the file again.") from None


def _load(path: Path) -> Any:
    import nibabel as nib

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return nib.load(path)
    except (*_GARBAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as problem:
        raise DataError(f"{path}: not a readable NIfTI or CIFTI file ({problem}). Download the file again.") from None


def _check_length(header: DenseHeader) -> None:
    expected = header.offset + header.frames * header.grayordinates * header.dtype.itemsize
    found = header.path.stat().st_size
    if header.path.suffix == ".gz":
        raise DataError(f"{header.path}: compressed, so a ROI cannot be read from it directly. Run gunzip on it first.")
    if found < expected:
        raise DataError(f"{header.path}: cut short: {found:,} bytes found, {expected:,} expected. Download it again.")
