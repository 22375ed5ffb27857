"""Pack BOLD5000: GLMsingle ROI betas, presentation lists and pictures, in the folder layout of the paper's code.

Differences from that code: statistics come from training trials alone (unless ``legacy`` asks for its own), no trial is
cut off, subjects keep their own voxel counts, and the saved dictionary of pictures is read without running any code.
A subject is a part, and so are some hundred picture files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

from cadiff.errors import ConfigError
from cadiff.shards.bold5000_files import (
    BETAS,
    PICTURES,
    REPEATED,
    STIMULI,
    beta_files,
    find_root,
    picture_files,
    presentations,
    read_list,
)
from cadiff.shards.bold5000_subject import Recipe, declare, pack_subject, picture_units
from cadiff.shards.legacy import normalisation
from cadiff.shards.parallel import workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.splits import held_out
from cadiff.shards.writer import Pack

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")


def pack_bold5000(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    rois: Sequence[str] = ROIS,
    val_fraction: float = 0.05,
    split_seed: int = 0,
    normalise: Literal["voxel", "scalar"] | None = None,
    legacy: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack one sample per training trial and one per test picture: the mean over its repeats (repeat -1).

    Test pictures are those of the list of 113 repeated ones; validation excludes them, and so do statistics without
    ``legacy``. Memory: one subject for each worker; one of them reads img_dict.npy whole, if that is there.

    Args:
        subjects: such as ["CSI1"]; None takes all that have betas.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject; None is "voxel", or
            "scalar" with ``legacy``.
        legacy: compute mean and deviation as the paper's code does for phase 3, over all wrap-padded trials, test
            trials among them.
        workers: processes; None takes every core if the files exceed 1 GB. The result is the same.

    Raises:
        ConfigError: no such folder, subject, region or list. DataError: lists and betas that do not fit together, or a
            picture that a list names and that is missing.
    """
    root = find_root(Path(root))
    available = sorted({path.name.partition("_")[0] for path in (root / BETAS).glob("*.npy")})
    names = sorted(dict.fromkeys(subjects or available))
    if lost := [name for name in names if name not in available]:
        raise ConfigError(f"{root / BETAS}: no betas of '{lost[0]}'; there are {', '.join(available)}.")
    normalise = normalisation(normalise, legacy)
    tested = set(read_list(root / STIMULI / REPEATED))
    shown = {name: presentations(root / STIMULI, name) for name in names}
    trained = [stimulus for _, ids in shown.values() for stimulus in ids if stimulus not in tested]
    held = held_out(trained, val_fraction, split_seed)
    betas = {name: beta_files(root / BETAS, name, rois) for name in names}
    pictures = picture_files(root / STIMULI / PICTURES)
    lists = (root / STIMULI / REPEATED, *(path for paths, _ in shown.values() for path in paths))
    files = [*lists, *pictures.values(), *(path for parts in betas.values() for path in parts.values())]
    sources = {path.relative_to(root).as_posix(): path for path in dict.fromkeys(files)}
    recipe = Recipe(
        root=root,
        lists=lists,
        stimuli=_in_order(shown.values(), tested),
        tested=tested,
        held=held,
        normalise=normalise,
        legacy=legacy,
    )
    options = {
        "subjects": names,
        "rois": list(rois),
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "legacy": legacy,
    }
    units = [bind(pack_subject, recipe, name, shown[name], betas[name]) for name in names]
    units += picture_units(recipe, pictures)

    def fill(pack: Pack) -> None:
        for path in lists:
            pack.source(path.relative_to(root).as_posix())  # as read above: a part that finds another is refused
        declare(recipe, pack)

    size = sum(path.stat().st_size for path in sources.values() if path.is_file())
    return pack_folder(
        out,
        "bold5000",
        options,
        sources,
        fill,
        progress,
        units=units,
        workers=workers_for(size, workers),
    )


def _in_order(shown: Iterable[tuple[list[Path], list[str]]], tested: set[str]) -> list[str]:
    """Every stimulus once, in the order of its number: of each subject those of training, then those of the test."""
    stably = (name for _, ids in shown for name in sorted(ids, key=tested.__contains__))
    return list(dict.fromkeys(stably))
