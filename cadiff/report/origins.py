"""The sections that let someone else repeat the work: lineage of every checkpoint, configuration, environment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cadiff.report.content import ReportContent, RunRecord
from cadiff.report.html import Html, facts, join, table, tag


def lineage(content: ReportContent) -> Html:
    """Which data and which earlier export each export was made from, by hash."""
    known_runs = {run.card_hash: run.name for run in content.runs if run.card_hash}
    known_data = {source.hash: source.name for source in content.data}
    rows = []
    for source in content.data:
        rows.append([source.name, tag("span", source.about or "packed shards", class_="text"), "", short(source.hash)])
    for run in content.runs:
        told = run.card.get("lineage", {})
        parents = told.get("parents", {}) if isinstance(told, dict) else {}
        hashes = told.get("data", []) if isinstance(told, dict) else []
        data = _listed((known_data.get(hash_), hash_) for hash_ in hashes)
        init = _listed((known_runs.get(hash_), hash_) for hash_ in parents.values())
        rows.append([run.name, data or "not recorded", init or "fresh weights" if run.card else "not recorded",
                     short(run.card_hash) if run.card_hash else "no export"])  # fmt: skip
    about = (
        "Each export's card holds the hashes of its weights, of the data manifests and of the exports it started from, "
        "so the hash of the last one fixes the whole chain. A hash without a name is of something outside this page."
    )
    weights = [_weights(run) for run in content.runs if run.card]
    head = ["Made", "From data", "Starting from", "Hash (SHA-256)"]
    parts: list[Any] = [tag("h2", "Lineage"), tag("p", about), table("Hash chain from shards to exports", head, rows)]
    if weights:
        parts.append(tag("details", tag("summary", "Full hashes of all weights"), *weights))
    return join(parts)


def short(hash_: str) -> Html:
    return tag("code", hash_[:12], title=hash_)


def _listed(pairs: Iterable[tuple[str | None, str]]) -> Html:
    return join((join([f"{name} " if name else "", short(hash_)]) for name, hash_ in pairs), between=", ")


def _weights(run: RunRecord) -> Html:
    parts = run.card.get("parts", {})
    named = [("export", tag("code", run.card_hash))]
    named += [(f"{name}.safetensors", tag("code", str(part.get("sha256", "")))) for name, part in parts.items()]
    return join([tag("h3", run.name), facts(named)])


def configuration(runs: list[RunRecord]) -> Html:
    """Each job as it ran, defaults included."""
    boxes = [
        tag("details", tag("summary", f"{run.name} ({run.phase})"), tag("pre", run.toml or "job.toml is missing."))
        for run in runs
    ]
    about = tag(
        "p", "Every key with the value that was used; with the data of the lineage these files repeat the runs."
    )
    return join([tag("h2", "Configuration"), about, *_changed_keys(runs), *boxes])


def _changed_keys(runs: list[RunRecord]) -> list[Html]:
    """For each phase with several runs: the keys whose values are not the same in all of them."""
    tables = []
    for phase in dict.fromkeys(run.phase for run in runs):
        alike = [run for run in runs if run.phase == phase and run.settings]
        keys = list(dict.fromkeys(key for run in alike for key in run.settings))
        rows = [[tag("code", key), *(str(run.settings.get(key, "not set")) for run in alike)] for key in keys]
        differing = [row for row in rows if len(set(row[1:])) > 1]
        if differing:
            tables.append(table(f"Where the {phase} runs differ", ["Key", *(run.name for run in alike)], differing))
    return tables


def environment(content: ReportContent) -> Html:
    """Where it ran: what was passed in, what the runs say of themselves, and how pictures were sampled."""
    groups = dict(content.environment)
    for run in content.runs:
        told = {key: run.summary[key] for key in ("device", "kernels", "attention") if key in run.summary}
        same = next((name for name, known in groups.items() if known == told), None)
        if same is not None:
            groups[f"{same}, {run.name}"] = groups.pop(same)
        elif told:
            groups[f"Training: {run.name}"] = told
    if content.sampling:
        groups["Sampling"] = content.sampling
    parts = [join([tag("h3", name), facts((key, _plain(value)) for key, value in told.items())])
             for name, told in groups.items()]  # fmt: skip
    return join([tag("h2", "Environment"), *(parts or [tag("p", "Not recorded.", class_="quiet")])])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return json.dumps(value) if isinstance(value, list) else str(value)
