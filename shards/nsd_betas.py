"""Single-trial betas of the Natural Scenes Dataset, one session at a time: session volumes, or tables of all trials.

The release stores per cent of signal change times 300 as int16, in two forms of the same numbers (NSD Data Manual,
"Functional data (NSD)"): HDF5, dataset ``betas``, here (trials, z, y, x); and NIfTI (x, y, z, trials). Voxels outside
the brain mask, and those without complete data in a session, are 0. Shapes: N = 750 trials, V chosen voxels.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.arrays import load_npy
from cadiff.shards.nsd_files import DAMAGED, SUBJECTS, TRIALS, hdf5_dataset
from cadiff.shards.nsd_rois import Voxels

SCALE = np.float32(300)
FOLDER = "nsddata_betas/ppdata/{subject}/func1pt8mm/betas_"
DATASETS = ("betas", "voxels")  # of a table: MindEye2's files have the first, MindEye's the second


def find_betas(root: Path, betas: str) -> dict[str, dict[int, Path] | Path]:
    """The betas of each subject that has some: session -> file, or one table.

    Args:
        betas: a version of the release, such as "fithrf_GLMdenoise_RR", or the name of a table below ``root`` with
            ``{subject}`` in it, such as "betas_all_{subject}_fp32_renorm.hdf5".

    Raises:
        ConfigError: there are none.
    """
    if "{subject}" in betas:
        tables = {name: root / betas.replace("{subject}", name) for name in SUBJECTS}
        if found := {name: path for name, path in tables.items() if path.is_file()}:
            return found
        raise ConfigError(f"{root}: no file {betas} for {SUBJECTS[0]} to {SUBJECTS[-1]}. Correct --betas.")
    sessions = {name: _sessions(root / (FOLDER.format(subject=name) + betas)) for name in SUBJECTS}
    if any(sessions.values()):
        return {name: files for name, files in sessions.items() if files}
    known = {path.name.removeprefix("betas_") for path in root.glob(FOLDER.format(subject="*") + "*")}
    raise ConfigError(
        f"{root}: no {FOLDER.format(subject='subj0N')}{betas}/betas_sessionSS.hdf5 (or .nii.gz). There are "
        f"{', '.join(sorted(known)) or 'no betas'}; correct --betas or the folder."
    )


def _sessions(folder: Path) -> dict[int, Path]:
    """Session number -> its file; HDF5 comes before NIfTI, because parts of it can be read."""
    found: dict[int, Path] = {}
    for ending in ("hdf5", "nii.gz", "nii"):
        for path in sorted(folder.glob(f"betas_session*.{ending}")):
            if match := re.fullmatch(rf"betas_session(\d\d)\.{re.escape(ending)}", path.name):
                found.setdefault(int(match[1]), path)
    return dict(sorted(found.items()))


class VolumeBetas:
    """Sessions of one subject as the release has them, restricted to chosen voxels."""

    def __init__(self, files: dict[int, Path], voxels: Voxels) -> None:
        self.files, self.voxels = files, voxels
        self.width = len(voxels.ids)

    def read(self, session: int) -> np.ndarray:
        """Betas in per cent of signal change: float32 (N, V). Memory: these, and one slice of the volume.

        Raises:
            DataError: a damaged file, or another number of trials or grid than expected.
        """
        path = self.files[session]
        read = _read_hdf5 if path.suffix == ".hdf5" else _read_nifti
        return read(path, self.voxels)


class TableBetas:
    """All trials of one subject in one table (trials, columns), sessions in order.

    Args:
        keep: which columns to keep, bool, one entry per column; None keeps all.
    """

    def __init__(self, path: Path, keep: np.ndarray | None = None) -> None:
        rows, columns = self._shape(path)
        if not rows or rows % TRIALS:
            raise DataError(f"{path}: {rows:,} rows, expected whole sessions of {TRIALS} trials.")
        if keep is not None and len(keep) != columns:
            raise DataError(f"{path}: {columns:,} voxels, but its mask has {len(keep):,}. Use the table's own mask.")
        self.files = dict.fromkeys(range(1, rows // TRIALS + 1), path)
        self.width = columns if keep is None else int(keep.sum())
        self._keep = keep

    def read(self, session: int) -> np.ndarray:
        """As ``VolumeBetas.read``; values that are not int16 are taken as they are."""
        path, part = self.files[session], slice((session - 1) * TRIALS, session * TRIALS)
        if path.suffix == ".npy":
            rows_NV = np.array(load_npy(path, mmap=True)[part])
        else:
            with hdf5_dataset(path, DATASETS) as data:
                rows_NV = data[part]
        return _per_cent(rows_NV if self._keep is None else rows_NV[:, self._keep])

    @staticmethod
    def _shape(path: Path) -> tuple[int, int]:
        if path.suffix == ".npy":
            table = load_npy(path, mmap=True)
            shape, kind = table.shape, table.dtype.kind
        else:
            with hdf5_dataset(path, DATASETS) as data:
                shape, kind = data.shape, data.dtype.kind
        if len(shape) != 2 or kind not in "iuf":
            raise DataError(f"{path}: {shape} of kind {kind!r}, expected a table of numbers (trials, voxels).")
        return shape


def _per_cent(values: np.ndarray) -> np.ndarray:
    scaled = np.asarray(values, dtype=np.float32)
    return scaled / SCALE if values.dtype.kind in "iu" else scaled


def _read_hdf5(path: Path, voxels: Voxels) -> np.ndarray:
    """Slabs of z, each cut to the box its voxels need; a chunk of the file is touched once."""
    i_V, j_V, k_V = voxels.ijk.T
    rows_NV = np.empty((TRIALS, len(i_V)), dtype=np.float32)
    with hdf5_dataset(path, ["betas"]) as data:
        _check_shape(path, (*data.shape[:0:-1], data.shape[0]) if data.shape else (), data.dtype, voxels)
        trials, thick = data.chunks[:2] if data.chunks else (TRIALS, 1)
        for slab in np.unique(k_V // thick).tolist():
            at = np.flatnonzero(k_V // thick == slab)
            i, j, k = i_V[at], j_V[at], k_V[at]
            box = (slice(slab * thick, (slab + 1) * thick), slice(j.min(), j.max() + 1), slice(i.min(), i.max() + 1))
            for start in range(0, TRIALS, trials):
                block = data[(slice(start, start + trials), *box)]
                rows_NV[start : start + trials, at] = block[:, k - slab * thick, j - j.min(), i - i.min()]
        whole = data.dtype.kind in "iu"
    return rows_NV / SCALE if whole else rows_NV


def _read_nifti(path: Path, voxels: Voxels) -> np.ndarray:
    """One pass through the file, a volume at a time: compressed files cannot be read in parts."""
    import nibabel as nib

    try:
        image = nib.load(path)
        shape, dtype = image.shape, image.dataobj.dtype
        offset, slope, inter = int(image.dataobj.offset), float(image.dataobj.slope), float(image.dataobj.inter)
        _check_shape(path, shape, dtype, voxels)
        i_V, j_V, k_V = voxels.ijk.T
        place_V = i_V + shape[0] * (j_V + shape[1] * k_V)  # NIfTI stores x fastest
        size = int(np.prod(shape[:3])) * dtype.itemsize
        rows_NV = np.empty((TRIALS, len(place_V)), dtype=np.float32)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            handle.seek(offset)
            for row_V in rows_NV:
                data = handle.read(size)
                if len(data) != size:
                    raise DataError(f"{path}: cut short. Download the file again.")
                row_V[:] = np.frombuffer(data, dtype)[place_V]
    except (*DAMAGED, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as problem:
        raise DataError(f"{path}: not readable as NIfTI ({problem}). Download the file again.") from None
    if (slope, inter) != (1.0, 0.0):
        return rows_NV * np.float32(slope) + np.float32(inter)
    return rows_NV / SCALE if dtype.kind in "iu" else rows_NV


def _check_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype, voxels: Voxels) -> None:
    """``shape`` in the order (x, y, z, trials)."""
    if tuple(shape) != (*voxels.grid, TRIALS) or dtype.kind not in "iuf":
        raise DataError(
            f"{path}: betas {dtype} {tuple(shape)}, expected {(*voxels.grid, TRIALS)} (x, y, z, trials): the grid of "
            f"the ROI volumes and the {TRIALS} trials of a session. Are both in the 1.8 mm functional space?"
        )
