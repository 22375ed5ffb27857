"""Pack CIFTI dense time series (HCP and alike): z-score each run, archive it, average windows, write blocks.

The order of steps is the paper's: z-score per grayordinate over a run's time, mean over windows of frames, one z-score
with a scalar mean and deviation per subject. Shapes: T frames, V grayordinates of the ROI, N windows.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.cifti import locate, read_columns, read_header
from cadiff.shards.mmp import area_columns, roi_columns
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, make_records, silent
from cadiff.shards.splits import held_out, held_tail
from cadiff.shards.voxels import PAPER_WINDOW, scalar_stats, window_average, zscore_run
from cadiff.shards.writer import Pack
from cadiff.shards.zarr_store import ScanWriter

log = logging.getLogger(__name__)

SUFFIX = ".dtseries.nii"
# When a run comes in several versions, the first of these that is there is taken.
PREFERRED = ("_Atlas_MSMAll_hp2000_clean", "_Atlas_MSMAll_hp0_clean", "_Atlas_hp2000_clean", "_Atlas_MSMAll", "_Atlas")


@dataclass(frozen=True)
class Run:
    """One acquisition: whose, which, and its file by full path and by name relative to the user's folder."""

    subject: str
    run: str
    path: Path
    name: str


def pack_hcp(
    root: str | Path,
    out: str | Path,
    *,
    roi: str | list[str] = "VC",
    window: int = PAPER_WINDOW,
    subjects: Sequence[str] | None = None,
    runs: str | Sequence[str] | None = None,
    val_fraction: float = 0.05,
    split_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack runs of dense time series. Memory: one subject's windows and one run's frames.

    Args:
        root: an HCP release (<subject>/MNINonLinear/Results/<run>/), a flat folder, or one .dtseries.nii.
        roi: "VC" (V1 to V4, 4,183 grayordinates), "cortex", "all", or MMP area names.
        window: frames averaged into one sample; frames left at a run's end are dropped.
        runs: patterns such as "rfMRI_REST*"; None takes all.
        val_fraction: part of the subjects held out; with one subject, the last part of each run.
        skip_bad: leave out damaged and too short runs and report them, instead of stopping.

    Raises:
        ConfigError: no runs found, an unknown subject or area.
        DataError: a run that cannot be used, named.
    """
    found = find_runs(Path(root), subjects, runs)
    columns_V = roi_columns(roi)
    if window < 1:
        raise ConfigError(f"window = {window}: a window has at least 1 frame.")
    names = sorted({run.subject for run in found})
    held = held_out(names, val_fraction, split_seed)
    options = {
        "roi": roi,
        "window": window,
        "subjects": sorted(subjects) if subjects else None,
        "runs": runs if runs is None or isinstance(runs, str) else sorted(runs),
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "skip_bad": skip_bad,
    }

    def fill(pack: Pack) -> None:
        scans = ScanWriter(pack.folder / "scans.zarr")
        pack.rois("*", area_columns(roi, columns_V))
        pack.extra("grayordinates", columns_V)
        for name in names:
            mine = [run for run in found if run.subject == name]
            tail = val_fraction if len(names) == 1 else 0.0
            _pack_subject(pack, scans, mine, columns_V, window, "val" if name in held else "train", tail, skip_bad)
        pack.scans = scans.describe()

    return pack_folder(out, "hcp", options, {run.name: run.path for run in found}, fill, progress)


def find_runs(root: Path, subjects: Sequence[str] | None, patterns: str | Sequence[str] | None) -> list[Run]:
    """Find dense time series, one version of each run, sorted by subject and run.

    Raises:
        ConfigError: nothing found, or a subject without runs.
    """
    if root.is_file():
        return [Run(*_name_parts(root.name), root, root.name)]
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. Give the HCP release folder, a flat folder or one {SUFFIX} file.")
    by_run: dict[tuple[str, str], list[Path]] = {}
    for path in sorted([*root.glob(f"*/MNINonLinear/Results/*/*{SUFFIX}"), *root.glob(f"*{SUFFIX}")]):
        nested = path.parent != root
        parts = (path.relative_to(root).parts[0], path.parent.name) if nested else _name_parts(path.name)
        if not nested or path.name.startswith(f"{parts[1]}_Atlas"):
            by_run.setdefault(parts, []).append(path)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns or ["*"])
    runs = []
    for (subject, run), paths in sorted(by_run.items()):
        if any(fnmatchcase(run, pattern) for pattern in wanted) and (not subjects or subject in subjects):
            path = min(paths, key=_preference)
            runs.append(Run(subject, run, path, path.relative_to(root).as_posix()))
    if not runs:
        raise ConfigError(
            f"{root}: no run matches. Expected <subject>/MNINonLinear/Results/<run>/<run>_Atlas*{SUFFIX} or "
            f"<subject>_<run>_Atlas*{SUFFIX}; {len(by_run)} runs are there before choosing subjects and runs."
        )
    if lost := sorted(set(subjects or ()) - {run.subject for run in runs}):
        raise ConfigError(f"{root}: no runs of subject {lost[0]}. Correct --subjects or the folder.")
    return runs


def _name_parts(name: str) -> tuple[str, str]:
    """Subject and run of a flat file name: 100307_rfMRI_REST1_LR_Atlas_….dtseries.nii, sub-MSC01_….dtseries.nii."""
    stem = re.sub(r"_Atlas.*", "", name.removesuffix(SUFFIX))
    subject, _, run = stem.partition("_")
    return subject, run or "run"


def _preference(path: Path) -> tuple[int, str]:
    for place, version in enumerate(PREFERRED):
        if path.name.removesuffix(SUFFIX).endswith(version):
            return place, path.name
    return len(PREFERRED), path.name


def _pack_subject(
    pack: Pack,
    scans: ScanWriter,
    runs: list[Run],
    columns_V: np.ndarray,
    window: int,
    split: str,
    tail: float,
    skip_bad: bool,
) -> None:
    windows: dict[str, np.ndarray] = {}
    for run in runs:
        try:
            windows[run.run] = _read_windows(pack, scans, run, columns_V, window)
        except DataError as problem:
            if not skip_bad:
                raise
            log.warning("left out: %s", problem)
            pack.drop(run.name, str(problem).replace(str(run.path), run.path.name))
        pack.progress("packing runs", scans.count + len(pack.dropped), pack.source_count)
    if not windows:
        return
    late = {run: held_tail(len(values_NV), tail) for run, values_NV in windows.items()}
    stats = scalar_stats(
        np.concatenate([values_NV[: len(values_NV) - late[run]] for run, values_NV in windows.items()])
    )
    for run, values_NV in windows.items():
        splits = [split] * (len(values_NV) - late[run]) + ["val"] * late[run]
        pack.add(make_records(runs[0].subject, run, stats.apply(values_NV), splits))
    pack.stats(runs[0].subject, stats)


def _read_windows(pack: Pack, scans: ScanWriter, run: Run, columns_V: np.ndarray, window: int) -> np.ndarray:
    digest = pack.source(run.name)
    header = read_header(run.path)
    if header.frames < window:
        raise DataError(
            f"{run.path}: {header.frames} frames, fewer than one window of {window}. "
            "Use a smaller window, leave the run out with --runs, or skip bad runs."
        )
    frames_TV, flat = zscore_run(read_columns(header, locate(header, columns_V)))
    if len(flat) == len(columns_V):
        raise DataError(f"{run.path}: no grayordinate of the ROI varies over time. Is this a finished time series?")
    if len(flat):
        pack.notes.setdefault("flat_grayordinates", {})[f"{run.subject}/{run.run}"] = len(flat)
    columns_hash = hashlib.sha256(columns_V.astype("<i8").tobytes()).hexdigest()
    told = {"tr_s": header.tr_s, "source": run.name, "source_sha256": digest, "columns_sha256": columns_hash}
    scans.add(run.subject, run.run, frames_TV, told)
    pack.notes.setdefault("tr_s", {})[f"{run.subject}/{run.run}"] = header.tr_s
    return window_average(frames_TV, window)
