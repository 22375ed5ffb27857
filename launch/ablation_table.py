"""The table of an ablation: figures read from finished cells, means with intervals, differences to the reference row.

Two kinds of interval, both 95 %. Where an evaluation scored every stimulus: a bootstrap over stimuli of the means over
seeds. Elsewhere: Student's t over the seeds' values. Differences are paired, by stimulus or by seed.

Legend: S seeds, N scored rows, M distinct stimuli.
"""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import read_json
from cadiff.launch.ablation_cells import Cell, Plan
from cadiff.launch.ablation_state import state_of
from cadiff.statistics import COVERAGE, RESAMPLES, interval_of, resampled_means
from cadiff.tracking import read_metrics

FORMAT = "cadiff-ablation/1"


@dataclass(frozen=True)
class Reading:
    """One figure of one cell; ``stimuli_M`` are its means per stimulus where an evaluation has them."""

    value: float
    stimuli_M: np.ndarray | None = None


def make_table(plan: Plan, failures: dict[str, str]) -> dict[str, Any]:
    """Everything that ablation.json holds, from the cells that are finished now.

    Args:
        failures: cell name -> message.
    """
    readings: dict[str, dict[int, dict[str, Reading]]] = {row.id: {} for row in plan.rows}
    for cell in plan.cells:
        if is_finished(plan, cell):
            readings[cell.row.id][cell.seed] = read_figures(plan, cell)
    reference, settings = plan.grid.reference, differing_settings(plan)
    rows = []
    for row in plan.rows:
        entry: dict[str, Any] = {"id": row.id, "label": row.title, "published": row.published}
        entry["settings"] = settings[row.id]
        entry["finished"] = sorted(readings[row.id])
        entry["missing"] = [seed for seed in plan.grid.seeds if seed not in readings[row.id]]
        failed = {cell.seed: failures.get(cell.name) for cell in plan.cells if cell.row.id == row.id}
        entry["failed"] = {str(seed): text for seed, text in failed.items() if text}
        entry["figures"] = {}
        for figure in plan.grid.figures:
            mine = {seed: found[figure] for seed, found in readings[row.id].items() if figure in found}
            told: dict[str, Any] = estimate(mine, _seed(plan))
            if reference and row.id != reference:
                other = {s: found[figure] for s, found in readings[reference].items() if figure in found}
                told["minus_reference"] = difference(mine, other, _seed(plan))
            entry["figures"][figure] = told
        rows.append(entry)
    told = plan.grid.model_dump(include={"name", "seeds", "base", "figures", "better", "reference", "published"})
    return {"format": FORMAT, **told, "chain": list(plan.chain), "chance": chances(plan), "rows": rows}


def _seed(plan: Plan) -> int:
    return plan.grid.eval.seed if plan.grid.eval else 0


def is_finished(plan: Plan, cell: Cell) -> bool:
    scored = plan.grid.eval is None or (cell.folder / "scores" / "metrics.json").is_file()
    return scored and all(state_of(run) == "finished" for run in cell.runs)


def read_figures(plan: Plan, cell: Cell) -> dict[str, Reading]:
    """The figures of one finished cell; one that its run did not report is left out."""
    found, folders = {}, {run.phase: run.folder for run in cell.runs}
    scores = read_json(cell.folder / "scores" / "metrics.json") if plan.grid.eval else {}
    for figure in plan.grid.figures:
        phase, name = plan.place(figure)
        if phase == "eval":
            if name in scores["methods"][scores["main"]]:  # the judge leaves out what these stimuli cannot tell
                found[figure] = _scored(scores, name)
            continue
        values = reported(folders[phase])
        if name in values:
            found[figure] = Reading(values[name])
    return found


def reported(run: Path) -> dict[str, float]:
    """All figures of a finished run: of its summary, and the last of each in metrics.jsonl up to the exported step."""
    values = dict(read_json(run / "summary.json"))
    exported = (values.get("selected") or {}).get("step", math.inf)
    for line in read_metrics(run):
        if line["step"] <= exported:
            values.update(line)
    return {key: float(value) for key, value in values.items() if _is_number(value)}


