"""CIFTI-2 dense time series, read by one positioned read per vertex run, and NIfTI volumes, read by nibabel.

A .dtseries.nii is stored with time fastest: each grayordinate's series is contiguous. So a ROI is read vertex-first,
which is much faster than reading frames and cutting columns. Shapes: T frames, G grayordinates, V chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.arrays import DAMAGED
from cadiff.shards.cifti_header import LEFT_RIGHT, MESH, DenseHeader, parse_header
from cadiff.shards.mmp import CORTEX, GRAYORDINATES, parcellation

# nibabel checks little before it computes with a header, so a damaged one surfaces as almost any of these.
_GARBAGE = (*DAMAGED, AssertionError, ExpatError)
_BLOCK_BYTES = 2**19  # series read at a time: they and their float64 copy stay in a core's cache
_FINE_MESH = 59_292  # vertices per hemisphere of the 59k mesh, that of HCP's 1.6 mm files


def read_header(path: str | Path) -> DenseHeader:
    """Read the header of a .dtseries.nii and check the file's length against it.

    Raises:
        DataError: no such file, not CIFTI, not a dense time series (parcellated, scalar, label), or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix == ".gz":
        raise DataError(f"{path}: compressed, so a ROI cannot be read from it directly. Run gunzip on it first.")
    header = parse_header(path)
    expected = header.offset + header.frames * header.grayordinates * header.dtype.itemsize
    if (found := path.stat().st_size) < expected:
        raise DataError(f"{path}: cut short: {found:,} bytes found, {expected:,} expected. Download it again.")
    return header


def locate(header: DenseHeader, columns_V: np.ndarray) -> np.ndarray:
    """Where standard grayordinates lie in this file, by its own brain-model axis: int64 (V,).

    Args:
        columns_V: numbers in the 91,282-grayordinate HCP space (``mmp.roi_columns``).

    Raises:
        DataError: another surface mesh, missing vertices, or subcortex asked of a file of another voxel grid.
    """
    path, layout = header.path, header.layout
    if layout.place_C is None:
        side = 0 if layout.meshes[0] != MESH else 1
        mesh, remedy = layout.meshes[side], "Resample it."
        if mesh == _FINE_MESH:
            remedy = "That is the 59k mesh of HCP's 1.6 mm files; use the run's 2 mm file, without 1.6mm in its name."
        raise DataError(
            f"{path}: {LEFT_RIGHT[side]} has {mesh:,} mesh vertices, expected {MESH:,} (32k fs_LR). {remedy}"
        )
    if len(columns_V) and columns_V.max() >= CORTEX:
        _require_standard_volume(header)
    places_V = np.concatenate([layout.place_C, np.arange(CORTEX, GRAYORDINATES)])[columns_V]
    if (missing := int((places_V < 0).sum())) > 0:
        raise DataError(
            f"{path}: {missing:,} of the {len(columns_V):,} grayordinates asked for are not in this file "
            f"({header.grayordinates:,} grayordinates). Choose another ROI, or a file with the whole cortex."
        )
    return places_V


def _require_standard_volume(header: DenseHeader) -> None:
    """Subcortical grayordinates are only comparable on HCP's own 2 mm grid of 91,282."""
    edges = np.flatnonzero(np.diff(parcellation().structure_G)) + 1
    expected = np.diff(np.concatenate([[0], edges, [GRAYORDINATES]])).tolist()
    if list(header.layout.sizes) != expected:
        raise DataError(
            f"{header.path}: {header.grayordinates:,} grayordinates in {len(header.layout.sizes)} structures, expected "
            f"HCP's {GRAYORDINATES:,} in {len(expected)}. Its subcortex is on another grid: use roi 'cortex' or areas."
        )


def read_blocks(header: DenseHeader, places_V: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read chosen grayordinates in the file's order, about 0.5 MB at a time, one positioned read per contiguous run.

    Yields:
        Positions within ``places_V``, int64 (n,), and their series as stored, unscaled: (n, T) of ``header.dtype``.

    Raises:
        DataError: the file became shorter.
    """
    ascending = np.argsort(places_V, kind="stable")
    sorted_V, width = places_V[ascending], header.frames * header.dtype.itemsize
    most = max(1, _BLOCK_BYTES // max(1, width))
    with open(header.path, "rb", buffering=0) as handle:
        for first in range(0, len(sorted_V), most):
            here_n = sorted_V[first : first + most]
            block_nT = np.empty((len(here_n), header.frames), dtype=header.dtype)
            bytes_nB = block_nT.view(np.uint8)
            starts = np.flatnonzero(np.diff(here_n, prepend=-2) != 1)
            for start, stop in zip(starts, [*starts[1:], len(here_n)]):
                target = memoryview(bytes_nB[start:stop]).cast("B")
                found = _read_fully(handle.fileno(), target, header.offset + int(here_n[start]) * width)
                if found != len(target):
                    raise DataError(f"{header.path}: became shorter while it was read. Is it still being copied?")
            yield ascending[first : first + most], block_nT


def read_columns(header: DenseHeader, places_V: np.ndarray) -> np.ndarray:
    """Read chosen grayordinates: float32 (T, V), in the order of ``places_V``, scaled as the header says.

    Values that are not finite are kept; ``voxels.zscore_run`` turns such grayordinates into zeros and reports them.
    """
    frames_TV = np.empty((header.frames, len(places_V)), dtype=np.float32)
    for positions, block_nT in read_blocks(header, places_V):
        frames_TV[:, positions] = block_nT.T
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
