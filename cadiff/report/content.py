"""What a report is made of, and how a run folder is read for it, finished or not."""

from __future__ import annotations

import json
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.exports import export_hash
from cadiff.files import read_json


@dataclass(frozen=True)
class RunRecord:
    """One run folder as far as it exists; ``problems`` says what is missing, in words for the reader."""

    name: str
    phase: str
    toml: str = ""
    history: list[dict[str, float]] = field(default_factory=list)  # the lines of metrics.jsonl
    summary: dict[str, Any] = field(default_factory=dict)
    preview: dict[str, np.ndarray] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    card_hash: str = ""  # what cadiff.exports.export_hash says of export/card.json
    problems: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # the job flattened to section.key -> value


@dataclass(frozen=True)
class DataSource:
    """A packed dataset that runs read: the root of the lineage."""

    name: str
    hash: str
    about: str = ""


@dataclass(frozen=True)
class Pictures:
    """What the grid shows: uint8 stimuli (n, 3, S, S) and per method reconstructions (n, k, 3, S, S)."""

    truth: np.ndarray
    methods: dict[str, np.ndarray]
    names: list[str] = field(default_factory=list)  # one caption per row, such as the class


@dataclass(frozen=True)
class ReportContent:
    """Everything a report may show; whatever is empty is left out or said to be missing.

    Attributes:
        metrics: the result of ``cadiff.evaluate.evaluate``.
        ceiling: metric -> score of the best possible reconstruction, for example the decoded latent of the stimulus.
        sampling: facts about the sampling (seed, steps, scheduler), shown as a list.
        environment: heading -> {fact: value}: versions, devices, kernels, attention.
        notes: sentences the reader must know, shown with the conclusions.
    """

    title: str
    summary: str = ""
    metrics: dict[str, Any] | None = None
    pictures: Pictures | None = None
    runs: list[RunRecord] = field(default_factory=list)
    data: list[DataSource] = field(default_factory=list)
    ceiling: dict[str, float] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect_run(folder: str | Path) -> RunRecord:
    """Read a run folder; a part that is missing or damaged becomes a problem of the record, not an error.

    Raises:
        DataError: the folder holds neither job.toml nor metrics.jsonl, so it is no run at all.
    """
    folder, problems = Path(folder), []
    if not (folder / "job.toml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder}: no job.toml and no metrics.jsonl here, expected a run folder. Name one of those.")
    toml = _text(folder / "job.toml", problems)
    job = _job(toml, problems)
    summary = _json(folder / "summary.json", problems, "the run has not finished")
    card = _json(folder / "export" / "card.json", problems, "there is no finished export")
    return RunRecord(
        name=str(job.get("name", folder.name)),
        phase=str(job.get("phase", summary.get("phase", "unknown"))),
        toml=toml,
        history=_history(folder / "metrics.jsonl", problems),
        summary=summary,
        preview=_preview(folder / "preview.npz", problems),
        card=card,
        card_hash=export_hash(card) if card else "",
        problems=problems,
        settings=dict(_flattened(job)),
    )


def _flattened(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        problems.append(f"{path.name} is missing or unreadable.")
        return ""


def _job(toml: str, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(toml)
    except tomllib.TOMLDecodeError as problem:
        problems.append(f"job.toml is damaged: {problem}.")
        return {}


def _json(path: Path, problems: list[str], meaning: str) -> dict[str, Any]:
    if not path.is_file():
        problems.append(f"{path.name} is missing: {meaning}.")
        return {}
    try:
        value = read_json(path)
    except DataError:
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path.name} is damaged: {meaning}, or the file was cut.")
        return {}
    return value


def _history(path: Path, problems: list[str]) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for text in _text(path, problems).splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            problems.append(f"metrics.jsonl is cut after {len(lines)} lines.")
            break
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append({key: value for key, value in line.items() if isinstance(value, int | float)})
    return lines


def _preview(path: Path, problems: list[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        problems.append("preview.npz is missing: there is nothing to draw of this run's predictions.")
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError):
        problems.append("preview.npz is damaged and not drawn.")
        return {}
