"""Pack CIFTI dense time series (HCP and alike): z-score each run, archive it, average windows, write blocks.

The order of steps is the paper's: z-score per grayordinate over a run's time, mean over windows of frames, one z-score
with a scalar mean and deviation per subject. Shapes: T frames, V grayordinates of the ROI, N windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.encoding import ITEM_BYTES
from cadiff.shards.hcp_runs import Run, find_runs
from cadiff.shards.hcp_split import Sides, decide, read_families, read_split, read_subjects
from cadiff.shards.hcp_subject import Recipe, fingerprint_run, pack_subjects
from cadiff.shards.legacy import PATCH
from cadiff.shards.mmp import GRAYORDINATES, VISUAL, area_columns, roi_columns
from cadiff.shards.parallel import workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, safe_key, silent
from cadiff.shards.voxels import PAPER_WINDOW
from cadiff.shards.writer import Pack

# What the paper's code does: one resting run of each subject, areas one after the other, windows that use all frames.
PAPER = {"runs": "rfMRI_REST1_LR", "version": "_Atlas_MSMAll_hp2000_clean", "roi": "VC", "window": PAPER_WINDOW}
_PART_BYTES, _LEAST_BYTES, _PARTS = 256 * 10**6, 16 * 10**6, 32  # packed size of a part, and how many there should be


def pack_hcp(
    root: str | Path,
    out: str | Path,
    *,
    roi: str | list[str] = "VC",
    window: int = PAPER_WINDOW,
    subjects: Sequence[str] | str | Path | None = None,
    runs: str | Sequence[str] | None = None,
    version: str | None = None,
    preset: str | None = None,
    val_fraction: float = 0.05,
    split_seed: int = 0,
    families: str | Path | None = None,
    split: str | Path | None = None,
    dtype: str = "float16",
    scans: bool = True,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack runs of dense time series. Memory: one run's frames for each worker.

    Args:
        root: an HCP release (<subject>/MNINonLinear/Results/<run>/), a flat folder, or one .dtseries.nii.
        roi: "VC" (V1 to V4, 4,183 grayordinates), "cortex", "all", or MMP area names.
        window: frames averaged into one sample; frames left at a run's end are dropped.
        subjects: names, or a text file of them; None takes all.
        runs: patterns such as "rfMRI_REST*"; None takes all.
        version: which version of each run, a pattern such as "_Atlas_MSMAll"; None takes the cleanest.
        preset: "paper" does what the paper's code does (docs/data.md), with its own runs, version, roi and window.
        val_fraction: part of the families held out; with one subject, the last part of each run.
        families: CSV of relatives, such as HCP's restricted table; a family lies on one side of the split.
        split: CSV with the columns subject and split, instead of val_fraction.
        dtype: storage type of the signals: float16, float32, int16 or int8.
        scans: also keep every z-scored frame in scans.zarr.
        skip_bad: leave out runs that cannot be used, and subjects without runs, and report them.
        workers: processes; None takes every core if the chosen grayordinates of all runs exceed 1 GB (50 resting runs
            of V1 to V4). The result is the same.

    Raises:
        ConfigError: no runs found, an unknown subject, area or preset, or a split that divides a family.
        DataError: a run that cannot be used, named.
    """
    if preset is not None:
        if preset != "paper":
            raise ConfigError(f"preset '{preset}': the only one is paper.")
        if (runs, version, roi, window) != (None, None, "VC", PAPER_WINDOW):
            raise ConfigError("preset paper chooses runs, version, roi and window itself. Leave those options out.")
        runs, version, roi, window = (PAPER[name] for name in ("runs", "version", "roi", "window"))
    if window < 1:
        raise ConfigError(f"window = {window}: a window has at least 1 frame.")
    names = read_subjects(subjects) if isinstance(subjects, str | Path) else subjects
    study = find_runs(Path(root), names, runs, version, skip_absent=skip_bad)
    kin, given = (read_families(families) if families else None), (read_split(split) if split else None)
    sides = decide((run.subject for run in study.runs), val_fraction, split_seed, kin, given)
    if scans:
        _refuse_alike(study.runs)
    columns_V = np.concatenate([roi_columns(area) for area in VISUAL]) if preset else roi_columns(roi)
    given_files = {"families": families, "split": split}
    tables = {f"{role}:{Path(path).name}": Path(path) for role, path in given_files.items() if path}
    recipe = Recipe(
        columns_V=columns_V,
        window=window,
        windows="spread" if preset else "whole",
        legacy_pad=preset is not None,
        sides=sides,
        tables=tuple(tables),
        scans=scans,
        skip_bad=skip_bad,
    )
    options = {
        "roi": roi,
        "order": "area" if preset else "grayordinate",
        "window": window,
        "windows": recipe.windows,
        "patch": PATCH if preset else None,
        "legacy_pad": recipe.legacy_pad,
        "subjects": sorted(names) if names else None,
        "runs": runs if runs is None or isinstance(runs, str) else sorted(runs),
        "version": version,
        "preset": preset,
        "val_fraction": None if given else val_fraction,
        "split_seed": None if given else split_seed,
        "scans": scans,
        "skip_bad": skip_bad,
    }

    def fill(pack: Pack) -> None:
        for table in tables:
            pack.source(table)  # as read above: a part that finds another is refused
        _describe(pack, roi, recipe, study.runs)
        for what, why in study.dropped:
            pack.drop(what, why)

    each = 300 * 10**6 + 4 * max((run.bytes for run in study.runs), default=0) * len(columns_V) // GRAYORDINATES
    chosen = sum(run.bytes for run in study.runs) * len(columns_V) // GRAYORDINATES
    return pack_folder(
        out,
        "hcp",
        options,
        {run.name: run.path for run in study.runs} | tables,
        fill,
        progress,
        dtype=dtype,
        units=[bind(pack_subjects, recipe, part) for part in group_runs(study.runs, len(columns_V), window, dtype)],
        workers=workers_for(chosen, workers, each),
        fingerprints=bind(fingerprint_run, columns_V),
        after=bind(_refuse_nothing, Path(root), study.runs),
    )


