"""A finished phase 3 made whole again: conditioner, UNet and first stage, loaded from one export folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cadiff.config import ConditionModel, FirstStageModel, FmriModel, UNetModel
from cadiff.errors import ConfigError, DataError
from cadiff.exports import export_hash, find_export, load_part, read_card
from cadiff.models.adapter import VoxelAdapters, network_voxels, stored_adapters
from cadiff.models.condition import FmriConditioner
from cadiff.models.first_stage import ImageCodec
from cadiff.models.latent_diffusion import LatentDiffusion, time_width


@dataclass(frozen=True)
class Reconstructor:
    """A finished phase 3, ready to sample on ``device``."""

    conditioner: FmriConditioner
    diffusion: LatentDiffusion
    codec: ImageCodec
    unet: UNetModel = field(repr=False)
    voxels: int
    image_size: int
    device: torch.device
    card_hash: str
    subjects: list[str]  # trained on these; empty: on all of the set
    data: list[str]  # hashes of the packed sets it was trained on
    adapters: VoxelAdapters | None = None  # what signals go through before they have `voxels`; None: they are padded


def load_reconstructor(export: str | Path, device: str | torch.device | None = None) -> Reconstructor:
    """Load a phase-3 export (or its run folder); by default onto the GPU where there is one.

    Raises:
        ConfigError: the export comes from another phase.
        DataError: a part is missing or damaged, or does not fit its card.
    """
    folder, card = find_export(export), read_card(export)
    if card["phase"] != "phase3":
        raise ConfigError(f"{folder}: holds {card['phase']}; sampling needs phase 3. Name the run of a phase-3 job.")
    job, built = card["job"], read_architecture(export)
    unet = UNetModel.model_validate(built["unet"])
    diffusion = LatentDiffusion(unet, built["first_stage"]["latent"])
    conditioner = FmriConditioner(
        FmriModel.model_validate(job["model"]),
        ConditionModel.model_validate(job["condition"]),
        network_voxels(card),
        unet.context_width,
        time_width(unet),
    )
    device, adapters = default_device(device), stored_adapters(folder)
    _fill(diffusion.unet, folder, "unet")
    _fill(conditioner, folder, "conditioner")
    return Reconstructor(
        conditioner.to(device).eval(),
        diffusion.to(device).eval(),
        load_codec(folder, device),
        unet,
        network_voxels(card),
        job["data"]["image_size"],
        device,
        export_hash(card),
        job["data"]["subjects"],
        card.get("lineage", {}).get("data", []),
        adapters.to(device).eval() if adapters is not None else None,
    )


def load_codec(export: str | Path, device: str | torch.device | None = None) -> ImageCodec:
    """Load the first stage out of any export that holds one."""
    codec = ImageCodec(FirstStageModel.model_validate(read_architecture(export)["first_stage"]))
    _fill(codec.vq, export, "first_stage")
    return codec.to(default_device(device)).eval()


def read_architecture(export: str | Path) -> dict[str, Any]:
    """Sizes of the parts of an export that its own job does not configure, such as an inherited first stage."""
    built = read_card(export).get("architecture")
    if not isinstance(built, dict) or "first_stage" not in built:
        raise DataError(f"{export}: its card describes no first stage. Name a first_stage, prior or phase-3 run.")
    return built


def _fill(module: torch.nn.Module, folder: str | Path, part: str) -> None:
    """Load a part that must fit completely."""
    state, own = load_part(folder, part), module.state_dict()
    if state.keys() != own.keys() or any(state[key].shape != own[key].shape for key in own):
        raise DataError(f"{folder}: part '{part}' does not fit its own card. Export it again.")
    module.load_state_dict(state)


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else the GPU where there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
