"""Voxel adapters as phases 2 and 3 use them: built for the job's subjects, or taken over from an export.

In phase 2 the fMRI term rebuilds the adapted signal. As a target it is detached: with a gradient through the target the
maps could make it easy to predict, at worst by mapping everything to nothing. What remains is the gradient through the
input, which has nothing to gain from a smaller target.

Legend: B records, V padded width of a batch's signals, W width of the shared space.
"""

from __future__ import annotations

import logging

from torch import Tensor

from cadiff.config import Phase2Job
from cadiff.errors import ConfigError
from cadiff.exports import read_card
from cadiff.models.adapter import PART, VoxelAdapters, described_adapters, network_voxels, stored_adapters
from cadiff.phases import Space
from cadiff.shards.voxels import padded_width

log = logging.getLogger(__name__)

MANY = 100_000_000  # weights of all maps, 1.6 GB with gradients and AdamW's two moments


def phase2_adapters(job: Phase2Job, space: Space) -> tuple[VoxelAdapters | None, dict[str, dict[str, list[str]]]]:
    """The maps of the job's subjects (None for wrap padding), and the report of what was loaded into them.

    Maps come by the subject's name from the export that the network comes from, if that has any; unknown subjects
    start as wrap padding.

    Raises:
        ConfigError: keys that contradict each other or the export. DataError: the export is missing or damaged.
    """
    _refuse_contradictions(job)
    source = job.init.tuned or job.init.fmri
    card = read_card(source) if source else None
    stored = described_adapters(card) if card else None
    if job.adapter.kind == "wrap":
        if stored is not None:
            raise ConfigError(
                f"{source}: its network reads signals that went through voxel adapters. Set adapter.kind=linear."
            )
        return None, {}
    subjects = own_voxels(space, job.data.subjects)
    width = job.adapter.width
    if not width:
        widest = padded_width(max(subjects.values(), default=space.voxels), job.model.patch)
        there = network_voxels(card) if card else 0
        width = there if job.init.tuned or stored is not None else max(widest, there)
    adapters = VoxelAdapters(subjects, width, job.adapter.rank)
    adapters.number_by(list(space.subjects))
    if (weights := sum(parameter.numel() for parameter in adapters.parameters())) > MANY:
        log.warning(
            "voxel adapters: %s M weights for %d subjects, to be held with their gradients and optimizer state; "
            "adapter.rank makes them two thin matrices each", f"{weights / 1e6:,.0f}", len(subjects),
        )  # fmt: skip
    if stored is None:
        return adapters, {}
    if stored["width"] != width:
        raise ConfigError(f"{source}: its voxel adapters lead to {stored['width']} voxels. Set adapter.width to that.")
    return adapters, {PART: adapters.load_stored(source)}


def phase3_adapters(export: str, subjects: list[str], space: Space) -> VoxelAdapters | None:
    """The finished maps of the export that phase 3 starts from; frozen, and all of them, so that each can be sampled.

    Those of other subjects than the job's (``subjects``; empty: all) do not run.

    Raises:
        DataError: one of the job's subjects has no map there, or has other voxels.
    """
    adapters = stored_adapters(export) if export else None
    if adapters is None:
        return None
    adapters.require(own_voxels(space, subjects), "data.shards")
    adapters.number_by(list(space.subjects), only=subjects)
    return adapters.requires_grad_(False)


def adapted(adapters: VoxelAdapters | None, batch: dict[str, Tensor]) -> Tensor:
    """A batch's signals as the network reads them: (B, W) through the maps, or (B, V) as they are."""
    return batch["signal"] if adapters is None else adapters(batch["signal"], batch["subject"])


def own_voxels(space: Space, names: list[str]) -> dict[str, int]:
    """Voxels of these subjects (empty: of all).

    Raises:
        ConfigError: packed sets give one of them different numbers of voxels.
    """
    chosen = {name: counts for name, counts in space.subjects.items() if not names or name in names}
    for name, counts in chosen.items():
        if len(counts) > 1:
            raise ConfigError(
                f"data.shards: subject {name} has {' and '.join(map(str, counts))} voxels in different sets, so one "
                "voxel adapter cannot read both. Pack them with one region, or give the people different names."
            )
    return {name: counts[0] for name, counts in chosen.items()}


def _refuse_contradictions(job: Phase2Job) -> None:
    given, init = job.adapter, job.init
    if init.tuned and (init.fmri or init.image):
        raise ConfigError("init.tuned brings both branches; init.fmri and init.image must be empty beside it.")
    if given.kind == "wrap" and (given.width or given.rank or given.only or given.init != "wrap"):
        raise ConfigError("adapter.width, rank, init and only speak of learned maps. Set adapter.kind=linear.")
    if given.only and not init.tuned:
        raise ConfigError("adapter.only freezes the network, so it must be a finished one: name it in init.tuned.")
    if given.init == "ridge" and not init.tuned:
        raise ConfigError("adapter.init = 'ridge' asks subjects known to init.tuned, which is empty. Name an export.")
