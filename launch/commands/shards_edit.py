"""``cadiff shards repair``, ``merge`` and ``split``: mend packed folders, join several, take parts of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

JSON = typer.Option(False, "--json", help="Print one JSON object.")
SHOWN = 20  # problems printed one by one; --json gives all


def register(app: typer.Typer) -> None:
    for command in (repair, merge, split):
        app.command(command.__name__)(command)


def joined(problems: list[str]) -> str:
    """Problems as one message."""
    more = [f"... and {len(problems) - SHOWN:,} more: see --json"] if len(problems) > SHOWN else []
    return "\n        ".join([*problems[:SHOWN], *more])


def repair(
    folder: Path = typer.Argument(help="A damaged packed folder."),
    copy: str = typer.Option(None, "--from", help="A folder or URL with the same version of the set."),
    out: Path = typer.Option(None, "--out", help="Without a copy: a new folder for all that is not damaged."),
    as_json: bool = JSON,
) -> None:
    """Mend a damaged packed folder from a copy, or save what is sound into a new one.

    With `--from`, each missing or damaged file is replaced by the copy's, if that has the right sha256; then everything
    is checked again, and the exit code is 3 if damage remains. With `--out`, the damaged folder stays as it is, and
    lost samples and pictures are listed as dropped.
    """
    from cadiff.errors import ConfigError, DataError
    from cadiff.launch.view import View
    from cadiff.shards.repair import repair_from
    from cadiff.shards.salvage import salvage

    if (copy is None) == (out is None):
        raise ConfigError("shards repair: give either --from COPY or --out NEW.")
    with View().task("repair") as task:
        if out is not None:
            _tell(salvage(folder, out, progress=task.advance), as_json)
            return
        told = repair_from(folder, copy, progress=task.advance)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        raise typer.Exit(DataError.exit_code if told["problems"] else 0)
    for name in told["replaced"]:
        typer.echo(f"replaced {name}")
    if told["problems"]:
        raise DataError(joined(told["problems"]))
    typer.echo(f"{folder}: every byte is as packed (files replaced: {len(told['replaced'])})")


def merge(
    folders: list[Path] = typer.Argument(metavar="A B [C...] OUT", help="Packed folders, and the folder to make."),
    as_json: bool = JSON,
) -> None:
    """Join packed folders into one. A subject, run, stimulus or class of one name is taken to be one.

    Refused are splits that leak across the sets, samples that are in two sets, and another picture under the same
    stimulus id. Archives of scans are not merged.
    """
    from cadiff.launch.view import View
    from cadiff.shards.merge import merge as join

    with View().task("merge") as task:
        told = join(folders[:-1], folders[-1], progress=task.advance)
    _tell(told, as_json)
    if told["shared_subjects"] and not as_json:
        typer.echo(f"in more than one set, taken as one person each: {', '.join(told['shared_subjects'])}")


def split(
    folder: str = typer.Argument(help="A packed folder, or its URL."),
    out: Path = typer.Argument(
        help="Packed folder to make; with --split-files and --into, the folder to make them in."
    ),
    subjects: str = typer.Option(None, help="Keep these subjects, comma-separated."),
    split_files: bool = typer.Option(False, "--split-files", help="One folder each for train, val and test."),
    fraction: float = typer.Option(None, help="Keep this part of each split's subjects, stimuli or runs (see --by)."),
    by: str = typer.Option(
        None, help="What --fraction counts: subject, stimulus or run; else what the set is split by (see info)."
    ),
    seed: int = typer.Option(0, help="Another seed, another choice."),
    into: int = typer.Option(None, min=2, help="So many folders with equal numbers of subjects."),
    as_json: bool = JSON,
) -> None:
    """Make a packed folder of a part of another, or several of all of it. Values stay bit for bit as stored."""
    from cadiff.errors import ConfigError
    from cadiff.launch.view import View
    from cadiff.shards import edit

    if sum((subjects is not None, split_files, fraction is not None, into is not None)) != 1:
        raise ConfigError("shards split: give one of --subjects, --split-files, --fraction and --into.")
    with View().task("split") as task:
        if subjects is not None:
            names = [name.strip() for name in subjects.split(",") if name.strip()]
            made = [edit.keep_subjects(folder, out, names, progress=task.advance)]
        elif fraction is not None:
            made = [edit.keep_fraction(folder, out, fraction, by, seed, progress=task.advance)]
        elif split_files:
            made = edit.cut_by_split(folder, out, progress=task.advance)
        else:
            made = edit.cut_by_subject(folder, out, into, progress=task.advance)
    if as_json:
        typer.echo(json.dumps({"from": folder, "sets": made}, indent=1))
        return
    for told in made:
        _tell(told, False)


def _tell(told: dict[str, Any], as_json: bool) -> None:
    """A packed folder that was made, as JSON or in words."""
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for entry in told["dropped"]:
        typer.echo(f"dropped {entry['what']}: {entry['why']}")
    samples = ", ".join(f"{told['samples'][split]:,} {split}" for split in ("train", "val", "test"))
    state = "already there" if told["already"] else f"made in {told['seconds']:.1f} s"
    typer.echo(
        f"{told['folder']}: {state}: {samples} samples, {len(told['subjects'])} subjects, {told['bytes']:,} bytes"
    )
