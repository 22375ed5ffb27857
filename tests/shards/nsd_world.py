"""A tiny NSD on disk, and what its files say, read plainly."""

import csv

import h5py
import numpy as np

from cadiff.shards.nsd_files import TABLE

BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session{:02d}.hdf5"
ROI = "nsddata/ppdata/{}/func1pt8mm/roi/{}.nii.gz"


def percent(root, subject, session, voxels):
    """Betas of chosen (x, y, z), straight from the file: (750, V)."""
    with h5py.File(root / BETAS.format(subject, session)) as handle:
        x, y, z = voxels.T
        return handle["betas"][:][:, z, y, x] / 300


def shown(root, subject):
    """The picture of each trial by the CSV, which counts pictures from 0 and trials from 1."""
    with open(root / TABLE, newline="") as handle:
        rows = list(csv.DictReader(handle))
    trials = {}
    for row in rows:
        for column, trial in row.items():
            if column.startswith(f"subject{int(subject[4:])}_rep") and int(trial):
                trials[int(trial)] = int(row["nsdId"])
    return np.array([trials[trial] for trial in sorted(trials)])


def numbers(ds, samples):
    return np.array([int(ds.stimuli[i].removeprefix("nsd-")) for i in ds.table.stimulus[samples]])


def sessions_of(ds, subject, session):
    """Samples of one session, in order."""
    run = ds.runs.index(f"ses-{session:02d}")
    return np.flatnonzero((ds.table.subject == ds.subjects.index(subject)) & (ds.table.run == run))
