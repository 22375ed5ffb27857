"""The cells of an ablation (row x seed): each a chain of resolved jobs, all of them checked before the first starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cadiff.config import Job, load_job, parse_override
from cadiff.errors import ConfigError
from cadiff.launch.ablation_grid import EVAL, Grid, Row, read_grid, rows_of
from cadiff.launch.ablation_state import state_of

# job -> its init key -> the job of the same cell that it names, the first that is in the chain.
FEEDS = {
    "phase2": {"fmri": ("phase1",)},
    "prior": {"first_stage": ("first_stage",)},
    "phase3": {"fmri": ("phase2", "phase1"), "prior": ("prior",)},
}
_GIVEN = {"name", "seed", "phase"}  # keys that the grid itself sets


@dataclass(frozen=True)
class Run:
    """One job of a cell. ``made`` are its init keys that name runs of this ablation.

    Runs that are the same work in several cells, such as a phase 1 that no row changes, share one folder.
    """

    config: Path
    overrides: tuple[str, ...]
    folder: Path
    job: Job
    made: frozenset[str]

    @property
    def phase(self) -> str:
        return self.job.phase


@dataclass(frozen=True)
class Cell:
    """One row with one seed."""

    row: Row
    seed: int
    folder: Path
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{self.row.id}/seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A validated ablation in the folder ``out``; ``cells`` are in the order they run: every row before a next seed."""

    grid: Grid
    out: Path
    chain: dict[str, Path]
    rows: list[Row]
    cells: list[Cell]

    @property
    def runs(self) -> list[Run]:
        """Every run once, in order."""
        return list({run.folder: run for cell in self.cells for run in cell.runs}.values())

    def place(self, figure: str) -> tuple[str, str]:
        """The phase (or "eval") that a figure is read from, and its name there."""
        if figure.startswith(EVAL):
            return "eval", figure.removeprefix(EVAL)
        phase, colon, name = figure.rpartition(":")
        return (phase, name) if colon else (list(self.chain)[-1], figure)


def plan_cells(path: Path, out: Path | None = None) -> Plan:
    """Read a grid and resolve the job of every cell; nothing is written.

    Args:
        path: the grid's TOML; the configs it names lie beside it, or are the shipped ones of that name.
        out: the ablation's folder; None: runs/NAME.

    Raises:
        ConfigError: a mistake in the grid or in any cell; those of all rows are told together.
    """
    grid = read_grid(path)
    chain: dict[str, Path] = {}
    for name in grid.base:
        config = _find(name, path.parent)
        phase = load_job(config).phase
        if phase in chain:
            raise ConfigError(f"{path}: base names two configs of {phase}. A chain runs each phase once.")
        chain[phase] = config
    plan = Plan(grid, out or Path("runs") / grid.name, chain, rows_of(grid, list(chain)), [])
    if grid.sample is not None and list(chain)[-1] != "phase3":
        raise ConfigError(f"{path}: [sample] decodes with a phase 3; add its config at the end of base.")
    _check_figures(plan)
    owners: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for seed in grid.seeds:
        for row in plan.rows:
            try:
                plan.cells.append(_cell(plan, row, seed, owners))
            except ConfigError as problem:
                problems.setdefault(row.id, f"{path}, row '{row.id}': {problem}")
    if problems:
        raise ConfigError("\n        ".join(problems.values()))
    first: dict[Path, str] = {}
    for cell in plan.cells[: len(plan.rows)]:
        same = first.setdefault(cell.runs[-1].folder, cell.row.id)
        if same != cell.row.id:
            raise ConfigError(
                f"{path}: rows '{same}' and '{cell.row.id}' are the same experiment: what '{cell.row.id}' overrides "
                "has that value already. Change or remove one."
            )
    return plan


def _find(name: str, beside: Path) -> Path:
    from cadiff.launch.commands.train import find_config

    for path in (beside / name, (beside / name).with_suffix(".toml")):
        if path.is_file():
            return path
    return find_config(Path(name))


def _check_figures(plan: Plan) -> None:
    from cadiff.metrics import METRICS

    grid = plan.grid
    for figure in grid.figures:
        phase, name = plan.place(figure)
        if phase == "eval" and name not in METRICS:
            raise ConfigError(f"figures: '{figure}' is no score. Known: {', '.join(METRICS)}.")
        if phase != "eval" and phase not in plan.chain:
            raise ConfigError(f"figures: '{figure}' is of {phase}, but the chain is {', '.join(plan.chain)}.")
        better = METRICS[name].better if phase == "eval" else "lower" if name.endswith("/loss") else grid.better
        if better != grid.better:
            raise ConfigError(
                f"figures: of '{figure}' {better} is better, but better = '{grid.better}' is for all figures of it. "
                f"Set better = '{better}', or leave that figure to a grid of its own."
            )


def _cell(plan: Plan, row: Row, seed: int, owners: dict[str, Path]) -> Cell:
    """Resolve one cell's jobs; ``owners`` maps each work that was met to the folder it is done in."""
    folder, runs = plan.out / row.id / f"seed{seed}", {}
    for phase, config in plan.chain.items():
        overrides = [*plan.grid.common.of(phase), *row.of(phase)]
        keys = {parse_override(text)[0] for text in overrides}
        if taken := sorted(key for key, *_ in keys if key in _GIVEN):
            raise ConfigError(f"overrides {taken[0]} of {phase}, which the grid gives. Use `seeds`, `id` and `base`.")
        fed = {}
        for key, sources in FEEDS.get(phase, {}).items():
            source = next((runs[name] for name in sources if name in runs), None)
            if source is not None and not keys & {("init",), ("init", key)}:
                fed[key] = source.folder
        overrides += [f"init.{key}={json.dumps(str(path))}" for key, path in fed.items()]
        overrides += [f"seed={seed}", f'name="{plan.grid.name}-{row.id}-seed{seed}"']
        job = load_job(config, overrides, phase=phase)
        work = json.dumps(job.model_dump(exclude={"name", "track"}), sort_keys=True)
        owner = owners.setdefault(work, folder / phase)
        runs[phase] = Run(config, tuple(overrides), owner, job, frozenset(fed))
    return Cell(row, seed, folder, tuple(runs.values()))


def check_cells(plan: Plan, asked_ranks: int = 0) -> int:
    """See that data and foreign weights of every cell are there and that no folder is another job's.

    Returns:
        How many ranks each job gets.

    Raises:
        ConfigError, DataError: what is missing or does not fit; nothing was written.
    """
    from cadiff.fitting import check_layout
    from cadiff.launch.commands.train import check_inputs
    from cadiff.launch.start import local_ranks
    from cadiff.shards.dataset import Dataset

    seen = set()
    for run in plan.runs:
        check_layout(run.job)
        job = run.job
        if run.made:
            job = job.model_copy(update={"init": job.init.model_copy(update=dict.fromkeys(run.made, ""))})
        inputs = job.model_dump_json(include={"phase", "seed", "data", "image", "loss", "init"})
        if inputs not in seen:
            check_inputs(job)
            seen.add(inputs)
    if plan.grid.sample is not None:
        for folder in (plan.grid.sample.shards, *plan.grid.eval.images):
            if folder:
                Dataset(folder)
    if changed := [str(run.folder) for run in plan.runs if state_of(run) == "other"]:
        raise ConfigError(
            f"{changed[0]}{f' and {len(changed) - 1} more folders hold runs' if changed[1:] else ' holds a run'} of "
            "other settings or data than the grid asks for now (see job.toml there). Remove what is no longer wanted, "
            "give the row another id, or another --out."
        )
    return local_ranks([run.job for run in plan.runs], asked_ranks)
