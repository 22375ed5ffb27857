"""What only a simulator knows: noiseless responses and noise levels, in a folder that no packer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cadiff.files import whole_file


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write an uncompressed npz whole. The same arrays give the same bytes."""
    with whole_file(path) as beside, open(beside, "wb") as handle:
        np.savez(handle, **arrays)
    return path


def save_truth(root: Path, dataset: str, subject: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write ``root/truth/<dataset>/<subject>/simulator_truth.npz``."""
    return save_arrays(root / "truth" / dataset / subject / "simulator_truth.npz", arrays)
