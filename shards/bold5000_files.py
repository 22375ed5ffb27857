"""Where BOLD5000's files lie in the folder layout of the paper's code, and the lists of pictures that were shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cadiff.errors import ConfigError, DataError

BETAS, STIMULI = "BOLD5000_GLMsingle_ROI_betas/py", "BOLD5000_Stimuli"
PICTURES = "Scene_Stimuli/Presented_Stimuli"
REPEATED = "Scene_Stimuli/repeated_stimuli_113_list.txt"
TABLE = "img_dict.npy"  # all pictures in one file


def find_root(root: Path) -> Path:
    """The folder that holds the betas: ``root``, or a usual place below it.

    Raises:
        ConfigError: none of them does.
    """
    for folder in (root, root / "BOLD5000", root / "data/BOLD5000"):
        if (folder / BETAS).is_dir():
            return folder
    raise ConfigError(f"{root}: no {BETAS} here. Give the folder that holds it and {STIMULI}.")


def beta_files(folder: Path, subject: str, rois: Sequence[str]) -> dict[str, Path]:
    """LH then RH of each region, in the order of ``rois``; names must end exactly in the region.

    Raises:
        ConfigError: a region without its file, or with several.
    """
    files = {}
    for part in (f"{side}{roi}" for roi in rois for side in ("LH", "RH")):
        matches = sorted(folder.glob(f"{subject}_*_{part}.npy"))
        if len(matches) != 1:
            raise ConfigError(f"{folder}: {len(matches)} files {subject}_*_{part}.npy, expected one.")
        files[part] = matches[0]
    return files


def presentations(folder: Path, subject: str) -> tuple[list[Path], list[str]]:
    """The list files of a subject, and the pictures it saw, in order, that they name.

    Raises:
        ConfigError: no lists. DataError: one that is damaged or empty.
    """
    paths = sorted((folder / "Stimuli_Presentation_Lists" / subject).glob("*/*.txt"))
    paths = paths or [path for path in [folder / f"{subject}_stim_lists.txt"] if path.is_file()]
    if not paths:
        place = folder / "Stimuli_Presentation_Lists" / subject
        raise ConfigError(f"{place}: no <session>/*.txt lists, and no {subject}_stim_lists.txt in {folder}.")
    return paths, [line.removeprefix("rep_") for path in paths for line in read_list(path)]


def read_list(path: Path) -> list[str]:
    """Names of pictures, one a line.

    Raises:
        ConfigError: no such file. DataError: a damaged or an empty one.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file. Complete {STIMULI}.")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: not a readable list ({problem}).") from None
    if not names:
        raise DataError(f"{path}: empty, expected one picture's name a line. Download it again.")
    return names


def picture_files(folder: Path) -> dict[str, Path]:
    """img_dict.npy if there is one, else every picture file below the folder, by its file name."""
    if (folder / TABLE).is_file():
        return {TABLE: folder / TABLE}
    kinds = (".jpg", ".jpeg", ".png")
    return {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds}
