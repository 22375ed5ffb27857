"""What an ablation's TOML says, checked to the last key: its chain of jobs, its rows of overrides, its figures."""

from __future__ import annotations

import difflib
import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from cadiff.config import JOBS, Section
from cadiff.config.load import explain
from cadiff.errors import ConfigError

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # of grids and rows: they become folders
EVAL = "eval/"  # figures that begin so are read from the evaluation's metrics.json


class Overrides(Section):
    """``section.key=value`` strings for each job of the chain, as on the command line of `cadiff train`."""

    phase1: list[str] = Field([])
    first_stage: list[str] = Field([])
    prior: list[str] = Field([])
    phase2: list[str] = Field([])
    phase3: list[str] = Field([])

    def of(self, phase: str) -> list[str]:
        return getattr(self, phase)


class Row(Overrides):
    """One setting that is tried, with every seed."""

    id: str = Field(pattern=NAME)
    label: str = ""  # what the table calls it; empty: its id
    published: float | None = None  # what was published for it, in the unit of [published]

    @property
    def title(self) -> str:
        return self.label or self.id


class Published(Section):
    """What the rows' published figures are; they stand beside ours and are never mixed with them."""

    figure: str  # name and unit
    source: str
    note: str = ""  # what keeps them from being compared with ours


class Sampling(Section):
    """How the last job of a cell, a phase 3, decodes held-out stimuli; the defaults are the paper's."""

    shards: str = ""  # packed folder that is decoded; empty: the first one of phase 3
    count: int = Field(5, ge=1)  # pictures per stimulus
    steps: int = Field(250, ge=1)
    scheduler: Literal["plms", "ddim", "dpm"] = "plms"
    guidance: float = Field(1.0, ge=0)  # 1 is none
    limit: int = Field(0, ge=0)  # stimuli; 0 means all
    seed: int = 2022


class Evaluation(Section):
    """How the decoded pictures are scored; one classifier judges all cells."""

    images: list[str] = Field([])  # further packed sets whose training pictures teach the classifier
    seed: int = 1  # keys the classifier and the bootstrap


class Grid(Section):
    """One ablation. Either ``row`` lists the settings, or ``axes`` spans their full product."""

    name: str = Field(pattern=NAME)
    seeds: list[int] = Field(min_length=1)  # every row is trained once with each
    base: list[str] = Field(min_length=1)  # the chain: job configs in the order they run
    figures: list[str] = Field(min_length=1)  # read from the chain's last job; "phase2:val/loss" from another one
    better: Literal["higher", "lower"] = "higher"  # of all figures
    reference: str = ""  # id of the row that the others are compared with; empty: no comparison
    common: Overrides = Overrides()  # for all rows; a row's own win
    row: list[Row] = Field([])
    axes: dict[str, list[Any]] = Field({})  # "phase2.loss.image_mask" = [0.5, 0.75]; a chain of one needs no phase
    sample: Sampling | None = None
    eval: Evaluation | None = None
    published: Published | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Grid:
        for name, values in (("seeds", self.seeds), ("figures", self.figures), ("row", [one.id for one in self.row])):
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ValueError(f"{name} names {', '.join(twice)} more than once")
        if bool(self.row) == bool(self.axes):
            raise ValueError("give exactly one of [[row]] entries and [axes]")
        if empty := [key for key, values in self.axes.items() if not values]:
            raise ValueError(f"axes: '{empty[0]}' has no values")
        if (self.sample is None) != (self.eval is None):
            raise ValueError("[sample] and [eval] go together: what is decoded is scored")
        if self.eval is None and any(figure.startswith(EVAL) for figure in self.figures):
            raise ValueError(f"figures that begin with {EVAL} need [sample] and [eval]")
        if self.published is None and any(one.published is not None for one in self.row):
            raise ValueError("rows have published figures; say in [published] which figure that is, and its source")
        return self


def read_grid(path: Path) -> Grid:
    """Read and validate the grid alone, without the jobs it names.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest valid one), or wrong value.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such grid. Shipped ones are configs/ablation_*.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as problem:
        raise ConfigError(f"{path}: not a readable TOML file: {problem}.") from None
    try:
        return Grid.model_validate(tree)
    except ValidationError as problem:
        raise ConfigError("\n        ".join(f"{path}: {explain(error, Grid)}" for error in problem.errors())) from None


def rows_of(grid: Grid, chain: list[str]) -> list[Row]:
    """The rows as listed, or the full product of the axes with ids and labels made of their values.

    Raises:
        ConfigError: a row or an axis belongs to no job of the chain, or the reference to no row.
    """
    rows = grid.row or _product(grid, chain)
    for owner, overrides in [(f"row '{row.id}'", row) for row in rows] + [("[common]", grid.common)]:
        if stray := [phase for phase in JOBS if overrides.of(phase) and phase not in chain]:
            raise ConfigError(f"{owner} overrides {stray[0]}, but the chain is {', '.join(chain)}. Correct `base`.")
    ids = [row.id for row in rows]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ConfigError(f"[axes]: values give the id '{twice[0]}' twice. List [[row]] entries with ids of your own.")
    if grid.reference and grid.reference not in ids:
        near = difflib.get_close_matches(grid.reference, ids, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Rows are {', '.join(ids)}."
        raise ConfigError(f"reference = '{grid.reference}': no such row. {hint}")
    return rows


def _product(grid: Grid, chain: list[str]) -> list[Row]:
    axes = [(*_owner(axis, chain), values) for axis, values in grid.axes.items()]
    ends = [key.rpartition(".")[2] for _, key, _ in axes]
    shown = [end if ends.count(end) == 1 else f"{phase}.{key}" for end, (phase, key, _) in zip(ends, axes)]
    rows = []
    for values in itertools.product(*(values for *_, values in axes)):
        overrides: dict[str, list[str]] = {}
        for (phase, key, _), value in zip(axes, values):
            overrides.setdefault(phase, []).append(f"{key}={json.dumps(value, default=str)}")
        said = [f"{name}={value}" for name, value in zip(shown, values)]
        name = "__".join(re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") for text in said)
        rows.append(Row(id=name, label=", ".join(said), **overrides))
    return rows


def _owner(axis: str, chain: list[str]) -> tuple[str, str]:
    """The phase an axis belongs to and its key there."""
    phase, _, key = axis.partition(".")
    if phase in JOBS and key:
        if phase not in chain:
            raise ConfigError(f"axes: '{axis}' is of {phase}, but the chain is {', '.join(chain)}. Correct `base`.")
        return phase, key
    if len(chain) > 1:
        raise ConfigError(f"axes: '{axis}' does not say of which job. Begin it with one of {', '.join(chain)}.")
    return chain[0], axis
