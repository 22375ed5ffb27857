"""Take parts of a packed folder as new packed folders; the values stay as they are stored, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import SPLITS, Progress, silent
from cadiff.shards.splits import held_out
from cadiff.shards.stored import StoredSet, copy_arrays, copy_pictures, copy_samples, open_stored, refuse_inside
from cadiff.shards.writer import Pack

UNITS = ("subject", "stimulus", "run")  # what ``keep_fraction`` may count


def keep_subjects(
    folder: str | Path, out: str | Path, subjects: Sequence[str], *, progress: Progress = silent
) -> dict[str, Any]:
    """Make ``out`` of these subjects' samples, in the set's own order.

    Returns:
        ``pack_folder``'s summary.

    Raises:
        ConfigError: an unknown subject, or ``out`` holds something else.
        DataError: the set is damaged.
    """
    stored = open_stored(folder)
    known = stored.names["subject"]
    if unknown := [name for name in subjects if name not in known]:
        raise ConfigError(f"{folder}: no subject '{unknown[0]}' here; there are {', '.join(known[:8]) or 'none'}.")
    keep_N = np.isin(stored.index.sample["subject"], [known.index(name) for name in subjects])
    return _make_part(stored, folder, out, keep_N, {"subjects": sorted(set(subjects))}, progress)


def keep_fraction(
    folder: str | Path,
    out: str | Path,
    fraction: float,
    by: str | None = None,
    seed: int = 0,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Make ``out`` of about ``fraction`` of each split's subjects, stimuli or runs, and all of their samples.

    Names are ranked by a keyed hash of ``seed``, so a larger fraction contains the smaller one, and of every split
    that has any, at least one is kept. Samples without a stimulus are left out where stimuli are counted. ``by`` is
    what the set is split by if it is not given: its ``split_by``, and "run" where that is the tail of each run.

    Raises:
        ConfigError: a fraction outside (0, 1), an unknown ``by``, or nothing of that kind in the set.
        DataError: the set is damaged.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction {fraction}: expected a number above 0 and below 1, such as 0.1.")
    if by not in (None, *UNITS):
        raise ConfigError(f"by '{by}': one of {', '.join(UNITS)}.")
    stored = open_stored(folder)
    if by is None:
        by = "run" if stored.manifest.split_by == "tail" else stored.manifest.split_by
    number_N, keep_N = _numbers(stored, by), np.zeros(len(stored.index.sample["split"]), dtype=bool)
    for split in range(len(SPLITS)):
        inside_N = (stored.index.sample["split"] == split) & (number_N >= 0)
        names = {_name(stored, by, number): number for number in np.unique(number_N[inside_N]).tolist()}
        chosen = held_out(names, fraction, seed) or set(names)
        keep_N |= inside_N & np.isin(number_N, [names[name] for name in chosen])
    if not keep_N.any():
        raise ConfigError(f"{folder}: no sample has a {by}. Choose another of {', '.join(UNITS)}.")
    return _make_part(stored, folder, out, keep_N, {"fraction": fraction, "by": by, "seed": seed}, progress)


def cut_by_split(folder: str | Path, out: str | Path, *, progress: Progress = silent) -> list[dict[str, Any]]:
    """Make ``out``/train, ``out``/val and ``out``/test, as far as there are such samples."""
    stored = open_stored(folder)
    _refuse_set(out)
    found = []
    with _no_empty_folder(Path(out)):
        for number, split in enumerate(SPLITS):
            keep_N = stored.index.sample["split"] == number
            if keep_N.any():
                found.append(_make_part(stored, folder, Path(out) / split, keep_N, {"split": split}, progress))
    return found


def cut_by_subject(
    folder: str | Path, out: str | Path, parts: int, *, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Make ``parts`` folders ``out``/set-0, … of as many successive subjects each: their numbers differ by at most 1.

    Raises:
        ConfigError: fewer subjects than parts.
        DataError: the set is damaged.
    """
    stored = open_stored(folder)
    names = stored.names["subject"]
    if not 2 <= parts <= len(names):
        raise ConfigError(f"into {parts}: {folder} has {len(names)} subjects; expected from 2 to {len(names)} parts.")
    _refuse_set(out)
    part_S = np.arange(len(names)) * parts // len(names)
    found = []
    with _no_empty_folder(Path(out)):
        for part in range(parts):
            keep_N = part_S[stored.index.sample["subject"]] == part
            name, choice = f"set-{part:0{len(str(parts - 1))}d}", {"part": part, "parts": parts}
            found.append(_make_part(stored, folder, Path(out) / name, keep_N, choice, progress))
    return found


@contextmanager
def _no_empty_folder(out: Path) -> Iterator[None]:
    """A failure before the first part is finished leaves no folder for the parts; finished parts stay."""
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty, or was never made
            out.rmdir()


def _make_part(
    stored: StoredSet,
    folder: str | Path,
    out: str | Path,
    keep_N: np.ndarray,
    choice: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Pack the chosen samples (bool, one entry per sample) with their pictures; class numbers stay as they are."""
    refuse_inside(folder, out)
    shown = stored.index.sample["stimulus"][keep_N]
    stimuli = np.unique(shown[shown >= 0])

    def lost_rows(block: int, samples: np.ndarray) -> None:
        raise DataError(f"{folder}: {len(samples)} samples of block {block} are damaged. Run `cadiff shards repair`.")

    def lost_picture(stimulus: int) -> None:
        name = stored.names["stimulus"][stimulus]
        raise DataError(f"{folder}: the picture of stimulus {name} is damaged. Run `cadiff shards repair`.")

    def fill(pack: Pack) -> None:
        pack.split_by = stored.manifest.split_by
        pack.declare("label", stored.names["label"])
        pack.declare("stimulus", [stored.names["stimulus"][number] for number in stimuli.tolist()])
        copy_samples(pack, stored, keep_N, lost_rows)
        copy_pictures(pack, stored, stimuli, lost_picture)
        copy_arrays(pack, stored)
        pack.dropped = [entry.model_dump() for entry in stored.manifest.dropped]
        if stored.manifest.scans:
            pack.drop(stored.manifest.scans.path, "archives of scans are not split")
        pack.notes = {"sets": [stored.provenance()]}

    options = {"split": {"of": stored.version, **choice}}
    sources = {"set/manifest.json": stored.manifest_path}
    how = {"dtype": stored.manifest.dtype, "fingerprints": stored.source}
    return pack_folder(out, stored.manifest.kind, options, sources, fill, progress, **how)


def _numbers(stored: StoredSet, by: str) -> np.ndarray:
    """int64 (N,): the number of each sample's subject, stimulus, or subject and run; -1 if it has none."""
    number_N = stored.index.sample[by].astype(np.int64)
    if by != "run":
        return number_N
    return np.where(number_N < 0, -1, stored.index.sample["subject"] * len(stored.names["run"]) + number_N)


def _name(stored: StoredSet, by: str, number: int) -> str:
    if by != "run":
        return stored.names[by][number]
    subject, run = divmod(number, len(stored.names["run"]))
    return f"{stored.names['subject'][subject]}/{stored.names['run'][run]}"


def _refuse_set(out: str | Path) -> None:
    if (Path(out) / "manifest.json").exists():
        raise ConfigError(f"{out}: is a packed folder itself. Name another folder, to hold the parts.")
