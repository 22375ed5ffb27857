"""Splits that leak are refused: a stimulus, a picture, a run, a subject or a family on two sides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.index import Index
from cadiff.shards.manifest import Manifest
from cadiff.shards.record import SPLITS

_FEW_ROWS, _FEW_PARTS = 16, 0.1  # so many rows in common, and such a part of a split, are no chance


def find_leak(index: Index, manifest: Manifest) -> str | None:
    """The first leak of a packed set, in words, or None.

    A stimulus id, a picture's content and, but for a few, a row may occur in one split only, whatever ``split_by``
    says. Runs, and subjects with their families, are kept apart where ``split_by`` says that they decide the split.
    """
    split_N, stimulus_N = index.sample["split"], index.sample["stimulus"]
    shown = stimulus_N >= 0
    if (number := _on_two_sides(stimulus_N[shown], split_N[shown])) is not None:
        return f"stimulus {manifest.stimuli[number]} is in {_sides(split_N[stimulus_N == number])}"
    stored_S = index.image["shard"] >= 0
    seen = np.flatnonzero(shown)[stored_S[stimulus_N[shown]]]
    digests, picture_of_stimulus = np.unique(index.image["digest"], return_inverse=True)
    if len(digests) and (number := _on_two_sides(picture_of_stimulus[stimulus_N[seen]], split_N[seen])) is not None:
        same = seen[picture_of_stimulus[stimulus_N[seen]] == number]
        names = sorted({manifest.stimuli[i] for i in stimulus_N[same].tolist()})
        return f"stimuli {' and '.join(names[:2])} are one picture, in {_sides(split_N[same])}"
    subject_N = index.sample["subject"]
    people = subject_N >= 0
    if told := _same_rows(index.sample["crc32c"][people], split_N[people]):
        return told
    if manifest.split_by in ("subject", "run"):
        runs = subject_N.astype(np.int64) * (len(manifest.runs) + 1) + index.sample["run"]
        if (number := _on_two_sides(runs[people], split_N[people])) is not None:
            subject, run = divmod(number, len(manifest.runs) + 1)
            named = f"run {manifest.runs[run]} of subject {manifest.subjects[subject].name}"
            return f"{named} is in {_sides(split_N[runs == number])}"
    if manifest.split_by == "subject":
        names = {subject.family or f"\0{subject.name}": 0 for subject in manifest.subjects}
        families = {name: number for number, name in enumerate(names)}
        family_of = np.array([families[s.family or f"\0{s.name}"] for s in manifest.subjects] or [0])
        family_N = family_of[np.maximum(subject_N, 0)]
        if (number := _on_two_sides(family_N[people], split_N[people])) is not None:
            members = [s.name for s, family in zip(manifest.subjects, family_of.tolist()) if family == number]
            which = f"family of subjects {', '.join(members[:3])}" if len(members) > 1 else f"subject {members[0]}"
            return f"{which} is in {_sides(split_N[people & (family_N == number)])}"
    return None


def _same_rows(crc_N: np.ndarray, split_N: np.ndarray) -> str | None:
    """Whether one split's rows are largely another's, stored under other names: then it is the same recording twice.

    A few are no proof: checksums of 32 bits meet by chance, and rows of few or constant values are alike.
    """
    rows_of = {SPLITS[split]: np.unique(crc_N[split_N == split]) for split in np.unique(split_N).tolist()}
    for one, other in itertools.combinations(sorted(rows_of, key=lambda split: len(rows_of[split])), 2):
        shared = len(np.intersect1d(rows_of[one], rows_of[other], assume_unique=True))
        if shared >= max(_FEW_ROWS, _FEW_PARTS * len(rows_of[one])):
            return f"{shared:,} of {len(rows_of[one]):,} rows of {one} are in {other} too: the same recordings twice"
    return None


def refuse_leaks_between(datasets: Sequence[Any]) -> None:
    """Refuse sets that are used together and leak into each other, or are one set twice.

    One stimulus id means one stimulus unless both sets have pictures of it that differ. Subjects count where both sets
    are split by subject, runs where both keep runs whole.

    Raises:
        ConfigError: the same data twice. DataError: a stimulus, picture, run, subject or family on two sides.
    """
    for number, ds in enumerate(datasets):
        for other in datasets[:number]:
            if ds.hash == other.hash:
                raise ConfigError(
                    f"data.shards: {ds.folder} is listed twice, or is a copy of another. List each set once."
                )
            if told := _same_rows(*_rows_of_both(other, ds)):
                raise DataError(
                    f"{other.folder} and {ds.folder}: {told}. Used together, no score on them means anything; pack "
                    "them with the same splits."
                )
            for what in ("stimulus", "picture", "run", "subject", "family"):
                here, there = _sides_of(ds, what), _sides_of(other, what)
                for name in sorted(here.keys() & there.keys()):
                    if len(here[name] | there[name]) > 1 and not (what == "stimulus" and _differ(ds, other, name)):
                        raise DataError(
                            f"{other.folder} and {ds.folder}: {what} {name} is in {' and '.join(sorted(there[name]))} "
                            f"of one and in {' and '.join(sorted(here[name]))} of the other. Used together, no score "
                            "on them means anything; pack them with the same splits."
                        )


def _rows_of_both(*sets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checksums and splits of the rows of two sets together, as they are stored; none if they are stored otherwise."""
    if len({ds.manifest["dtype"] for ds in sets}) > 1:
        return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
    people = [ds.table.subject >= 0 for ds in sets]
    crcs = [ds.table.crc32c[mine] for ds, mine in zip(sets, people)]
    return np.concatenate(crcs), np.concatenate([ds.table.split[mine] for ds, mine in zip(sets, people)])


