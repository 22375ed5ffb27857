"""THINGS-fMRI's table format as released: responses in the layout pandas writes, and tables of trials and voxels.

The HDF5 files follow ``DataFrame.to_hdf`` (pandas 3.1 with PyTables 3.11), attributes included, so that pandas reads
them; no pandas is needed to write them. Shapes: N trials, S stimuli, A voxels.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cadiff.files import whole_file, write_text
from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.noise import draw_ncsnr, noise_ceiling
from cadiff.shards.things_voxels import VISUAL

GLASSER = ("glasser-V1", "glasser-V2", "glasser-FFC", "glasser-p24")  # of the release's 180
VOXEL_COLUMNS = (
    *("voxel_id", "subject_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial", "nc_testset"),
    *("splithalf_uncorrected", "splithalf_corrected", "prf-eccentricity", "prf-polarangle", "prf-rsquared", "prf-size"),
    *(*VISUAL, *GLASSER),
)
TRIAL_COLUMNS = ("trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept")
OUTSIDE = 4  # one voxel in so many lies in no region
SNR = 0.3  # median ratio of a trial's signal and noise


@dataclass(frozen=True)
class ThingsPlan:
    """What to write: each concept has ``images`` training stimuli, shown once; the first ``tested`` concepts have one
    test stimulus each, shown once in each of the ``sessions``. A session has ``runs`` runs."""

    seed: int
    subjects: int
    concepts: int
    images: int
    tested: int
    sessions: int
    runs: int
    voxels: int

    def stimuli(self) -> list[tuple[str, str]]:
        """(concept, file name) of all training stimuli, then of the test stimuli."""
        once = [(concept, image) for concept in range(self.concepts) for image in range(1, self.images + 1)]
        tests = [(concept, self.images + 1) for concept in range(self.tested)]
        return [(f"thing{concept}", f"thing{concept}_{image:02d}s.jpg") for concept, image in once + tests]


def write_things(folder: Path, plan: ThingsPlan) -> dict[str, np.ndarray]:
    """Write every subject's three files. Returns subject -> responses, float64 (A, N): a signal of the stimulus plus
    unit noise."""
    responses = {}
    for number in range(1, plan.subjects + 1):
        subject = f"sub-{number:02d}"
        rng = generator(plan.seed, "things", subject)
        order_N = _order(plan, rng)
        ncsnr_A = draw_ncsnr(rng, plan.voxels, SNR)
        signal_AS = rng.standard_normal((plan.voxels, len(plan.stimuli()))) * ncsnr_A[:, None]
        responses[subject] = signal_AS[:, order_N] + rng.standard_normal((plan.voxels, len(order_N)))
        write_fixed(folder / f"{subject}_ResponseData.h5", responses[subject])
        write_csv(folder / f"{subject}_StimulusMetadata.csv", TRIAL_COLUMNS, _trials(plan, number, order_N))
        voxels = _voxels(plan, number, ncsnr_A, rng)
        write_csv(folder / f"{subject}_VoxelMetadata.csv", VOXEL_COLUMNS, voxels)
    return responses


def write_pictures(folder: Path, plan: ThingsPlan, side: int) -> None:
    """Write ``<concept>/<file>.jpg`` of every stimulus: one colour each."""
    rng = generator(plan.seed, "things", "pictures")
    for concept, name in plan.stimuli():
        with whole_file(folder / concept / name) as beside:
            Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist())).save(beside, "JPEG")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def _order(plan: ThingsPlan, rng: np.random.Generator) -> np.ndarray:
    """Which stimulus each trial shows: training stimuli divided among sessions, every test stimulus in each."""
    once = plan.concepts * plan.images
    parts = np.array_split(rng.permutation(once), plan.sessions)
    tests = np.arange(once, once + plan.tested)
    return np.concatenate([rng.permutation(np.concatenate([part, tests])) for part in parts])


def _trials(plan: ThingsPlan, subject: int, order_N: np.ndarray) -> list[tuple]:
    stimuli, once, rows = plan.stimuli(), plan.concepts * plan.images, []
    for session, part in enumerate(np.array_split(order_N, plan.sessions), 1):
        for run, shown in enumerate(np.array_split(part, plan.runs), 1):
            for stimulus in shown.tolist():
                concept, name = stimuli[stimulus]
                kind = "train" if stimulus < once else "test"
                rows.append((kind, session, run, subject, len(rows), name, concept))
    return rows


def _voxels(plan: ThingsPlan, subject: int, ncsnr_A: np.ndarray, rng: np.random.Generator) -> list[list]:
    rows = []
    areas = (*VISUAL, *GLASSER)
    for voxel, ncsnr in enumerate(ncsnr_A):
        ceilings = [round(float(noise_ceiling(ncsnr, trials)), 6) for trials in (1, plan.sessions)]
        inside = voxel % OUTSIDE > 0
        region = int(rng.integers(len(areas))) if inside else -1
        numbers = rng.random(6).round(6).tolist()
        place = [voxel // 100, voxel // 10 % 10, voxel % 10]
        rows.append([voxel, subject, *place, *ceilings, *numbers, *(int(n == region) for n in range(len(areas)))])
    return rows


def write_fixed(path: Path, values_AN: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Write responses in pandas' fixed format: a column voxel_id, then columns named by ``names``, or 0, 1, 2, …

    Columns named by text and numbers both, as in the release, are stored as pickled objects.
    """
    ids_A, numbers = np.arange(len(values_AN), dtype=np.int64), list(range(values_AN.shape[1]))
    with _group(path, "frame") as group:
        group.attrs.update({"nblocks": 2, "ndim": 2})
        for key in ("axis0", "axis1", "block0_items", "block1_items"):
            _tell(group, **{f"{key}_variety": "regular"})
        if names is None:
            _pickled(group, "axis0", ["voxel_id", *numbers])
            _pickled(group, "block0_items", numbers)
        else:
            _array(group, "axis0", np.array(["voxel_id", *names], dtype="S"), kind="string", name="N.")
            _array(group, "block0_items", np.array(names, dtype="S"), kind="string", name="N.")
        _array(group, "axis1", ids_A, kind="integer", name="N.")
        _array(group, "block1_items", np.array(["voxel_id"], dtype="S"), kind="string", name="N.")
        _array(group, "block0_values", values_AN)
        _array(group, "block1_values", ids_A[:, None])


