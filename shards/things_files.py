"""The files of THINGS-fMRI's single-trial responses in table format: where they lie, and what was shown when.

Two releases hold the same tables: figshare's folder betas_csv, and derivatives/ICA-betas of OpenNeuro ds004192, whose
.tsv files are separated by commas.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from cadiff.errors import ConfigError, DataError

_FIGSHARE = {
    "responses": "{0}_ResponseData.h5",
    "trials": "{0}_StimulusMetadata.csv",
    "voxels": "{0}_VoxelMetadata.csv",
}
_OPENNEURO = {
    "responses": "{0}/voxel-metadata/{0}_task-things_voxel-wise-responses.h5",
    "trials": "{0}/voxel-metadata/{0}_task-things_stimulus-metadata.tsv",
    "voxels": "{0}/voxel-metadata/{0}_task-things_voxel-metadata.tsv",
}
LAYOUTS = [(place, _FIGSHARE) for place in (".", "betas_csv", "derivatives/betas_csv")]
LAYOUTS += [(place, _OPENNEURO) for place in (".", "ICA-betas", "derivatives/ICA-betas")]


@dataclass(frozen=True)
class Trials:
    """What was shown, trial by trial, in the order of the responses' columns: lists of N entries."""

    tested: list[bool]
    session: list[str]
    run: list[str]
    stimulus: list[str]
    concept: list[str]

    def __len__(self) -> int:
        return len(self.tested)

    def names(self, tested: bool) -> dict[str, None]:
        """The distinct test, or training, stimuli in order of appearance."""
        return dict.fromkeys(name for name, flag in zip(self.stimulus, self.tested) if flag == tested)


def find_subjects(root: Path) -> dict[str, dict[str, Path]]:
    """Subjects ("sub-01") whose responses lie below ``root``, with their three files.

    Raises:
        ConfigError: none, or a subject's metadata are missing.
    """
    for place, layout in LAYOUTS:
        found = sorted((root / place).glob(layout["responses"].format("sub-*")))
        if found:
            names = [path.name.partition("_")[0] for path in found]
            files = {name: {k: root / place / text.format(name) for k, text in layout.items()} for name in names}
            lost = [path for parts in files.values() for path in parts.values() if not path.is_file()]
            if lost:
                raise ConfigError(f"{lost[0]}: missing. A subject needs its responses and both tables of metadata.")
            return files
    raise ConfigError(f"{root}: no sub-<k>_ResponseData.h5 here nor in betas_csv. Give the folder that holds them.")


def read_trials(path: Path) -> Trials:
    """Read the table of trials.

    Raises:
        DataError: a missing column, a value that is not what the column says, or numbers that do not fit together.
    """
    columns: tuple[list, ...] = ([], [], [], [], [])
    with open_table(path, ("trial_type", "session", "run", "stimulus")) as (place, lines):
        for line, row in lines:
            cell = {name: row[at] for name, at in place.items()}
            where = f"{path}, line {line}"
            if cell["trial_type"] not in ("train", "test"):
                raise DataError(f"{where}: trial_type '{cell['trial_type'][:40]}', expected train or test.")
            if cell.get("trial_id", str(line - 2)) != str(line - 2):
                raise DataError(
                    f"{where}: trial_id {cell['trial_id'][:40]}, expected {line - 2}: the responses pair with these "
                    "lines by their order. Restore the order of the release."
                )
            session, run = (whole_number(cell[name], f"{where}: {name}") for name in ("session", "run"))
            stimulus = _file_name(cell["stimulus"], f"{where}: stimulus")
            concept = _file_name(cell.get("concept") or stimulus.rpartition("_")[0], f"{where}: concept")
            told = (cell["trial_type"] == "test", f"ses-{session:02d}", f"ses-{session:02d}_run-{run:02d}")
            for column, value in zip(columns, (*told, stimulus, concept)):
                column.append(value)
    trials = Trials(*columns)
    _check_trials(trials, path)
    return trials


def _check_trials(trials: Trials, path: Path) -> None:
    tested, trained = trials.names(True), trials.names(False)
    if not tested or not trained:
        raise DataError(f"{path}: {len(trained)} training and {len(tested)} test stimuli; both are needed.")
    if both := [name for name in tested if name in trained]:
        raise DataError(f"{path}: {both[0]} is a training and a test stimulus. A stimulus has one trial_type.")
    shown: dict[str, int] = dict.fromkeys(tested, 0)
    for name in trials.stimulus:
        if name in shown:
            shown[name] += 1
    if len(set(shown.values())) > 1:
        few, many = min(shown, key=shown.__getitem__), max(shown, key=shown.__getitem__)
        raise DataError(
            f"{path}: test stimulus {few} is shown {shown[few]} times and {many} {shown[many]} times; every test "
            "stimulus has the same number of repeats. Are trials missing?"
        )
    concepts: dict[str, str] = {}
    for name, concept in zip(trials.stimulus, trials.concept):
        if concepts.setdefault(name, concept) != concept:
            raise DataError(f"{path}: {name} shows '{concepts[name]}' and '{concept}'; a stimulus has one concept.")


@contextmanager
def open_table(path: Path, required: Iterable[str]) -> Iterator[tuple[dict[str, int], Any]]:
    """Column name -> place, and (line number, cells) of each line; separated by tabs where the first line has any."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            first = handle.readline(1_000_000)
            mark = "\t" if "\t" in first else ","
            names = next(csv.reader([first], delimiter=mark), [])
            if missing := [name for name in required if name not in names]:
                raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)[:200] or 'none'}.")
            yield {name: at for at, name in enumerate(names)}, _lines(handle, mark, len(names), path)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path}: not a readable table ({problem}). Download it again.") from None


def _lines(handle: Any, mark: str, count: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(csv.reader(handle, delimiter=mark), 2):
        if len(row) != count:
            raise DataError(f"{path}, line {line}: {len(row)} cells for {count} columns. Download the file again.")
        yield line, row


def whole_number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DataError(f"{where}: '{text[:40]}', expected a whole number from 0.")
    return int(text)


def _file_name(text: str, where: str) -> str:
    """Text that names a file or folder, not a way out of the pictures' folder."""
    if not text or text in (".", "..") or "\\" in text or PurePath(text).name != text:
        raise DataError(f"{where}: '{text[:60]}', expected a plain file name.")
    return text
