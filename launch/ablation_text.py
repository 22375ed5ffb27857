"""An ablation's table in words: on the terminal and in Markdown, with notes that say what its numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NONE = "not yet run"


def print_table(told: dict[str, Any]) -> None:
    """Print the table to stdout."""
    from rich.console import Console
    from rich.table import Table

    head, rows = cells(told, "\n")
    shown = Table(title=told["name"], title_justify="left", caption="\n".join(notes(told)), caption_justify="left")
    for position, heading in enumerate(head):
        shown.add_column(heading, justify="right" if position else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 60 + 32 * len(head)  # a file has no edge to fold at
    console.print(shown)


def markdown(told: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [f"# Ablation {told['name']}", *notes(told), _pipes(*cells(told, " "))]
    if keys := setting_keys(told):
        parts += ["## Settings that differ", _pipes(["row", *keys], setting_rows(told, keys))]
    if failed := failures(told):
        parts += ["## Failed", "\n".join(f"- {name}: {' '.join(text.split())}" for name, text in failed)]
    return "\n\n".join(parts) + "\n"


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def cells(told: dict[str, Any], between: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table as text: each figure, its difference to the reference, the published figure."""
    head, rows = ["row", "seeds"], []
    for name in told["figures"]:
        head += [heading(told, name), *([f"minus {told['reference']}"] if told["reference"] else [])]
    head += ["published"] if told["published"] else []
    for row in told["rows"]:
        line = [row["label"], f"{len(row['finished'])}/{len(told['seeds'])}"]
        for name in told["figures"]:
            entry = row["figures"][name]
            line.append(value_text(entry, between, finished=bool(row["finished"])))
            if told["reference"]:
                other = entry.get("minus_reference")
                line.append(difference_text(other, told["better"], between) if other else "")
        if told["published"]:
            line.append("" if row["published"] is None else f"{row['published']:g}")
        rows.append(line)
    return head, rows


def heading(told: dict[str, Any], name: str) -> str:
    """A figure's name, and what guessing scores where that is known."""
    return f"{name} (chance {told['chance'][name]:.3g})" if name in told["chance"] else name


def value_text(entry: dict[str, Any], between: str, *, finished: bool) -> str:
    if entry["value"] is None:
        return "not reported" if finished else NONE
    return f"{entry['value']:.4g}{_range(entry, between, '.4g')}"


def difference_text(entry: dict[str, Any], better: str, between: str) -> str:
    if entry["value"] is None:
        return ""
    return f"{entry['value']:+.3g}{_range(entry, between, '+.3g')}{_mark(entry, better, between)}"


def _range(entry: dict[str, Any], between: str, form: str) -> str:
    return "" if entry["low"] is None else f"{between}[{entry['low']:{form}}, {entry['high']:{form}}]"


def verdict(entry: dict[str, Any], better: str) -> str:
    """``better`` or ``worse`` where the interval of a difference leaves out 0, else nothing."""
    if entry["low"] is None or entry["low"] <= 0 <= entry["high"]:
        return ""
    return "better" if (entry["value"] > 0) == (better == "higher") else "worse"


def _mark(entry: dict[str, Any], better: str, between: str) -> str:
    said = verdict(entry, better)
    return f"{between}{said}" if said else ""


def notes(told: dict[str, Any]) -> list[str]:
    """What the numbers are."""
    hows = sorted(
        {
            row["figures"][name]["interval"]
            for row in told["rows"]
            for name in told["figures"]
            if row["figures"][name]["value"] is not None
        }
    )
    out = [f"Means over seeds {', '.join(map(str, told['seeds']))}; {told['better']} is better."]
    if hows:
        out[0] += f" 95 % intervals: {'; '.join(hows)}."
    if told["reference"]:
        differences = [entry.get("minus_reference") for row in told["rows"] for entry in row["figures"].values()]
        count = sum(one is not None and one["low"] is not None for one in differences)
        out.append(
            f"Differences to {told['reference']} are paired; better and worse are said where the interval leaves out "
            f"0. Of {count} such comparisons, one in twenty would look so by chance alone."
        )
    if published := told["published"]:
        out.append(f"Published: {published['figure']}. Source: {published['source']}. {published['note']}".strip())
    return out


def failures(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{row['id']}/seed{seed}", text) for row in told["rows"] for seed, text in row["failed"].items()
    ]  # fmt: skip


def setting_keys(told: dict[str, Any]) -> list[str]:
    return list(told["rows"][0]["settings"])


def setting_rows(told: dict[str, Any], keys: list[str]) -> list[list[str]]:
    return [[row["label"], *(_plain(row["settings"][key]) for key in keys)] for row in told["rows"]]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'
