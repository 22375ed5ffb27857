"""``cadiff ablate``: a grid of settings, each trained with every seed, as one table with intervals; resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cadiff.launch.ablation_cells import Plan


def register(app: typer.Typer) -> None:
    app.command("ablate")(ablate)


def ablate(
    grid: Path = typer.Argument(help="The grid's TOML file, or the name of a shipped one."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder of all runs and the table. Default: runs/NAME."),
    ranks: int = typer.Option(0, "--ranks", "-n", min=0, help="Processes of each job. 0: one per GPU, else two."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check and list every cell; write and run nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print ablation.json (with --dry-run, the cells)."),
) -> None:
    """Train every row of a grid with every seed, and print the table of its figures with 95 % intervals.

    Every cell's job is checked before the first one starts. Cells run one after the other on this machine. Finished
    ones are passed by, an interrupted one continues, a failed one is told while the rest goes on; the same command
    tries it again. The table is written after every cell: ablation.json, ablation.md, ablation.html.

    Example: `cadiff ablate ablation_demo` after `cadiff demo`
    """
    from cadiff.errors import ConfigError
    from cadiff.launch.ablation import Ablation
    from cadiff.launch.ablation_cells import check_cells, plan_cells
    from cadiff.launch.ablation_page import write_table
    from cadiff.launch.ablation_table import make_table, unreported
    from cadiff.launch.ablation_text import print_table
    from cadiff.launch.commands.train import find_config
    from cadiff.launch.start import start_training
    from cadiff.launch.view import View

    plan = plan_cells(find_config(grid), out)
    if dry_run:
        typer.echo(json.dumps(listed(plan), indent=1) if as_json else "\n".join(lines(plan)))
        check_cells(plan, ranks)
        return
    ranks = check_cells(plan, ranks)
    ablation = Ablation(
        plan,
        ranks,
        View(),
        train=start_training,
        after_cell=lambda failed: write_table(plan.out, make_table(plan, failed)),
    )
    ablation.run()
    told = make_table(plan, ablation.failures)
    write_table(plan.out, told)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        print_table(told)
        typer.echo(f"All numbers: {plan.out / 'ablation.json'}; the page: {plan.out / 'ablation.html'}")
    ablation.check()
    if missing := unreported(plan, told):
        raise ConfigError("\n        ".join(missing))


def listed(plan: Plan) -> list[dict[str, Any]]:
    """Every cell with its runs: what they override and how far they are."""
    from cadiff.launch.ablation_state import state_of

    return [
        {
            "cell": cell.name,
            "runs": [
                {
                    "phase": run.phase,
                    "config": str(run.config),
                    "overrides": list(run.overrides),
                    "folder": str(run.folder),
                    "state": state_of(run),
                }
                for run in cell.runs
            ],
        }
        for cell in plan.cells
    ]


def lines(plan: Plan) -> list[str]:
    """The same in text, a run that several cells share only once."""
    out, seen = [], set()
    for cell in listed(plan):
        for run in cell["runs"]:
            state = "as in " + run["folder"] if run["folder"] in seen else run["state"]
            seen.add(run["folder"])
            out.append(f"{cell['cell']} {run['phase']}: {state} | {' '.join(run['overrides'])}")
    return [*out, f"{len(plan.cells)} cells, {len(seen)} runs of {', '.join(plan.chain)} in {plan.out}"]
