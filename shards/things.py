"""Pack THINGS-fMRI (Hebart et al., eLife 2023): single-trial responses in table format, and THINGS' pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

from cadiff.errors import ConfigError, DataError
from cadiff.shards.parallel import slices, workers_for
from cadiff.shards.pictures import read_picture
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.splits import held_out
from cadiff.shards.things_files import find_subjects, read_trials
from cadiff.shards.things_subject import Recipe, pack_subject
from cadiff.shards.voxels import STATS
from cadiff.shards.writer import Pack

TESTS = ("averaged", "averaged+trials")
MAX_SIDE = 512  # larger pictures are shrunk
PICTURES = 1000  # in a part


def pack_things(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    roi: str | list[str] = "visual",
    images: str | Path | None = None,
    val_fraction: float = 0.05,
    split_seed: int = 0,
    normalise: Literal["voxel", "scalar"] = "voxel",
    test: Literal["averaged", "averaged+trials"] = "averaged",
    min_noise_ceiling: float = 0.0,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack one sample per training trial and one per test stimulus: the mean over its repeats (repeat -1).

    Validation holds out whole training stimuli, the same for all subjects; their concepts stay in training. The label
    is the concept. Statistics come from training trials alone.

    Args:
        root: the folder with ``sub-<k>_ResponseData.h5`` and its two tables, or one above it.
        subjects: such as ["sub-01"]; None takes all that are there.
        roi: columns of the table of voxels whose union is taken, an area such as "FFA" for both hemispheres,
            "visual" (all regions of THINGS' localisers and IT) or "all".
        images: folder of THINGS' pictures as ``<concept>/<file>``; every stimulus must be there.
        val_fraction: part of the training stimuli held out.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject.
        test: "averaged+trials" adds every single test trial, in its run, with its number of repeat.
        min_noise_ceiling: least nc_singletrial of a voxel, in per cent. Ceilings are estimated from the test stimuli's
            repeats, so a threshold chooses voxels by how reliable their test responses are.
        workers: processes; None takes every core if the inputs exceed 1 GB. The result is the same.

    Raises:
        ConfigError: no such files, subject, region or option. DataError: tables and responses that do not fit
        together, betas that are not finite, or missing pictures.
    """
    files = find_subjects(Path(root))
    names = sorted(set(subjects or files))
    if lost := [name for name in names if name not in files]:
        raise ConfigError(f"{root}: no subject '{lost[0]}'; there are {', '.join(files)}.")
    if normalise not in STATS or test not in TESTS or not 0 <= min_noise_ceiling < 100:
        raise ConfigError(
            f"normalise='{normalise}', test='{test}', min_noise_ceiling={min_noise_ceiling}: use voxel or scalar, "
            f"{' or '.join(TESTS)}, and 0 to below 100 per cent."
        )
    trials = {name: read_trials(files[name]["trials"]) for name in names}
    tested = {stimulus for part in trials.values() for stimulus in part.names(tested=True)}
    trained = {stimulus: None for part in trials.values() for stimulus in part.names(tested=False)}
    if both := [stimulus for stimulus in trained if stimulus in tested]:
        raise DataError(f"{root}: {both[0]} is a test stimulus of one subject and a training stimulus of another.")
    held = held_out(trained, val_fraction, split_seed)
    concepts = {s: c for part in trials.values() for s, c in zip(part.stimulus, part.concept)}
    pictures = [] if images is None else _find_pictures(Path(images), concepts)
    sources = {path.relative_to(root).as_posix(): path for name in names for path in files[name].values()}
    sources |= {source: path for _, source, path in pictures}
    options = {
        "subjects": names,
        "roi": roi,
        "images": images is not None,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "test": test,
        "min_noise_ceiling": min_noise_ceiling,
    }
    tables = tuple(files[name]["trials"] for name in names)
    recipe = Recipe(Path(root), tables, frozenset(held), roi, min_noise_ceiling, normalise, test)
    units = [bind(pack_subject, recipe, name, files[name], trials[name]) for name in names]
    units += [bind(pack_pictures, part) for part in slices(pictures, PICTURES)]

    def fill(pack: Pack) -> None:
        for table in tables:
            pack.source(table.relative_to(root).as_posix())  # as read above: a part that finds another is refused
        pack.declare("stimulus", sorted(concepts))
        pack.declare("label", sorted(set(concepts.values())))

    size = sum(path.stat().st_size for path in sources.values())
    how = {"units": units, "workers": workers_for(size, workers)}
    return pack_folder(out, "things", options, sources, fill, progress, **how)


def pack_pictures(pictures: Sequence[tuple[str, str, Path]], pack: Pack) -> None:
    """Add pictures to a part: (stimulus, name of the source, file) each."""
    for stimulus, source, path in pictures:
        pack.source(source)
        pack.picture(stimulus, *read_picture(path, MAX_SIDE))


def _find_pictures(folder: Path, concepts: dict[str, str]) -> list[tuple[str, str, Path]]:
    """The picture of each stimulus, in order: (stimulus, name of the source, file)."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give the folder of THINGS' pictures, one sub-folder a concept.")
    found = [
        (stimulus, f"images/{concept}/{stimulus}", folder / concept / stimulus)
        for stimulus, concept in sorted(concepts.items())
    ]
    if lost := [path for _, _, path in found if not path.is_file()]:
        raise DataError(f"{folder}: {len(lost)} of {len(found)} pictures are missing, first {lost[0]}. Complete it.")
    return found
