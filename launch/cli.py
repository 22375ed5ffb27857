"""The ``cadiff`` command: one sub-command per task; a user's mistake ends in one line and a documented exit code."""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import typer

from cadiff import __version__
from cadiff.errors import CadiffError

app = typer.Typer(
    name="cadiff",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""**Decode pictures from brain activity**: contrast, attend and diffuse, at scale.

A first look: `cadiff demo` simulates brains, packs them, trains all three phases, and writes a report you can open.

The road of real data: `pack` raw scans into shards, `train` phase1, phase2 and phase3, `sample` pictures for stimuli
nobody trained on, `eval` them against chance and baselines, and `report` the result as one HTML file.

Exit codes: 0 done, 2 a mistake in a command or config, 3 data that cannot be used, 4 a loss became NaN or infinite,
75 asked to stop after saving (queue again), 130 interrupted, 1 anything unforeseen.
""",
)

# Each module adds its commands to the app; they import torch and DeepSpeed only when a command runs.
COMMANDS = (
    "demo", "pack", "shards", "train", "ablate", "probe", "sample", "evaluate", "report", "plan",
    "bench", "convert", "doctor",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors."),
) -> None:
    if version:
        typer.echo(f"cadiff {__version__}")
        raise typer.Exit
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("cadiff").setLevel(logging.WARNING if quiet else logging.INFO)


for _name in COMMANDS:
    import_module(f"cadiff.launch.commands.{_name}").register(app)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; always ends the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    words.sort(key=lambda word: word not in ("-q", "--quiet"))  # stable: quiet is heard wherever it stands
    try:
        app(words, prog_name="cadiff")
    except CadiffError as problem:
        print(f"cadiff: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except OSError as problem:
        print(f"cadiff: {problem}. Check the path, its permissions and the free space.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
