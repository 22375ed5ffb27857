"""Pack BOLD5000: GLMsingle ROI betas, presentation lists and pictures, in the folder layout of the paper's code.

Differences from that code: statistics come from training trials alone (unless ``legacy`` asks for its own), no trial is
cut off, subjects keep their own voxel counts, and the saved dictionary of pictures is read without running any code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.arrays import load_npy, load_npy_dict
from cadiff.shards.legacy import legacy_stats, normalisation
from cadiff.shards.pictures import encode_png, read_picture, to_uint8
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import AVERAGED, Progress, make_records, silent
from cadiff.shards.splits import held_out
from cadiff.shards.voxels import STATS
from cadiff.shards.writer import Pack

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
BETAS, STIMULI = "BOLD5000_GLMsingle_ROI_betas/py", "BOLD5000_Stimuli"
PICTURES = "Scene_Stimuli/Presented_Stimuli"
REPEATED = "Scene_Stimuli/repeated_stimuli_113_list.txt"


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
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack one sample per training trial and one per test picture: the mean over its repeats (repeat -1).

    Test pictures are those of the list of 113 repeated ones; validation excludes them, and so do statistics without
    ``legacy``.

    Args:
        subjects: such as ["CSI1"]; None takes all that have betas.
        normalise: "voxel" z-scores each voxel, "scalar" uses one mean and deviation per subject; None is "voxel", or
            "scalar" with ``legacy``.
        legacy: compute mean and deviation as the paper's code does for phase 3, over all wrap-padded trials, test
            trials among them.

    Raises:
        ConfigError: no such folder, subject, region or list. DataError: lists and betas that do not fit together, or a
            picture that a list names and that is missing.
    """
    root = _find_root(Path(root))
    available = sorted({path.name.partition("_")[0] for path in (root / BETAS).glob("*.npy")})
    names = sorted(subjects) if subjects else available
    if lost := [name for name in names if name not in available]:
        raise ConfigError(f"{root / BETAS}: no betas of '{lost[0]}'; there are {', '.join(available)}.")
    normalise = normalisation(normalise, legacy)
    tested = set(_read_list(root / STIMULI / REPEATED))
    shown = {name: _presentations(root / STIMULI, name) for name in names}
    trained = [stimulus for _, ids in shown.values() for stimulus in ids if stimulus not in tested]
    held = held_out(trained, val_fraction, split_seed)
    betas = {name: _beta_files(root / BETAS, name, rois) for name in names}
    pictures = _picture_files(root / STIMULI / PICTURES)
    files = [root / STIMULI / REPEATED, *(path for paths, _ in shown.values() for path in paths), *pictures.values()]
    files += [path for parts in betas.values() for path in parts.values()]
    sources = {path.relative_to(root).as_posix(): path for path in dict.fromkeys(files)}
    options = {
        "subjects": names,
        "rois": list(rois),
        "val_fraction": val_fraction,
        "split_seed": split_seed,
        "normalise": normalise,
        "legacy": legacy,
    }

    def fill(pack: Pack) -> None:
        for done, name in enumerate(names):
            pack.progress("packing subjects", done, len(names))
            _pack_subject(pack, name, betas[name], shown[name], tested, held, options)
        used = dict.fromkeys(stimulus for _, ids in shown.values() for stimulus in ids)
        _pack_pictures(pack, pictures, list(used))

    return pack_folder(out, "bold5000", options, sources, fill, progress)