def _refuse_alike(runs: list[Run]) -> None:
    """The archive's names have letters, digits, _ and - only; different runs must not become one."""
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for run in runs:
        for name in ((run.subject,), (run.subject, run.run)):
            other = first.setdefault(tuple(map(safe_key, name)), name)
            if other != name:
                raise ConfigError(
                    f"{'/'.join(other)} and {'/'.join(name)} would have one name in scans.zarr. Rename one, or use "
                    "--no-scans."
                )


def _describe(pack: Pack, roi: str | list[str], recipe: Recipe, runs: list[Run]) -> None:
    """What concerns the whole set: where the columns lie in the brain, who is related, which versions were there."""
    sides: Sides = recipe.sides
    pack.split_by = "tail" if sides.tail else "subject"
    pack.families |= sides.families
    pack.rois("*", area_columns(roi, recipe.columns_V))
    pack.space("*", recipe.columns_V)
    pack.notes["versions"] = dict(sorted(Counter(run.version for run in runs).items()))
    pack.notes["source_sha256"] = "of the bytes before the values, and of the chosen grayordinates in the file's order"
    if sides.families:
        pack.notes["families"] = {
            "families": len(set(sides.families.values())),
            "subjects": len(sides.families),
            "subjects_not_in_the_table": len(sides.split_of) - len(sides.families),
        }


def _refuse_nothing(root: Path, runs: list[Run], pack: Pack) -> None:
    """Stop where every run was left out, and say why."""
    if len(pack.sample["split"]):
        return
    why = {entry["what"]: entry["why"].removeprefix(f"{Path(entry['what']).name}: ") for entry in pack.dropped}
    if len(runs) == 1:
        raise DataError(f"{runs[0].path}: nothing was packed, as the only run is unusable: {why[runs[0].name]}")
    told = " ".join(f"{run.name}: {why[run.name]}" for run in runs[:3])
    more = f" (the first 3 of {len(runs):,})" if len(runs) > 3 else ""
    raise DataError(f"{root}: nothing was packed, as all {len(runs):,} runs are unusable{more}: {told}")


def group_runs(runs: list[Run], voxels: int, window: int, dtype: str) -> list[list[Run]]:
    """Whole subjects, in order, in 32 parts of 16 to 256 MB packed, or as many as that takes.

    It goes by the files' sizes alone, so that a pack that goes on after an interruption finds the same parts.
    """
    by_subject: dict[str, list[Run]] = {}
    for run in runs:
        by_subject.setdefault(run.subject, []).append(run)
    packed = voxels / GRAYORDINATES / window * ITEM_BYTES.get(dtype, 4) / 4  # bytes out of one byte in
    target = min(_PART_BYTES, max(_LEAST_BYTES, packed * sum(run.bytes for run in runs) / _PARTS))
    parts: list[list[Run]] = []
    size = target
    for mine in by_subject.values():
        if size >= target:
            parts.append([])
            size = 0.0
        parts[-1] += mine
        size += packed * sum(run.bytes for run in mine)
    return parts
