"""``cadiff shards``: look into packed folders, and check them byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cadiff.launch.commands import shards_edit
from cadiff.launch.commands.shards_edit import JSON

_LONG = 60  # characters of an option or a note that are told as they are

shards = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look into packed folders; check, mend, join and divide them.",
)


def register(app: typer.Typer) -> None:
    shards_edit.register(shards)
    app.add_typer(shards, name="shards")


def existing(folder: str | Path, *, local: bool = False) -> str:
    """A packed folder or URL that the user named.

    Raises:
        ConfigError: no such folder, or a URL where only a local folder will do.
    """
    from cadiff.errors import ConfigError

    text = str(folder)
    if "://" in text or text.startswith(("file:/", "s3:/", "gs:/", "http:/", "https:/")):
        if local:
            raise ConfigError(f"{text}: this command takes a local folder, not a URL. Copy the set first.")
        return text
    if not Path(text).is_dir():
        raise ConfigError(f"{text}: no such folder.")
    return text


@shards.command("info")
def info(folder: str = typer.Argument(help="A packed folder, or its URL."), as_json: bool = JSON) -> None:
    """Say what a packed folder holds: samples per split, subjects, voxels, stimuli, classes, options, and its version.

    Long options and notes are counted; `--json` gives them in full.
    """
    from cadiff.shards.facts import facts

    told = facts(existing(folder))
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for key, value in _lines(told).items():
        typer.echo(f"{key:<9} {value}")


def _lines(told: dict[str, Any]) -> dict[str, str]:
    """The figures as a person reads them."""
    subjects = [f"{subject['name']} ({subject['voxels']:,} voxels)" for subject in told["subjects"]]
    regions = {name: len(columns) for name, columns in told["regions"].items()}
    dropped, scans = told["dropped"], told["scans"]
    values = [f"{told['dtype']}, {told['blocks']:,} blocks"] if told["blocks"] else []
    stored = ", ".join(values + [f"{told['pictures']:,} pictures"] * bool(told["pictures"] or not values))
    first = "; ".join(f"{entry['what']}: {entry['why']}" for entry in dropped["first"])
    return {
        "kind": told["kind"],
        "version": told["version"],
        "recipe": told["recipe_sha256"],
        "made by": _some([f"{name} {version}" for name, version in told["made_by"].items()]),
        "options": ", ".join(f"{name}={_short(value)}" for name, value in told["options"].items()) or "none",
        "samples": ", ".join(f"{count:,} {split}" for split, count in told["samples"].items()),
        "split by": told["split_by"],
        "subjects": f"{len(subjects):,}: {_some(subjects)}"
        + f", {told['families']:,} families" * bool(told["families"]),
        "runs": f"{told['runs']:,}, sessions {told['sessions']:,}",
        "stimuli": f"{told['stimuli']:,}, pictures {told['pictures']:,}",
        "classes": f"{len(told['classes']):,}: {_some(told['classes'])}",
        "stored": f"{stored}, {told['shards']:,} shards, {told['bytes']:,} bytes",
        "regions": _some([f"{subject}: {count:,}" for subject, count in regions.items()]),
        "scans": f"{scans['arrays']:,} arrays, {scans['bytes']:,} bytes" if scans else "none",
        "sources": f"{told['sources']['count']:,} files, {told['sources']['bytes']:,} bytes",
        "dropped": f"{dropped['count']:,}" + (f": {first}" if first else ""),
        "notes": _some([f"{name} {_short(value)}" for name, value in sorted(told["notes"].items())]),
    }


def _short(value: Any) -> str:
    """A value on part of a line: lists, tables and texts that are long are counted, and told in full by --json."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONG:
        return text
    return f"({len(value):,} {'characters' if isinstance(value, str) else 'entries'})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "none"


@shards.command("ls")
def ls(
    folder: str = typer.Argument(help="A packed folder, or its URL."),
    split: str = typer.Option(None, help="train, val or test."),
    subject: str = typer.Option(None, help="Only this subject's samples."),
    stimulus: str = typer.Option(None, help="Only samples of this stimulus id."),
    limit: int = typer.Option(None, min=1, help="Stop after so many samples."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per line."),
) -> None:
    """List samples: who, when, what was shown, and where the values lie (shard, byte offset, bytes, CRC-32C).

    Where the set has pictures too, `picture_shard` and so on say where the sample's picture lies. Columns are separated
    by tabs; `-` means none.
    """
    from cadiff.shards.facts import list_samples

    for number, row in enumerate(
        list_samples(existing(folder), split=split, subject=subject, stimulus=stimulus, limit=limit)
    ):
        if as_json:
            print(json.dumps(row))
            continue
        if number == 0:
            print("\t".join(row))
        print("\t".join("-" if value is None else str(value) for value in row.values()))


@shards.command("verify")
def verify(
    folder: Path = typer.Argument(help="A packed folder."),
    quick: bool = typer.Option(False, "--quick", help="Compare sizes and check the index only; read no shard."),
    as_json: bool = JSON,
) -> None:
    """Read everything and compare with the manifest's hashes and checksums. Exit code 3 if anything differs."""
    from cadiff.errors import DataError
    from cadiff.launch.view import View
    from cadiff.shards.verify import examine, glance

    if quick:
        checked = glance(Path(existing(folder, local=True)))
    else:
        with View().task("verify") as task:
            checked = examine(Path(existing(folder, local=True)), progress=task.advance)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "quick": quick, **vars(checked)}, indent=1))
        raise typer.Exit(DataError.exit_code if checked.problems else 0)
    if checked.problems:
        raise DataError(shards_edit.joined(checked.problems))
    read = f"{checked.files:,} files, {checked.bytes:,} bytes"
    if quick:
        typer.echo(f"{folder}: sizes and index are as packed ({read} read; shards were not)")
        return
    parts = f"{checked.blocks:,} blocks of {checked.rows:,} samples, {checked.pictures:,} pictures"
    typer.echo(f"{folder}: every byte is as packed ({read}: {parts})")
