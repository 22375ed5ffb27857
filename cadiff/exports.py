"""What one phase hands to the next: a folder of safetensors parts and a card that says how they were made.

``export/card.json`` holds the phase, the resolved job, the data space, the size and hash of each part, and the
lineage; ``export/<part>.safetensors`` holds float32 weights. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadiff.errors import DataError
from cadiff.files import read_json, sha256, whole_file, write_json

FORMAT = "cadiff-export/1"


def save_export(folder: str | Path, parts: dict[str, dict[str, Tensor]], card: dict[str, Any]) -> Path:
    """Write ``parts`` (name -> state dict) and then the card, which makes the export valid."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").unlink(missing_ok=True)
    described = {}
    for name, state in parts.items():
        path = folder / f"{name}.safetensors"
        with whole_file(path) as beside:
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in state.items()}, beside)
        described[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / "card.json", {**card, "format": FORMAT, "parts": described})
    return folder


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read and check the card of an export (or of the run folder that holds one)."""
    folder = find_export(folder)
    card = read_json(folder / "card.json")
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"{folder}/card.json is not a {FORMAT} card. Was it written by another version?")
    parts = card.get("parts")
    tables = [parts, *(card.get(key, {}) for key in ("job", "lineage", "space"))]
    if not all(isinstance(table, dict) for table in (*tables, *(parts or {}).values())):
        raise DataError(f"{folder}/card.json: its parts, job, lineage or space are not tables. Export again.")
    return card


def find_export(folder: str | Path) -> Path:
    """Accept a run folder or its export folder."""
    folder = Path(folder)
    for candidate in (folder, folder / "export"):
        if (candidate / "card.json").is_file():
            return candidate
    raise DataError(f"{folder}: no finished export here (no card.json). Train that phase first, or correct init.*.")


def export_hash(card: dict[str, Any]) -> str:
    """What identifies an export: its card without names and paths, so the same work done elsewhere is the same.

    The card holds the hashes of the weights, of the data and of the exports it started from, so this fixes the chain.
    """
    job = _without(card.get("job"), "name", "track", "init")
    if isinstance(job, dict):
        job["data"] = _without(job.get("data"), "shards", "features")
    return hashlib.sha256(json.dumps({**card, "job": job}, sort_keys=True).encode()).hexdigest()


def _without(table: Any, *keys: str) -> Any:
    """A copy of a table without some keys; what is no table is what it is."""
    return {key: value for key, value in table.items() if key not in keys} if isinstance(table, dict) else table


def parent_hash(folder: str | Path) -> str:
    """What identifies the weights a job starts from: an export, or a foreign ``model.safetensors``."""
    weights = Path(folder) / "model.safetensors"
    return sha256(weights) if weights.is_file() else export_hash(read_card(folder))


def load_part(folder: str | Path, part: str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Load one part's weights on the CPU, after checking size and hash against the card.

    Args:
        names: load these tensors only (None: all). The hash is still that of the whole file.

    Raises:
        DataError: the part is missing, damaged or not listed, or has no tensor of such a name.
    """
    from safetensors import safe_open

    folder, card = find_export(folder), read_card(folder)
    path = folder / f"{part}.safetensors"
    if part not in card["parts"]:
        raise DataError(f"{folder}: holds {', '.join(card['parts'])}, not '{part}'. Name a run of the right phase.")
    listed = card["parts"][part]
    if not path.is_file() or path.stat().st_size != listed.get("bytes"):
        raise DataError(f"{path}: missing or cut short; expected {listed.get('bytes')} bytes.")
    if sha256(path) != listed.get("sha256"):
        raise DataError(f"{path}: its hash differs from card.json. The file was damaged or changed; export again.")
    with safe_open(path, framework="pt", device="cpu") as stored:
        held = set(stored.keys())
        wanted = held if names is None else set(names)
        if absent := sorted(wanted - held):
            raise DataError(f"{path}: part '{part}' has no tensor {absent[0]}. It does not fit its card; export again.")
        return {name: stored.get_tensor(name) for name in sorted(wanted)}


def load_into(module: torch.nn.Module, state: dict[str, Tensor], *, what: str) -> dict[str, list[str]]:
    """Copy every tensor whose name and shape fit; report the rest instead of guessing.

    Returns:
        ``{"matched": [...], "missing": [...], "unused": [...], "resized": [...]}`` with tensor names.

    Raises:
        DataError: nothing matched at all, so this is some other model's file.
    """
    own = module.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fits:
        raise DataError(f"{what}: none of its {len(state)} tensors fits this model. Do patch and width agree?")
    module.load_state_dict(fits, strict=False)
    return {
        "matched": sorted(fits),
        "missing": sorted(own.keys() - state.keys()),
        "unused": sorted(state.keys() - own.keys()),
        "resized": sorted(key for key in state.keys() & own.keys() if own[key].shape != state[key].shape),
    }
