"""ROIs of the Natural Scenes Dataset: label volumes in a subject's 1.8 mm functional space, and choices among them.

A volume holds -1 outside cortex, 0 in cortex without a label, and labels from 1 (github.com/cvnlab/nsddatapaper,
analysis_surfaceroistovolume.m). Voxels are numbered in the volume's C order: x slowest, z fastest. V = chosen voxels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.nsd_files import DAMAGED

GENERAL = "nsdgeneral"
VISUAL = "prf-visualrois"
# Names of the labels, from 1: as the Data Manual lists them. A subject's own .ctab file comes first.
LABELS = {
    VISUAL: ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
AREAS = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "hV4": ("hV4",)}  # of prf-visualrois
_CTAB_BYTES = 1_000_000


@dataclass(frozen=True)
class Voxels:
    """Chosen voxels of a volume of shape ``grid`` (X, Y, Z); ``ids`` int64 (V,) in its C order, ascending."""

    grid: tuple[int, int, int]
    ids: np.ndarray

    @cached_property
    def ijk(self) -> np.ndarray:
        """Coordinates in the volume, counted from 0: int64 (V, 3)."""
        return np.stack(np.unravel_index(self.ids, self.grid), axis=1)


class Rois:
    """The ROI volumes of one subject: ``nsddata/ppdata/<subject>/func1pt8mm/roi/<name>.nii.gz``."""

    def __init__(self, root: Path, subject: str) -> None:
        self.folder = root / "nsddata/ppdata" / subject / "func1pt8mm/roi"
        self.files = {path.name.removesuffix(".nii.gz"): path for path in sorted(self.folder.glob("*.nii.gz"))}
        self._tables = [root / "nsddata/freesurfer" / name / "label" for name in (subject, "fsaverage")]

    @property
    def sources(self) -> list[Path]:
        """Every file that decides what a voxel is called."""
        tables = [path for name in self.files if (path := self._ctab(name))]
        return [*self.files.values(), *tables]

    def choose(self, selections: Sequence[str]) -> np.ndarray:
        """The union of selections such as "nsdgeneral" or "prf-visualrois:V1v,2": bool (X, Y, Z).

        Raises:
            ConfigError: no such volume or label. DataError: a damaged volume, or volumes of different grids.
        """
        chosen = None
        for selection in selections:
            name, _, labels = selection.partition(":")
            if name not in self.files:
                raise ConfigError(f"{self.folder}: no ROI '{name}'; there are {', '.join(self.files) or 'none'}.")
            volume = self.volume(name)
            inside = np.isin(volume, self._numbers(name, labels)) if labels else volume > 0
            if chosen is not None and inside.shape != chosen.shape:
                raise DataError(f"{self.files[name]}: grid {inside.shape}, but {chosen.shape} of {selections[0]}.")
            chosen = inside if chosen is None else chosen | inside
        if chosen is None or not chosen.any():
            raise ConfigError(f"{self.folder}: '{' '.join(selections)}' has no voxels. Choose another ROI.")
        return chosen

    def volume(self, name: str) -> np.ndarray:
        """One label volume: int64 (X, Y, Z)."""
        import nibabel as nib

        path = self.files[name]
        try:
            values = np.asarray(nib.load(path).dataobj)
            values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
            labels = values.astype(np.int64)
            if values.ndim != 3 or (labels != values).any():
                raise ValueError(f"{values.dtype} {values.shape}, expected a volume of whole numbers")
        except (*DAMAGED, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as problem:
            raise DataError(f"{path}: not a readable label volume ({problem}). Download the file again.") from None
        return labels

    def labels(self, name: str) -> dict[int, str]:
        """Names of a volume's labels: from its .ctab file ("number name" lines), else from the Data Manual."""
        path = self._ctab(name)
        if path is None:
            return dict(enumerate(LABELS.get(_both_sides(name), ()), 1))
        try:
            with open(path, encoding="utf-8") as handle:
                lines = [line.split() for line in handle.read(_CTAB_BYTES).splitlines()]
            return {int(parts[0]): parts[1] for parts in lines if len(parts) > 1 and int(parts[0]) > 0}
        except (OSError, ValueError) as problem:
            raise DataError(f"{path}: not a table of 'number name' lines ({problem}). Download it again.") from None

    def columns(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Columns of the packed signals by region: "floc-faces", "floc-faces:FFA-1" and so on; V1, V2, V3 and hV4.

        Volumes of one hemisphere (``lh.``, ``rh.``) are left out, and regions without a packed voxel.

        Raises:
            DataError: a volume of another grid.
        """
        found: dict[str, np.ndarray] = {}
        for name in self.files:
            if name.startswith(("lh.", "rh.")):
                continue
            volume = self.volume(name)
            if volume.shape != voxels.grid:
                raise DataError(f"{self.files[name]}: grid {volume.shape}, but {voxels.grid} of the chosen ROI.")
            label_V = volume.ravel()[voxels.ids]
            named = self.labels(name)
            regions = {name: label_V > 0}
            if volume.max() > 1:
                numbers = np.unique(label_V[label_V > 0]).tolist()
                regions |= {f"{name}:{named.get(number, number)}": label_V == number for number in numbers}
            if name == VISUAL:
                areas = {area: [n for n, label in named.items() if label in parts] for area, parts in AREAS.items()}
                regions |= {area: np.isin(label_V, numbers) for area, numbers in areas.items()}
            found |= {region: np.flatnonzero(inside_V) for region, inside_V in regions.items() if inside_V.any()}
        return found

    def _numbers(self, name: str, text: str) -> list[int]:
        number_of = {label: number for number, label in self.labels(name).items()}
        numbers = []
        for part in (part.strip() for part in text.split(",")):
            if part not in number_of and not (part.isdecimal() and int(part) > 0):
                known = ", ".join(f"{number} {label}" for label, number in number_of.items()) or "numbers from 1"
                raise ConfigError(f"{self.files[name]}: no label '{part}'; there are {known}.")
            numbers.append(number_of[part] if part in number_of else int(part))
        return numbers

    def _ctab(self, name: str) -> Path | None:
        file = f"{_both_sides(name)}.mgz.ctab"
        return next((folder / file for folder in self._tables if (folder / file).is_file()), None)


def _both_sides(name: str) -> str:
    """Volumes of one hemisphere share the labels of the whole."""
    return re.sub(r"^[lr]h\.", "", name)