def _pack_subject(
    pack: Pack,
    name: str,
    files: dict[str, Path],
    shown: tuple[list[Path], list[str]],
    tested: set[str],
    held: set[str],
    options: dict[str, Any],
) -> None:
    lists, ids = shown
    parts = {part: load_npy(path) for part, path in files.items()}
    for part, values in parts.items():
        if values.ndim != 2 or len(values) != len(ids):
            raise DataError(
                f"{files[part]}: betas {values.shape} for {len(ids)} presented pictures; rows must agree with those of "
                f"{len(lists)} lists, {lists[0]} the first."
            )
    signals_NV = np.concatenate([np.asarray(values, dtype=np.float32) for values in parts.values()], axis=1)
    finite_V = np.isfinite(signals_NV).all(axis=0)
    if not finite_V.all():
        pack.notes.setdefault("voxels_not_finite", {})[name] = int((~finite_V).sum())
        signals_NV[:, ~finite_V] = 0
    split = ["test" if i in tested else "val" if i in held else "train" for i in ids]
    train_NV = signals_NV[np.array(split) == "train"]
    stats = legacy_stats(signals_NV) if options["legacy"] else STATS[options["normalise"]](train_NV)
    signals_NV = stats.apply(signals_NV)
    rows = [row for row, part in enumerate(split) if part != "test"]
    chosen = [ids[row] for row in rows]
    labels = [_category(i) for i in chosen]
    pack.add(make_records(name, "training", signals_NV[rows], [split[row] for row in rows], chosen, labels))
    rows_of: dict[str, list[int]] = {}
    for row, stimulus in enumerate(ids):
        if stimulus in tested:
            rows_of.setdefault(stimulus, []).append(row)
    for stimulus in sorted(tested - rows_of.keys()):
        pack.drop(f"{name}: {stimulus}", "a test picture this subject was never shown")
    if rows_of:
        means_NV = np.stack([signals_NV[rows].mean(axis=0) for rows in rows_of.values()])
        repeats = [AVERAGED] * len(rows_of)
        pack.add(make_records(name, "test", means_NV, "test", list(rows_of), [_category(i) for i in rows_of], repeats))
    pack.stats(name, stats)
    edges = np.cumsum([0, *(values.shape[1] for values in parts.values())])
    columns: dict[str, np.ndarray] = {}
    for part, start, stop in zip(parts, edges, edges[1:]):
        columns[part] = np.arange(start, stop)
        both = part[2:]
        columns[both] = np.concatenate([columns.get(both, np.empty(0, np.int64)), columns[part]])
    pack.rois(name, columns)


def _category(stimulus: str) -> str | None:
    """ImageNet pictures carry their category in the name; COCO and scene pictures have none."""
    match = re.match(r"(n\d{8})_", stimulus)
    return match[1] if match else None


def _find_root(root: Path) -> Path:
    for folder in (root, root / "BOLD5000", root / "data/BOLD5000"):
        if (folder / BETAS).is_dir():
            return folder
    raise ConfigError(f"{root}: no {BETAS} here. Give the folder that holds it and {STIMULI}.")


def _beta_files(folder: Path, subject: str, rois: Sequence[str]) -> dict[str, Path]:
    """LH then RH of each region, in the order of ``rois``; names must end exactly in the region."""
    files = {}
    for part in (f"{side}{roi}" for roi in rois for side in ("LH", "RH")):
        matches = sorted(folder.glob(f"{subject}_*_{part}.npy"))
        if len(matches) != 1:
            raise ConfigError(f"{folder}: {len(matches)} files {subject}_*_{part}.npy, expected one.")
        files[part] = matches[0]
    return files


def _presentations(folder: Path, subject: str) -> tuple[list[Path], list[str]]:
    """The pictures a subject saw, in order, and the list files this was read from."""
    paths = sorted((folder / "Stimuli_Presentation_Lists" / subject).glob("*/*.txt"))
    paths = paths or [path for path in [folder / f"{subject}_stim_lists.txt"] if path.is_file()]
    if not paths:
        place = folder / "Stimuli_Presentation_Lists" / subject
        raise ConfigError(f"{place}: no <session>/*.txt lists, and no {subject}_stim_lists.txt in {folder}.")
    return paths, [line.removeprefix("rep_") for path in paths for line in _read_list(path)]


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Complete {STIMULI}.")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: not a readable list ({problem}).") from None
    if not names:
        raise DataError(f"{path}: empty, expected one picture's name a line. Download it again.")
    return names


def _picture_files(folder: Path) -> dict[str, Path]:
    """img_dict.npy if there is one, else every picture file below the folder, by its file name."""
    if (folder / "img_dict.npy").is_file():
        return {"img_dict.npy": folder / "img_dict.npy"}
    kinds = (".jpg", ".jpeg", ".png")
    return {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds}


def _pack_pictures(pack: Pack, files: dict[str, Path], stimuli: list[str]) -> None:
    table = load_npy_dict(files["img_dict.npy"]) if "img_dict.npy" in files else None
    known = files if table is None else table
    if lost := [name for name in stimuli if name not in known]:
        raise DataError(
            f"{len(lost)} of {len(stimuli)} pictures are missing, first {lost[0]}. Complete {PICTURES}, or its "
            "img_dict.npy."
        )
    top = max(float(np.max(table[name])) for name in stimuli) if table else 0.0
    for done, name in enumerate(stimuli):
        pack.progress("packing pictures", done, len(stimuli))
        if table is None:
            pack.picture(name, *read_picture(files[name], 512))
        elif table[name].ndim != 3 or table[name].shape[2] != 3:
            raise DataError(f"{files['img_dict.npy']}: {name} is {table[name].shape}, expected (height, width, 3).")
        else:
            pack.picture(name, encode_png(to_uint8(table[name], top, name)), "png")
