"""Pack the Natural Scenes Dataset (Allen et al., Nature Neuroscience 2022): single-trial betas and the pictures shown.

Test pictures are the shared 1000; validation takes whole other pictures of the design, the same for all subjects.
Statistics come from training trials alone, by default of the trial's own session. Betas are read session by session.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.nsd_betas import TableBetas, VolumeBetas, find_betas
from cadiff.shards.nsd_files import STIMULI, TRIALS, Design, place, read_design, stimulus_id
from cadiff.shards.nsd_pictures import TEST, VAL, Bricks, pack_pictures
from cadiff.shards.nsd_rois import GENERAL, Rois, Voxels
from cadiff.shards.nsd_subject import Person, Recipe, pack_subject
from cadiff.shards.parallel import slices, workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import Progress, silent
from cadiff.shards.splits import held_out
from cadiff.shards.writer import Pack

CHOICES = {
    "normalise": ("session", "voxel", "scalar"),
    "train": ("trials", "averaged"),
    "test": ("averaged", "averaged+trials"),
}
PICTURES = 1000  # in a part


def pack_nsd(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    roi: str | list[str] = GENERAL,
    betas: str = "fithrf_GLMdenoise_RR",
    val_fraction: float = 0.05,
    split_seed: int = 0,
    normalise: Literal["session", "voxel", "scalar"] = "session",
    train: Literal["trials", "averaged"] = "trials",
    test: Literal["averaged", "averaged+trials"] = "averaged",
    max_side: int = 512,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack NSD's betas inside an ROI and the pictures its subjects saw. Memory: one session for each worker.

    Args:
        root: the folder with nsddata/, nsddata_betas/ and nsddata_stimuli/.
        subjects: such as ["subj01"]; None takes all that have betas.
        roi: label volumes such as "nsdgeneral", or labels of one, "prf-visualrois:V1v,V1d"; of several the union.
        betas: a version of the release, or the name of a table with ``{subject}`` in it (see ``find_betas``).
        val_fraction: part of the pictures that are not shared, held out for all subjects alike.
        normalise: "session" z-scores each voxel within its session, "voxel" over all sessions; "scalar" uses one mean
            and deviation per subject.
        train: "trials" has one sample per trial of training and validation pictures, "averaged" one per picture.
        test: "averaged" has one sample per shared picture with repeat -1; "+trials" adds every single trial.
        max_side: larger pictures are shrunk to this many pixels.
        workers: processes; None takes every core if the inputs exceed 1 GB. The result is the same.

    Raises:
        ConfigError: missing files, an unknown subject, ROI or option. DataError: files that do not fit together.
    """
    root, chosen = Path(root), {"normalise": normalise, "train": train, "test": test}
    if wrong := [name for name, value in chosen.items() if value not in CHOICES[name]]:
        raise ConfigError(f"{wrong[0]} = '{chosen[wrong[0]]}': use {' or '.join(CHOICES[wrong[0]])}.")
    if max_side < 16:
        raise ConfigError(f"max_side = {max_side}: at least 16 pixels.")
    design, tables = read_design(root)
    available = find_betas(root, betas)
    names = sorted(dict.fromkeys(subjects or available))
    if lost := [name for name in names if name not in available]:
        raise ConfigError(f"{root}: no betas of '{lost[0]}'; there are {', '.join(available)}.")
    selections = [roi] if isinstance(roi, str) else list(roi)
    people = [_open(root, name, available[name], selections, design.shown[name]) for name in names]
    stimuli = place(root, STIMULI)
    if stimuli is None:
        raise ConfigError(f"{root}: no {STIMULI}. Download the pictures.")
    files = [*tables, stimuli]
    files += [path for person in people for path in (*person.betas.files.values(), *person.rois.sources)]
    sources = {path.relative_to(root).as_posix(): path for path in dict.fromkeys(files)}
    options = {"subjects": names, "roi": selections, "betas": betas, "val_fraction": val_fraction}
    options |= {"split_seed": split_seed, "max_side": max_side, **chosen}
    bricks = Bricks(stimuli, np.unique(np.concatenate([person.all_pictures() for person in people])))
    recipe = Recipe(root, (*tables, stimuli), bricks, _splits(design, val_fraction, split_seed), **chosen)
    units = [bind(pack_subject, recipe, person) for person in people]
    shown = stimuli.relative_to(root).as_posix()
    parts = slices(bricks.numbers_P, PICTURES)
    units += [bind(pack_pictures, bricks, shown, numbers, max_side) for numbers in parts]

    def fill(pack: Pack) -> None:
        for path in (*tables, *(path for person in people for path in person.rois.sources)):
            pack.source(path.relative_to(root).as_posix())  # as read above: a part that finds another is refused
        bricks.digests(pack.progress)  # here, so that the parts' processes are sent them
        pack.notes["source_sha256"] = "of the pictures' file: of the numbers and pixels of the pictures used"
        pack.declare("stimulus", [stimulus_id(number) for number in bricks.numbers_P.tolist()])
        for number in bricks.settle(recipe.split_P)[1]:
            pack.drop(stimulus_id(number), "shows the same picture as a shared one, which is tested")
        for person in people:
            _describe(pack, person)

    size = sum(path.stat().st_size for path in sources.values())
    how = {"units": units, "workers": workers_for(size, workers), "fingerprints": bricks.fingerprint}
    return pack_folder(out, "nsd", options, sources, fill, progress, **how)