def _sides_of(ds: Any, what: str) -> dict[str, set[str]]:
    """Name -> the splits it is in, for what this set keeps apart."""
    table, promise = ds.table, ds.manifest["split_by"]
    people = ds.manifest["subjects"]
    if what in ("stimulus", "picture"):
        numbers, names = table.stimulus, ds.stimuli
        if what == "picture":
            names = [str(d) if has else "" for d, has in zip(ds.pictures.digest.tolist(), ds.has_picture)]
    elif what == "run":
        numbers = np.where(table.subject < 0, -1, table.subject.astype(np.int64) * len(ds.runs) + table.run)
        names = [f"{person['name']} {run}" for person in people for run in ds.runs]
        names = names if promise in ("subject", "run") else [""] * len(names)
    else:
        numbers, names = table.subject, [person["name" if what == "subject" else "family"] for person in people]
        names = names if promise == "subject" else [""] * len(names)
    sides: dict[str, set[str]] = {}
    for pair in np.unique(numbers.astype(np.int64) * len(SPLITS) + table.split).tolist():
        number, split = divmod(pair, len(SPLITS))
        if number >= 0 and names[number]:
            sides.setdefault(names[number], set()).add(SPLITS[split])
    return sides


def _differ(one: Any, other: Any, stimulus: str) -> bool:
    """Whether both sets have pictures under this id, and they are not the same: then it names two things."""
    places = [(ds, ds.stimuli.index(stimulus)) for ds in (one, other)]
    if not all(ds.has_picture[i] for ds, i in places):
        return False
    return len({int(ds.pictures.digest[i]) for ds, i in places}) == 2


def _on_two_sides(numbers: np.ndarray, split_N: np.ndarray) -> int | None:
    """The first number that occurs with two splits."""
    pairs = np.unique(numbers.astype(np.int64) * len(SPLITS) + split_N)
    twice = pairs[1:][pairs[1:] // len(SPLITS) == pairs[:-1] // len(SPLITS)]
    return int(twice[0] // len(SPLITS)) if len(twice) else None


def _sides(split_N: np.ndarray) -> str:
    return " and ".join(SPLITS[i] for i in np.unique(split_N).tolist())
