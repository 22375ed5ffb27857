"""Who goes where: lists of subjects, families that stay on one side, and splits that the user gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cadiff.errors import ConfigError
from cadiff.shards.record import SPLITS
from cadiff.shards.splits import held_out

_SUBJECT = ("subject", "subject_id", "participant_id")
_FAMILY, _PARENT = ("family_id", "family"), ("mother_id", "father_id")  # people with the same entry are related
_UNKNOWN = ("", "na", "n/a", "nan", "none", "null")
_UNKNOWN_PARENT = (*_UNKNOWN, "0", "-1")  # as pedigree files write it


@dataclass(frozen=True)
class Sides:
    """``split_of`` each subject; ``tail``, the part at the end of each run that is held out when nobody is; and the
    ``families`` of those whose family is known."""

    split_of: dict[str, str]
    tail: float
    families: dict[str, str]


def decide(
    subjects: Iterable[str],
    val_fraction: float,
    seed: int,
    families: Mapping[str, str] | None = None,
    given: Mapping[str, str] | None = None,
) -> Sides:
    """Choose the split of every subject: as given, or whole families held out, or, of one alone, the end of each run.

    Raises:
        ConfigError: a fraction out of range; a subject that ``given`` does not name, or a family that it divides;
            families of other people.
    """
    names = sorted(set(subjects))
    kin = {name: families[name] for name in names if families and name in families}
    if families and not kin:
        raise ConfigError(f"--families: not one of the {len(names):,} subjects, such as {names[0]}, is in the table.")
    unit_of = {name: kin.get(name, name) for name in names}
    held = held_out(unit_of.values(), val_fraction, seed)
    if given is None:
        split_of = {name: "val" if unit in held else "train" for name, unit in unit_of.items()}
        return Sides(split_of, val_fraction if len(set(unit_of.values())) == 1 else 0.0, kin)
    if lost := [name for name in names if name not in given]:
        raise ConfigError(
            f"--split: no line for subject {lost[0]}{f' and {len(lost) - 1:,} others' if len(lost) > 1 else ''}. Add "
            "them, or choose subjects with --subjects; it takes the same file."
        )
    first: dict[str, str] = {}
    for name, unit in unit_of.items():
        other = first.setdefault(unit, name)
        if given[name] != given[other]:
            raise ConfigError(
                f"--split: subjects {other} ({given[other]}) and {name} ({given[name]}) are one family by --families; "
                "a score on such a split would be worthless. Put them on one side."
            )
    return Sides({name: given[name] for name in names}, 0.0, kin)


def read_subjects(path: str | Path) -> list[str]:
    """Subjects of a text file, one a line: "100206", "PRE 100206/" as `aws s3 ls` prints it, or a CSV's first column.

    Raises:
        ConfigError: no such file, or no subject in it.
    """
    found = []
    for line in _text(path).splitlines():
        words = line.partition("#")[0].split(",")[0].split()
        name = words[-1].strip("\"'").rstrip("/") if words else ""
        if name and name.lower() not in _SUBJECT:
            found.append(name)
    if not found:
        raise ConfigError(f"{path}: no subjects in this file. Write one id on each line.")
    return list(dict.fromkeys(found))


def read_families(path: str | Path) -> dict[str, str]:
    """Relatives of a CSV: subject -> name of the family.

    Columns, in any case and order: Subject and at least one of Family_ID, Family, Mother_ID and Father_ID, as in HCP's
    restricted table. People who share any of these are one family, half-siblings too. A family is named after its
    first subject: HCP's own numbers of families are restricted data and stay out of the packed folder.

    Raises:
        ConfigError: not such a table.
    """
    rows = _rows(path)
    columns = [name for name in (*_FAMILY, *_PARENT) if name in rows[0]]
    if not columns:
        raise ConfigError(
            f"{path}: columns {', '.join(rows[0])}; expected Subject and Family_ID, Family, Mother_ID or Father_ID."
        )
    above: dict[str, str] = {}  # each name's way to the first subject of its family

    def top(name: str) -> str:
        while above[name] != name:
            name = above[name]
        return name

    first: dict[tuple[str, str], str] = {}
    subject_column = _subject_column(path, rows[0])
    people = sorted({row[subject_column] for row in rows})
    above.update((name, name) for name in people)
    for row in rows:
        for column in columns:
            if row[column].lower() not in (_UNKNOWN if column in _FAMILY else _UNKNOWN_PARENT):
                one, two = top(row[subject_column]), top(first.setdefault((column, row[column]), row[subject_column]))
                above[max(one, two)] = min(one, two)
    return {name: top(name) for name in people}


def read_split(path: str | Path) -> dict[str, str]:
    """Subject -> "train", "val" or "test", from a CSV with the columns subject and split.

    Raises:
        ConfigError: not such a table, an unknown split, or a subject with two.
    """
    rows = _rows(path)
    subject_column = _subject_column(path, rows[0])
    if "split" not in rows[0]:
        raise ConfigError(f"{path}: columns {', '.join(rows[0])}; expected subject and split.")
    given: dict[str, str] = {}
    for row in rows:
        name, split = row[subject_column], row["split"].lower()
        if split not in SPLITS:
            raise ConfigError(f"{path}: subject {name} has split '{row['split']}'; one of {', '.join(SPLITS)}.")
        if given.setdefault(name, split) != split:
            raise ConfigError(f"{path}: subject {name} is in {given[name]} and in {split}. Keep one line.")
    return given


def _subject_column(path: str | Path, row: Mapping[str, str]) -> str:
    for name in _SUBJECT:
        if name in row:
            return name
    raise ConfigError(f"{path}: columns {', '.join(row)}; expected one that is called Subject.")


def _rows(path: str | Path) -> list[dict[str, str]]:
    """Lines of a CSV by lower-case column names, without blanks around the values."""
    try:
        table = list(csv.reader(io.StringIO(_text(path), newline="")))
    except csv.Error as problem:
        raise ConfigError(f"{path}: not a readable CSV file ({problem}).") from None
    names = [name.strip().lower() for name in table[0]] if table else []
    rows = [dict(zip(names, (value.strip() for value in line))) for line in table[1:] if any(line)]
    if not rows or any(len(row) < len(names) for row in rows):
        raise ConfigError(
            f"{path}: no lines below the column names, or lines with fewer values than there are columns."
        )
    return rows


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: not a readable text file ({problem}).") from None