def chances(plan: Plan) -> dict[str, float]:
    """What guessing scores, for the figures that a finished cell reports it of."""
    cell = next((cell for cell in plan.cells if is_finished(plan, cell)), None)
    found = {}
    for figure in plan.grid.figures if cell is not None else ():
        phase, name = plan.place(figure)
        if phase == "eval":
            scores = read_json(cell.folder / "scores" / "metrics.json")
            found[figure] = scores["methods"][scores["main"]].get(name, {}).get("chance")
        else:
            run = next(run for run in cell.runs if run.phase == phase)
            found[figure] = reported(run.folder).get(f"{name}_chance")
    return {figure: value for figure, value in found.items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scored(scores: dict[str, Any], name: str) -> Reading:
    main = scores["main"]
    rows_N = scores["rows"]["scores"][main].get(name)
    stimuli_M = None
    if rows_N is not None:
        target_N = np.asarray(scores["rows"]["stimulus"])
        stimuli_M = np.bincount(target_N, weights=np.asarray(rows_N)) / np.bincount(target_N)
    return Reading(float(scores["methods"][main][name]["value"]), stimuli_M)


def unreported(plan: Plan, table: dict[str, Any]) -> list[str]:
    """A sentence for each figure that no finished cell has, with what its run or its scores do hold."""
    finished = [cell for cell in plan.cells if is_finished(plan, cell)]
    told = []
    for figure in plan.grid.figures if finished else ():
        if all(row["figures"][figure]["value"] is None for row in table["rows"]):
            phase, name = plan.place(figure)
            if phase == "eval":  # a score by its right name, which these stimuli do not allow
                scores = read_json(finished[0].folder / "scores" / "metrics.json")
                known = ", ".join(sorted(scores["methods"][scores["main"]]))
                said = " ".join(["", *scores["notes"]])
                told.append(f"figures: no cell's scores hold '{name}'.{said} They hold {known}; choose of those.")
                continue
            known = sorted(reported(next(run.folder for run in finished[0].runs if run.phase == phase)))
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"It reports {', '.join(known)}."
            told.append(f"figures: no run of {phase} reported '{name}'. {hint}")
    return told


def estimate(readings: dict[int, Reading], seed: int) -> dict[str, Any]:
    """Mean over seeds with its interval: ``value``, ``low``, ``high``, ``seeds`` (their values) and ``interval``.

    ``low`` and ``high`` are None where one seed says nothing of the others; ``value`` is None without any.
    """
    values = {str(s): readings[s].value for s in sorted(readings)}
    return {**_interval([readings[s] for s in sorted(readings)], seed), "seeds": values}


def difference(mine: dict[int, Reading], other: dict[int, Reading], seed: int) -> dict[str, Any]:
    """The same of row minus reference, over the seeds that both have."""
    common = sorted(mine.keys() & other.keys())
    pairs = [_minus(mine[s], other[s]) for s in common]
    return {**_interval(pairs, seed), "seeds": {str(s): pair.value for s, pair in zip(common, pairs)}}


def _minus(mine: Reading, other: Reading) -> Reading:
    value, both = mine.value - other.value, (mine.stimuli_M, other.stimuli_M)
    if any(part is None for part in both):
        return Reading(value)
    if len(both[0]) != len(both[1]):
        raise DataError(f"Cells were scored on {len(both[0])} and {len(both[1])} stimuli; they do not pair. Run again.")
    return Reading(value, both[0] - both[1])


def _interval(readings: list[Reading], seed: int) -> dict[str, Any]:
    if not readings:
        return {"value": None, "low": None, "high": None, "interval": "nothing yet"}
    values_S = np.array([one.value for one in readings])
    value, count = float(values_S.mean()), len(values_S)
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    rows = [one.stimuli_M for one in readings]
    if all(row is not None for row in rows) and len({len(row) for row in rows}) == 1:
        means_M1 = np.mean(rows, axis=0)[:, None]
        _, low, high = interval_of(value, resampled_means(means_M1, seed=seed)[:, 0])
        how = f"bootstrap over {len(means_M1)} stimuli ({RESAMPLES} resamples), mean of {seeds}"
        return {"value": value, "low": low, "high": high, "interval": how}
    if count == 1:
        return {"value": value, "low": None, "high": None, "interval": "none: 1 seed"}
    half = t_half_width(values_S)
    return {"value": value, "low": value - half, "high": value + half, "interval": f"t over {seeds}"}


def t_half_width(values_S: np.ndarray) -> float:
    """Half the width of Student's 95 % interval for the mean of at least two values."""
    from scipy.special import stdtrit

    count = len(values_S)
    return float(stdtrit(count - 1, (1 + COVERAGE) / 2) * np.std(values_S, ddof=1) / math.sqrt(count))


def differing_settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """row id -> the keys whose values are not the same in all rows, with the row's own; of the first seed."""
    first = plan.cells[: len(plan.rows)]
    flat = {cell.row.id: _flat(cell, prefix=len(plan.chain) > 1) for cell in first}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    kept = [key for key in keys if len({json.dumps(settings.get(key)) for settings in flat.values()}) > 1]
    return {name: {key: settings.get(key) for key in kept} for name, settings in flat.items()}


def _flat(cell: Cell, *, prefix: bool) -> dict[str, Any]:
    found = {}
    for run in cell.runs:
        tree = run.job.model_dump(exclude={"name", "seed", "track"})
        for section, values in tree.items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if not (section == "init" and key in run.made):
                    found[f"{run.phase}.{section}.{key}" if prefix else f"{section}.{key}"] = value
    return found
