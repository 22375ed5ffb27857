"""What one phase hands to the next: a folder of safetensors parts and a card that says how they were made.

``export/card.json`` holds the phase, the resolved job, the data space, the size and hash of each part, and the
lineage; ``export/<part>.safetensors`` holds float32 weights. Nothing here is ever unpickled.
"""

from __future__ import annotations

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
    return card


def find_export(folder: str | Path) -> Path:
    """Accept a run folder or its export folder."""
    folder = Path(folder)
    for candidate in (folder, folder / "export"):
        if (candidate / "card.json").is_file():
            return candidate
    raise DataError(f"{folder}: no finished export here (no card.json). Train that phase first, or correct init.*.")


def weights_hash(folder: str | Path) -> str:
    """What identifies the weights of a folder: the hash of an export's card, or of a foreign ``model.safetensors``."""
    weights = Path(folder) / "model.safetensors"
    return sha256(weights if weights.is_file() else find_export(folder) / "card.json")


def load_part(folder: str | Path, part: str) -> dict[str, Tensor]:
    """Load one part's weights on the CPU, after checking size and hash against the card.

    Raises:
        DataError: the part is missing, damaged or not listed.
    """
    from safetensors.torch import load_file

    folder, card = find_export(folder), read_card(folder)
    path = folder / f"{part}.safetensors"
    if part not in card["parts"]:
        raise DataError(f"{folder}: holds {', '.join(card['parts'])}, not '{part}'. Name a run of the right phase.")
    if not path.is_file() or path.stat().st_size != card["parts"][part]["bytes"]:
        raise DataError(f"{path}: missing or cut short; expected {card['parts'][part]['bytes']} bytes.")
    if sha256(path) != card["parts"][part]["sha256"]:
        raise DataError(f"{path}: its hash differs from card.json. The file was damaged or changed; export again.")
    return load_file(path)


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
