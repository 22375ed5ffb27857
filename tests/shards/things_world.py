"""A tiny THINGS-fMRI that the tests of its packer share, and ways to spoil it."""

import csv
from pathlib import Path

import numpy as np

from cadiff.shards.synthetic.things_files import ThingsPlan, write_csv, write_pictures, write_things

PLAN = ThingsPlan(seed=1, subjects=2, concepts=6, images=3, tested=3, sessions=3, runs=2, voxels=90)
TRIALS = 6 * 3 + 3 * 3


def build(root: Path) -> dict[str, np.ndarray]:
    """Two subjects of 90 voxels: 18 training stimuli, 3 test stimuli shown 3 times, in 3 sessions of 2 runs.

    Returns subject -> responses (voxels, trials).
    """
    responses = write_things(root / "betas_csv", PLAN)
    write_pictures(root / "object_images", PLAN, 16)
    return responses


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table as dictionaries of text."""
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def rewrite(path: Path, change) -> None:
    """Change the rows of a table: in place, or into those that ``change`` returns."""
    rows = read(path)
    columns = list(rows[0])
    rows = change(rows) or rows
    write_csv(path, columns, [[row[name] for name in columns] for row in rows])