def write_table(path: Path, values_AN: np.ndarray) -> None:
    """Write responses as the compound dataset of pandas' table format, without the pickles that describe it."""
    fields = [
        ("index", "<i8"),
        ("values_block_0", values_AN.dtype, values_AN.shape[1:]),
        ("values_block_1", "<i8", (1,)),
    ]
    table = np.empty(len(values_AN), dtype=fields)
    table["index"], table["values_block_0"] = np.arange(len(table)), values_AN
    table["values_block_1"] = np.arange(len(table))[:, None]
    with _group(path, "frame_table") as group:
        stored = group.create_dataset("table", data=table, chunks=(min(len(table), 64),), maxshape=(None,))
        _tell(stored, CLASS="TABLE", VERSION="2.7", TITLE="")


@contextmanager
def _group(path: Path, kind: str) -> Iterator[Any]:
    """The group "ResponseData" of a new file, with the attributes PyTables and pandas look for."""
    import h5py

    with whole_file(path) as beside, h5py.File(beside, "w") as file:
        group = file.create_group("ResponseData")
        _tell(file, CLASS="GROUP", VERSION="1.0", TITLE="", PYTABLES_FORMAT_VERSION="2.1")
        _tell(group, CLASS="GROUP", VERSION="1.0", TITLE="", pandas_type=kind, encoding="UTF-8", errors="strict")
        yield group


def _tell(node: Any, **told: str) -> None:
    """Write attributes as PyTables reads them: text of a fixed length, or empty."""
    import h5py

    for name, text in told.items():
        if text:
            node.attrs.create(name, text.encode(), dtype=h5py.string_dtype("utf-8", len(text)))
        else:
            node.attrs[name] = h5py.Empty("S1")


def _array(group: Any, key: str, values: np.ndarray, **told: str) -> None:
    stored = group.create_dataset(key, data=values)
    stored.attrs["transposed"] = np.uint8(1)
    _tell(stored, CLASS="ARRAY", VERSION="2.4", FLAVOR="numpy", TITLE="", **told)


def _pickled(group: Any, key: str, names: list) -> None:
    import h5py

    stored = group.create_dataset(key, (1,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(64,))
    stored[0] = np.frombuffer(pickle.dumps(np.array(names, dtype=object), protocol=4), dtype=np.uint8)
    stored.attrs["transposed"] = np.uint8(1)
    _tell(stored, CLASS="VLARRAY", VERSION="1.4", TITLE="", PSEUDOATOM="object", kind="object", name="N.")
