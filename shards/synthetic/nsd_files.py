"""The Natural Scenes Dataset in its released layout, tiny: design, session betas, ROI volumes and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cadiff.files import whole_file, write_text
from cadiff.shards.nsd_files import DESIGN, STIMULI, SUBJECTS, TABLE, TRIALS
from cadiff.shards.synthetic.keys import generator

ROIS = {  # label -> the plane of x where it begins
    "nsdgeneral": {1: 1},
    "prf-visualrois": {1: 1, 2: 2, 3: 3},
    "floc-faces": {1: 4, 2: 5},
}
CELLS = 3  # colours a side: a picture is that many times as many flat squares, and voxels respond to their colours


@dataclass(frozen=True)
class NsdPlan:
    """What to write. ``shared`` pictures are seen by all eight subjects of the design, ``own`` by one each.

    ``form`` is that of the session betas; ``noise`` the deviation of a trial's noise, where the signal has 1.
    """

    seed: int = 0
    subjects: int = 2
    sessions: int = 3
    shared: int = 8
    own: int = 40
    grid: tuple[int, int, int] = (7, 6, 5)
    side: int = 24
    noise: float = 1.0
    form: Literal["hdf5", "nii.gz"] = "hdf5"


def write_nsd(root: Path, plan: NsdPlan) -> list[Path]:
    """Write ``root/nsddata``, ``root/nsddata_betas`` and ``root/nsddata_stimuli``; returns the paths.

    Sessions have the 750 trials of the release, so that each picture is shown more often than there. The last voxel of
    nsdgeneral lacks data, and is zero, in the second session of every subject.
    """
    rng = generator(plan.seed, "nsd/design")
    total = plan.shared + len(SUBJECTS) * plan.own
    numbers = rng.permutation(total) + 1
    shared = np.sort(numbers[: plan.shared])
    own = numbers[plan.shared :].reshape(len(SUBJECTS), -1)
    images = np.concatenate([np.tile(shared, (len(SUBJECTS), 1)), np.sort(own, axis=1)], axis=1)
    order = rng.permutation(np.resize(np.arange(images.shape[1]), plan.sessions * TRIALS)) + 1
    paths = _write_design(root, images, order, shared, total)
    colours = generator(plan.seed, "nsd/colours").integers(0, 256, (total, CELLS, CELLS, 3)).astype(np.uint8)
    paths.append(_write_pictures(root / STIMULI, colours, plan.side))
    for row, subject in enumerate(SUBJECTS[: plan.subjects]):
        paths += _write_rois(root / "nsddata/ppdata" / subject / "func1pt8mm/roi", plan.grid)
        paths += _write_betas(root, subject, plan, colours[images[row, order - 1] - 1])
    return paths


def _write_design(root: Path, images: np.ndarray, order: np.ndarray, shared: np.ndarray, total: int) -> list[Path]:
    from scipy.io import savemat

    paths = [root / DESIGN, root / TABLE]
    with whole_file(paths[0]) as beside, open(beside, "wb") as handle:
        savemat(
            handle,
            {"subjectim": images.astype(float), "masterordering": order[None].astype(float), "sharedix": shared[None]},
        )
    trials = [[np.flatnonzero(row[order - 1] == number + 1) + 1 for row in images] for number in range(total)]
    most = max(len(found) for of_picture in trials for found in of_picture)
    head = ["", "nsdId", "shared1000"]
    head += [f"subject{subject + 1}_rep{rep}" for subject in range(len(images)) for rep in range(most)]
    lines = [",".join(head)]
    for number, of_picture in enumerate(trials):
        repeats = [str(int(found[rep])) if rep < len(found) else "0" for found in of_picture for rep in range(most)]
        lines.append(",".join([str(number), str(number), str(number + 1 in shared), *repeats]))
    write_text(paths[1], "\n".join(lines) + "\n")
    return paths


def _write_pictures(path: Path, colours: np.ndarray, side: int) -> Path:
    import h5py

    cell = -(-side // CELLS)
    with whole_file(path) as beside, h5py.File(beside, "w") as handle:
        bricks = handle.create_dataset("imgBrick", (len(colours), side, side, 3), "u1")
        for number, squares in enumerate(colours):
            bricks[number] = squares.repeat(cell, axis=0).repeat(cell, axis=1)[:side, :side]
    return path


def _write_rois(folder: Path, grid: tuple[int, int, int]) -> list[Path]:
    """Labels fill planes of x inside the volume's edge; the edge is -1, cortex without a label 0."""
    paths = []
    for name, labels in ROIS.items():
        volume = np.full(grid, -1, dtype=np.int16)
        inside = volume[1:-1, 1:-1, 1:-1]
        inside[:] = 0
        for label, first in labels.items():
            inside[first - 1 :] = label
        paths.append(_save_nifti(folder / f"{name}.nii.gz", volume))
    return paths


def _write_betas(root: Path, subject: str, plan: NsdPlan, colours: np.ndarray) -> list[Path]:
    """Each voxel weighs the colours of the picture; sessions differ in baseline and gain, as scanner days do."""
    rng = generator(plan.seed, "nsd/betas", subject)
    features = (colours.reshape(len(colours), -1) - 127.5).astype(np.float32) / 74
    weights = rng.standard_normal((features.shape[1], *plan.grid), dtype=np.float32) / np.sqrt(features.shape[1])
    folder = root / "nsddata_betas/ppdata" / subject / "func1pt8mm/betas_fithrf_GLMdenoise_RR"
    paths = []
    for session in range(1, plan.sessions + 1):
        part = features[(session - 1) * TRIALS : session * TRIALS]
        percent = np.tensordot(part, weights, axes=1)
        percent += plan.noise * rng.standard_normal(percent.shape, dtype=np.float32)
        percent = rng.normal(0.5, 0.5, plan.grid) + rng.uniform(0.5, 1.5) * percent
        stored = np.rint(percent * 300).astype(np.int16)  # trials, x, y, z
        if session == 2:
            stored[:, -2, -2, -2] = 0
        path = folder / f"betas_session{session:02d}.{plan.form}"
        paths.append(_save_hdf5(path, stored) if plan.form == "hdf5" else _save_nifti(path, np.moveaxis(stored, 0, 3)))
    return paths


def _save_hdf5(path: Path, stored: np.ndarray) -> Path:
    """Axes reversed, as MATLAB's (x, y, z, trials) looks elsewhere; a chunk is a voxel's trials, as in the release."""
    import h5py

    with whole_file(path) as beside, h5py.File(beside, "w") as handle:
        handle.create_dataset("betas", data=stored.transpose(0, 3, 2, 1), chunks=(len(stored), 1, 1, 1))
    return path


def _save_nifti(path: Path, volume: np.ndarray) -> Path:
    """Compressed without a time stamp: the same values give the same bytes."""
    import gzip

    import nibabel as nib

    image = nib.Nifti1Image(volume, np.diag([1.8, 1.8, 1.8, 1]))
    with whole_file(path) as beside:
        beside.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return path
