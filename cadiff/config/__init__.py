"""Typed configuration: one TOML file per job plus ``section.key=value`` overrides, validated before anything runs."""

from cadiff.config.jobs import JOBS, FirstStageJob, Job, Phase1Job, Phase1Loss, Phase2Job, Phase3Job, PriorJob
from cadiff.config.load import dump_toml, load_job, parse_override
from cadiff.config.sections import (
    ConditionModel,
    CrossModel,
    Data,
    EngineOptions,
    FirstStageModel,
    FmriModel,
    ImageModel,
    Mask,
    Optim,
    Section,
    Track,
    Train,
    UNetModel,
)

__all__ = [
    "JOBS",
    "ConditionModel",
    "CrossModel",
    "Data",
    "EngineOptions",
    "FirstStageJob",
    "FirstStageModel",
    "FmriModel",
    "ImageModel",
    "Job",
    "Mask",
    "Optim",
    "Phase1Job",
    "Phase1Loss",
    "Phase2Job",
    "Phase3Job",
    "PriorJob",
    "Section",
    "Track",
    "Train",
    "UNetModel",
    "dump_toml",
    "load_job",
    "parse_override",
]
