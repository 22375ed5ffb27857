"""Real public files and stored outputs of the paper's code, for tests that run where they lie beside the checkout."""

import json
import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(os.environ.get("CADIFF_GOLDEN") or SHARED / "golden")


def read_golden(path: Path, framework: str) -> tuple[dict, dict]:
    """A file's configuration, and its tensors as arrays of NumPy ("np") or of PyTorch ("pt")."""
    from safetensors import safe_open

    with safe_open(path, framework) as file:
        return json.loads(file.metadata()["meta"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def golden_case(name: str, framework: str) -> tuple[dict, dict]:
    """The same for one case by its name; the test is skipped where the file is not."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path}: stored outputs of the paper's code are no part of the checkout; set CADIFF_GOLDEN")
    return read_golden(path, framework)
