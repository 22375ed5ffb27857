"""The phases: what a batch becomes before it is a loss. PHASES is the only registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from torch import nn

from cadiff.config import Job


@dataclass(frozen=True)
class Space:
    """What a model must know of its data: padded signal width in voxels, number of stimulus classes, and its subjects.

    ``subjects`` has each subject's own voxel counts (several where packed sets disagree), in the numbering of batches.
    """

    voxels: int
    classes: int
    subjects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


PHASES: dict[str, str] = {
    "phase1": "cadiff.phases.pretrain:Pretrain",
    "phase2": "cadiff.phases.crosstune:CrossTune",
    "first_stage": "cadiff.phases.first_stage:FirstStage",
    "prior": "cadiff.phases.prior:Prior",
    "phase3": "cadiff.phases.diffuse:Diffuse",
}


def build_phase(job: Job, space: Space) -> nn.Module:
    """Build the phase that ``job`` configures: its weights are loaded and its frozen parameters frozen."""
    module, name = PHASES[job.phase].split(":")
    return getattr(import_module(module), name)(job, space)
