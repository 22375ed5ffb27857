"""Real public files and stored outputs of the paper's code, for tests that run where they lie beside the checkout."""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = Path(os.environ.get("CADIFF_GOLDEN_DIR") or SHARED / "golden")


def golden_kind(path: Path) -> str | None:
    """What a file says that it stores; None where it says nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "null"))
    except (SafetensorError, OSError, json.JSONDecodeError):
        return None
    return meta.get("kind") if isinstance(meta, dict) else None


def golden_files(*kinds: str) -> list[Path]:
    """The files of the folder that say they are of these kinds, whatever they are called."""
    return [path for path in sorted(GOLDEN.glob("*.safetensors")) if golden_kind(path) in kinds]


def read_golden(path: Path, framework: str) -> tuple[dict, dict]:
    """A file's configuration, and its tensors as arrays of NumPy ("np") or of PyTorch ("pt")."""
    from safetensors import safe_open

    with safe_open(path, framework) as file:
        return json.loads(file.metadata()["meta"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def benchmarks_importable() -> None:
    """Let ``import plain_phase1`` and its neighbours find their files, which are scripts and no package."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
