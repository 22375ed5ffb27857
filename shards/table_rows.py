"""The table behind ``pack_table``: its columns, its rows, and the files that they name."""

from __future__ import annotations

import csv
import difflib
import itertools
import os
from pathlib import Path
from typing import Any

from cadiff.errors import ConfigError, DataError
from cadiff.shards.table_frames import READ, stimulus_files

MAX_ROWS = 5_000_000  # a Parquet file may claim any number of rows in a few bytes
REQUIRED = ("file", "subject")
# Columns that name files, then all others.
FILES = (*READ, "image")
COLUMNS = (*FILES, "subject", "session", "run", "split", "key", "chunks", "label", "stimulus", "tr_s")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the table, .csv or .parquet: one dictionary per row, all COLUMNS present as text, empty where not given.

    Raises:
        ConfigError: no such table, an unknown column, a row without file or subject, or names that are not text.
        DataError: a file that a row names is not there.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, not a table. Give the .csv or .parquet file in it.")
    if not path.is_file():
        raise ConfigError(f"{path}: no such table. Give a .csv or .parquet file.")
    parquet = path.suffix.lower() == ".parquet"
    names, rows = _read_parquet(path) if parquet else _read_csv(path)
    filled = {
        f"{path}, {'row' if parquet else 'line'} {number}": {name: (row.get(name) or "").strip() for name in COLUMNS}
        for number, row in rows
    }
    for where, row in filled.items():
        if any(not row[name] for name in REQUIRED):
            raise ConfigError(f"{where}: columns file and subject must be filled in.")
    if not filled:
        raise ConfigError(f"{path}: no rows below the columns {', '.join(names)}. One row names one file.")
    _find_files(filled, path.parent)
    return list(filled.values())


def _find_files(rows: dict[str, dict[str, str]], folder: Path) -> None:
    """Look for every file that the rows name, before hours go into packing those before it."""
    seen: set[str] = set()
    for where, row in rows.items():
        for column in FILES:
            name = row[column]
            if name and name not in seen and not os.path.isfile(folder / name):
                raise DataError(
                    f"{where}, column {column}: {folder / name}: no such file. Correct the path, which is relative to "
                    "the table, or leave the row out."
                )
            seen.add(name)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and each row with the number of its line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            names = list(reader.fieldnames or ())
            _check_columns(path, names)
            return names, [(reader.line_num, dict(row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise ConfigError(f"{path}: not a readable CSV file ({problem}).") from None


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and each row with its number."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow. Run: pip install pyarrow, or save a CSV.") from None
    try:
        with ParquetFile(path) as file:
            _check_columns(path, list(file.schema_arrow.names))
            for field in file.schema_arrow:
                _check_type(path, field)
            if file.metadata.num_rows > MAX_ROWS:
                raise ConfigError(f"{path}: {file.metadata.num_rows:,} rows, at most {MAX_ROWS:,}. Pack it in parts.")
            columns = {name: file.read([name]).column(0).to_pylist() for name in file.schema_arrow.names}
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        raise ConfigError(f"{path}: not a readable Parquet file ({problem}). Write it again.") from None
    texts = {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in columns.items()}
    return list(texts), [(number, dict(zip(texts, row))) for number, row in enumerate(zip(*texts.values()), 1)]


def _check_type(path: Path, field: Any) -> None:
    """Names come from text or whole numbers: as a float, stimulus 1621127.019020 would be 1621127.01902."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if text or types.is_integer(kind) or types.is_null(kind) or (field.name == "tr_s" and types.is_floating(kind)):
        return
    why = (
        "a number with a point loses digits as a name (1621127.019020)" if types.is_floating(kind) else "it is no text"
    )
    raise ConfigError(f"{path}: column {field.name} is {field.type}: {why}. Store it as text (string).")


def _check_columns(path: Path, names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name or "", COLUMNS, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(COLUMNS)}."
            raise ConfigError(f"{path}: unknown column '{name}'. {hint}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: a column occurs twice among {', '.join(names)}. Remove one of them.")
    for name in REQUIRED:
        if name not in names:
            raise ConfigError(
                f"{path}: no column {name}; there are: {', '.join(names) or 'none'}. Add it to the table."
            )


def row_files(rows: list[dict[str, str]], folder: Path) -> dict[str, Path]:
    """Every file that the columns FILES name, by its text there: relative to the table's folder, or absolute."""
    return {row[column]: folder / row[column] for row in rows for column in FILES if row[column]}


def row_pictures(rows: list[dict[str, str]], folder: Path) -> dict[str, str]:
    """The picture of each stimulus that the table and its events name: a file called so, else the column image.

    Whether a sample shows it is known only when the frames have been read, so that it is not asked.
    """
    events = {name: stimulus_files(folder / name) for name in sorted({row["events"] for row in rows} - {""})}
    shown = itertools.chain(*(events.get(row["events"], [row["stimulus"] or row["image"]]) for row in rows))
    pictures = {name: name for name in shown if name and os.path.isfile(folder / name)}
    for row in rows:
        if row["image"] and row["stimulus"]:
            pictures.setdefault(row["stimulus"], row["image"])
    return pictures