def _splits(design: Design, val_fraction: float, seed: int) -> np.ndarray:
    """The split of each picture number: int8, 0 train, 1 val, 2 test.

    All pictures of the design take part, so that a picture's split does not depend on which subjects are packed.
    """
    split_P = np.zeros(design.pictures[-1] + 1, dtype=np.int8)
    own = {stimulus_id(number): number for number in design.pictures.tolist() if number not in design.shared}
    split_P[[own[name] for name in held_out(own, val_fraction, seed)]] = VAL
    split_P[sorted(design.shared)] = TEST
    return split_P


def _open(root: Path, name: str, found: dict[int, Path] | Path, selections: list[str], shown_T: np.ndarray) -> Person:
    rois = Rois(root, name)
    if isinstance(found, dict):
        chosen = rois.choose(selections)
        voxels = Voxels(chosen.shape, np.flatnonzero(chosen))
        person = Person(name, VolumeBetas(found, voxels), voxels, rois, shown_T)
    else:
        person = Person(name, *_cut_table(found, rois, selections), rois, shown_T)
    for session, path in person.betas.files.items():
        known = person.pictures(session)
        if session < 1 or len(known) != TRIALS or (known < 0).any():
            raise DataError(
                f"{path}: session {session} ends with trial {session * TRIALS:,}, but the trial table names the "
                f"pictures of {(shown_T >= 0).sum():,} of {name}'s trials. Are these files of one release?"
            )
    return person


def _cut_table(path: Path, rois: Rois, selections: list[str]) -> tuple[TableBetas, Voxels | None]:
    """A table's columns are the voxels of nsdgeneral in C order; keep those of the ROI."""
    if GENERAL not in rois.files:
        if selections != [GENERAL]:
            raise ConfigError(f"{path}: without {rois.folder}/{GENERAL}.nii.gz only roi = '{GENERAL}' can be packed.")
        return TableBetas(path), None
    base, chosen = rois.choose([GENERAL]), rois.choose(selections)
    if base.shape != chosen.shape:
        raise DataError(f"{rois.folder}: {selections[0]} has grid {chosen.shape}, {GENERAL} {base.shape}.")
    wanted = base & chosen
    if not wanted.any():
        raise ConfigError(f"{path}: a table of {GENERAL} has no voxel of '{' '.join(selections)}'. Use the volumes.")
    return TableBetas(path, wanted[base]), Voxels(base.shape, np.flatnonzero(wanted))


def _describe(pack: Pack, person: Person) -> None:
    """Keep which sessions are missing, what and where the voxels are, and which belong to which region."""
    planned = range(1, len(person.shown_T) // TRIALS + 1)
    if missing := [session for session in planned if session not in person.betas.files]:
        pack.notes.setdefault("sessions_missing", {})[person.name] = missing
    if person.voxels is None:
        pack.notes.setdefault("voxel_places_unknown", []).append(person.name)
        return
    pack.space(person.name, person.voxels.ids, person.voxels.ijk)
    pack.attach(person.name, "grid", np.array(person.voxels.grid))
    pack.rois(person.name, person.rois.columns(person.voxels))
