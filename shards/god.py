"""Pack Generic Object Decoding (Kamitani lab) in the npz layout of the paper's code: sbj_<k>.npz, images_256.npz.

Training statistics come from training rows alone; validation takes whole training stimuli, the same for all subjects.
A subject is a part, and so are the pictures of either half.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

from cadiff.errors import ConfigError
from cadiff.shards.god_stimuli import IMAGES, LABELS, TABLES, declare, pack_pictures, read_stimuli, require
from cadiff.shards.god_subject import Recipe, pack_subject
from cadiff.shards.legacy import legacy_stats, normalisation
from cadiff.shards.parallel import workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.splits import held_out
from cadiff.shards.voxels import STATS
from cadiff.shards.writer import Pack

PLACES = (".", "npz", "Kamitani/npz", "data/Kamitani/npz")  # where the files may lie below the folder given


def pack_god(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    roi: str | list[str] = "VC",
    val_fraction: float = 0.1,
    split_seed: int = 0,
    normalise: Literal["voxel", "scalar"] | None = None,
    legacy: bool = False,
    test: Literal["averaged", "averaged+trials"] = "averaged",
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack GOD's training and test responses and pictures. Memory: one subject for each worker.

    Args:
        subjects: such as ["sbj_1", "sbj_3"]; None takes all that are there.
        roi: a region mask in the files, or several whose union is taken.
        val_fraction: part of the training stimuli held out, for all subjects alike.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject; None is "voxel", or
            "scalar" with ``legacy``.
        legacy: compute mean and deviation as the paper's code does, over wrap-padded training rows.
        test: "averaged" has one sample per test picture with repeat -1; "+trials" adds every single trial.
        workers: processes; None takes every core if the files exceed 1 GB. The result is the same.

    Raises:
        ConfigError: files of the release that are missing, no such subject or option.
        DataError: missing keys, or numbers that do not fit together.
    """
    folder = _find_folder(Path(root))
    available = sorted((path.stem for path in folder.glob("sbj_*.npz")), key=lambda name: (len(name), name))
    names = list(dict.fromkeys(map(str, subjects or available)))
    if lost := [name for name in names if name not in available]:
        raise ConfigError(f"{folder}: no subject '{lost[0]}'; there are {', '.join(available)}.")
    normalise = normalisation(normalise, legacy)
    if test not in ("averaged", "averaged+trials"):
        raise ConfigError(f"test = '{test}': use averaged or averaged+trials.")
    require(folder, [IMAGES])
    stimuli = read_stimuli(folder)
    recipe = Recipe(
        folder=folder,
        stimuli=stimuli,
        held=held_out(stimuli["train"].ids, val_fraction, split_seed),
        roi=roi,
        measure=legacy_stats if legacy else STATS[normalise],
        test=test,
    )
    sources = {name: folder / name for name in (IMAGES, *TABLES, *(f"{name}.npz" for name in names))}
    options = {
        "subjects": names,
        "roi": roi,
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "legacy": legacy,
        "test": test,
    }

    def fill(pack: Pack) -> None:
        for table in TABLES:
            pack.source(table)  # as read above: a part that finds another is refused
        declare(stimuli, pack)

    size = sum(path.stat().st_size for path in sources.values() if path.is_file())
    return pack_folder(
        out,
        "god",
        options,
        sources,
        fill,
        progress,
        units=[
            *(bind(pack_subject, recipe, name) for name in names),
            *(bind(pack_pictures, folder, stimuli, half) for half in LABELS),
        ],
        workers=workers_for(size, workers),
    )


def _find_folder(root: Path) -> Path:
    for place in PLACES:
        if any((root / place).glob("sbj_*.npz")):
            return root / place
    raise ConfigError(
        f"{root}: no sbj_<k>.npz here nor in {', '.join(PLACES[1:])}. Give the folder with GOD's npz files."
    )
