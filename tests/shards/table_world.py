"""Files of a small study in a table, which the tests of its packer share."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def build(folder: Path) -> Callable[..., Path]:
    """Write the files, and return a function that writes the CSV of its rows."""
    rng = np.random.default_rng(0)
    np.save(folder / "run1.npy", rng.normal(5, 2, (12, 6)).astype(np.float32))
    np.savez(folder / "run2.npz", bold=rng.normal(size=(8, 6)), other=np.zeros(3))
    (folder / "events.tsv").write_text(
        "onset\tduration\ttrial_type\tstim_file\n0\t4\tface\tpics/f.png\n8\t4\thouse\tn/a\n16\t4\trest\tn/a\n"
    )
    (folder / "attributes.txt").write_text("\n".join(["rest 0"] * 2 + ["face 0"] * 4 + ["house 1"] * 6))
    (folder / "pics").mkdir()
    Image.new("RGB", (20, 10), (200, 0, 0)).save(folder / "pics" / "f.png")

    def write(*rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(folder / "study.csv", "w", newline="") as handle:
            writer = csv.DictWriter(handle, names)
            writer.writeheader()
            writer.writerows(rows)
        return folder / "study.csv"

    return write
