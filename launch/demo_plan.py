"""What `cadiff demo` does, as data: the simulated brain, how it is packed, the five jobs, and the sampling."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cadiff.config import Job, Section, load_job, parse_override
from cadiff.errors import ConfigError
from cadiff.launch.commands.train import configs_folder
from cadiff.shards.synthetic.brain import BrainSpec

JOB_NAMES = ("phase1", "first_stage", "prior", "phase2", "phase3")


class PackPlan(Section):
    hcp_window: int = Field(4, ge=1)  # frames averaged into one sample; the paper takes 10 of its 1,200 a run
    val: float = Field(0.1, ge=0, lt=1)  # part of the training stimuli held out for validation


class SamplePlan(Section):
    samples: int = Field(3, ge=1)  # pictures per held-out stimulus
    steps: int = Field(20, ge=1)
    scheduler: Literal["ddim", "dpm", "plms"] = "dpm"
    guidance: float = Field(1.0, ge=0)
    limit: int = Field(0, ge=0)  # stimuli; 0 means all


class Stages(Section):
    """The sections of configs/demo.toml."""

    brain: BrainSpec = BrainSpec()
    pack: PackPlan = PackPlan()
    sample: SamplePlan = SamplePlan()


@dataclass(frozen=True)
class DemoPlan:
    """A validated demo: ``jobs`` are TOML files with the overrides that belong to each."""

    stages: Stages
    seed: int
    jobs: dict[str, tuple[Path, list[str]]]

    def job(self, name: str, extra: list[str]) -> Job:
        path, overrides = self.jobs[name]
        return load_job(path, [*overrides, *extra], phase=name)


def load_plan(overrides: list[str], seed: int, stimuli: Path | None) -> DemoPlan:
    """Compose the demo from configs/demo*.toml and ``brain.*``, ``sample.*`` or ``<job>.<section>.<key>`` overrides.

    Raises:
        ConfigError: an override that belongs to nothing, an unknown key or a wrong value.
    """
    folder = configs_folder()
    tree: dict[str, Any] = tomllib.loads((folder / "demo.toml").read_text(encoding="utf-8"))
    tree.setdefault("brain", {})["seed"] = seed
    if stimuli is not None:
        if not stimuli.is_dir():
            raise ConfigError(f"--stimuli {stimuli}: no such folder. Name a folder of .jpg or .png photos.")
        tree["brain"]["photos"] = str(stimuli)
    jobs = {name: (folder / f"demo_{name}.toml", [f"seed={seed}"]) for name in JOB_NAMES}
    for text in overrides:
        keys, value = parse_override(text)
        if keys[0] in jobs and len(keys) > 1:
            jobs[keys[0]][1].append(text.partition(".")[2])
        elif keys[0] in Stages.model_fields and len(keys) == 2:
            tree.setdefault(keys[0], {})[keys[1]] = value
        else:
            first = ", ".join((*Stages.model_fields, *jobs))
            raise ConfigError(f"'{text}': begin a demo override with one of {first}; such as phase1.optim.lr=1e-3.")
    try:
        stages = Stages.model_validate(tree)
    except ValidationError as problem:
        error = problem.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, error['loc']))} = {error['input']!r}: {error['msg']}.") from None
    plan = DemoPlan(stages, seed, jobs)
    for name in jobs:
        plan.job(name, [])  # a mistake in any job is said before anything runs
    return plan
