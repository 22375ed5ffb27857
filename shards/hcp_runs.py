"""Find the runs of a study, in HCP's release folders, unzipped packages, a flat folder or one file, and what to drop.

File names of the HCP release: <run>_Atlas[_1.6mm][_MSMAll][_hp2000_clean].dtseries.nii, with runs such as
rfMRI_REST1_LR, tfMRI_WM_RL, rfMRI_REST1_7T_PA and tfMRI_MOVIE1_7T_AP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cadiff.errors import ConfigError

SUFFIX = ".dtseries.nii"
# When a run comes in several versions, the first of these that is there is taken; 1.6 mm files and others come last.
PREFERRED = (
    "_Atlas_MSMAll_hp2000_clean",
    "_Atlas_MSMAll_hp2000_clean_rclean_tclean",
    "_Atlas_MSMAll_hp0_clean_rclean_tclean",
    "_Atlas_MSMAll_hp0_clean",
    "_Atlas_hp2000_clean",
    "_Atlas_MSMAll",
    "_Atlas",
)
# Where runs lie below the root: a release, one subject's folder, packages that were unzipped each into its own folder.
_FOLDERS = ("*/MNINonLinear/Results/*/", "MNINonLinear/Results/*/", "*/*/MNINonLinear/Results/*/", "")


@dataclass(frozen=True)
class Run:
    """One acquisition: whose, which, when, and its file by full path and by name relative to the user's folder.

    ``session`` is "REST1" or "REST2" for HCP's resting runs, "3T" for its tasks, "7T", a BIDS session, or "".
    ``version`` is what follows the run in the file's name, such as "_Atlas_MSMAll_hp2000_clean".
    """

    subject: str
    run: str
    session: str
    version: str
    path: Path
    name: str
    bytes: int


@dataclass(frozen=True)
class Study:
    """The runs to pack, sorted by subject and run, and (what, why) of files and subjects that are left out."""

    runs: list[Run]
    dropped: list[tuple[str, str]]


def find_runs(
    root: Path,
    subjects: Sequence[str] | None = None,
    patterns: str | Sequence[str] | None = None,
    version: str | None = None,
    *,
    skip_absent: bool = False,
) -> Study:
    """Find dense time series, one version of each run.

    Args:
        subjects: only these; None takes all.
        patterns: runs to take, such as "rfMRI_REST*"; None takes all.
        version: which version of each run, a pattern such as "_Atlas_MSMAll_hp2000_clean" or "_Atlas*_clean"; runs
            without it are left out and reported. None takes the first of ``PREFERRED`` that is there.
        skip_absent: report subjects that are not there, or without runs, instead of stopping.

    Raises:
        ConfigError: nothing found, a subject that is not there, or one without runs.
    """
    files, dropped = _files(root)
    by_run: dict[tuple[str, str], list[Run]] = {}
    for path in files:
        if run := _name_run(root, path):
            by_run.setdefault((run.subject, run.run), []).append(run)
    wanted, people, runs = [patterns] if isinstance(patterns, str) else list(patterns or ["*"]), set(subjects or ()), []
    for (subject, name), versions in sorted(by_run.items()):
        if not any(fnmatchcase(name, pattern) for pattern in wanted) or (people and subject not in people):
            continue
        fitting = [run for run in versions if version is None or fnmatchcase(run.version, version)]
        if fitting:
            runs.append(min(fitting, key=_preference))
        else:
            there = ", ".join(run.version or "no ending" for run in versions)
            dropped.append((f"{subject}/{name}", f"no version {version} of this run, only {there}"))
    here = sorted({subject for subject, _ in by_run})
    if here and (strangers := sorted(people.difference(here))) and not (skip_absent and runs):
        raise _no_subject(root, strangers, here)
    if not runs:
        raise ConfigError(
            f"{root}: no run matches. Expected <subject>/MNINonLinear/Results/<run>/<run>_Atlas*{SUFFIX} or "
            f"<subject>_<run>_Atlas*{SUFFIX}; {len(by_run)} runs are there before choosing subjects, runs and version."
        )
    absent = sorted(people - {run.subject for run in runs})
    if absent and not skip_absent:
        more = f" and of {len(absent) - 1:,} others" if len(absent) > 1 else ""
        raise ConfigError(
            f"{root}: no runs of subject {absent[0]}{more}. Correct --subjects; --skip-bad packs those that are there."
        )
    return Study(runs, dropped + [(name, "no run of this subject is there") for name in absent])


def _no_subject(root: Path, strangers: list[str], here: list[str]) -> ConfigError:
    """What to say of subjects that have no run of any name here."""
    more = f", nor {len(strangers) - 1:,} others of those asked for" if len(strangers) > 1 else ""
    rest = f" and {len(here) - 5:,} more ({len(here):,} in all)" if len(here) > 5 else ""
    return ConfigError(
        f"{root}: no subject '{strangers[0]}' here{more}; there are {', '.join(here[:5])}{rest}. Correct --subjects; "
        "--skip-bad packs those that are there."
    )


def _files(root: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """Dense time series where runs are looked for, and a line for each other kind of file that is there."""
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. Give the HCP release folder, a flat folder or one {SUFFIX} file.")
    files, others = [], {}
    for path in sorted(path for folder in _FOLDERS for path in root.glob(f"{folder}*.nii*")):
        ending = re.search(r"\.[a-z]+\.nii(\.gz)?$", path.name)
        kind, why = ending[0] if ending else SUFFIX, f"only {SUFFIX} files are packed"
        if kind == SUFFIX and path.exists():
            files += [path] if ending else []
            continue
        if kind == SUFFIX:  # as in a clone of datalad, where contents are fetched one by one
            why = "links to contents that are not here; fetch them first"
        others.setdefault((kind, why), []).append(path.relative_to(root).as_posix())
    return files, [
        (f"*{kind}", f"{len(names):,} files skipped, first {names[0]}: {why}")
        for (kind, why), names in sorted(others.items())
    ]


def _name_run(root: Path, path: Path) -> Run | None:
    """What a file's place and name say; None for a file of a run's folder that is not named after the run."""
    relative = path.relative_to(root if root.is_dir() else path.parent)
    stem = path.name.removesuffix(SUFFIX)
    if len(relative.parts) > 1:
        whose, run = path.parents[3], path.parent.name
        subject = root.resolve().name if whose == root else whose.name
        if not stem.startswith(f"{run}_Atlas"):
            return None
        version = stem.removeprefix(run)
    else:
        subject, run, version = _flat_parts(stem)
    return Run(subject, run, _session(run), version, path, relative.as_posix(), path.stat().st_size)


def _flat_parts(stem: str) -> tuple[str, str, str]:
    """Subject, run and version of a flat name such as 100307_rfMRI_REST1_LR_Atlas_MSMAll or sub-X_task-rest_bold."""
    named, atlas, rest = stem.partition("_Atlas")
    subject, _, run = named.partition("_")
    return subject, run or "run", atlas + rest


def _session(run: str) -> str:
    if "_7T" in run:
        return "7T"
    if found := re.match(r"rfMRI_(REST\d+)_(?:LR|RL|AP|PA)$", run):
        return found[1]
    if re.match(r"[rt]fMRI_\w+_(?:LR|RL)$", run):  # phase-encoding left to right: HCP's 3T scanner only
        return "3T"
    found = re.search(r"(?:^|_)ses-([A-Za-z0-9]+)", run)
    return found[1] if found else ""


def _preference(run: Run) -> tuple[int, str]:
    place = PREFERRED.index(run.version) if run.version in PREFERRED else len(PREFERRED)
    return place, run.name
