"""The voxels of a THINGS-fMRI subject: their table, and the choice of regions. Shapes: A all voxels, V those chosen."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.things_files import open_table, whole_number

# The regions of THINGS' own localisers: retinotopic areas, category-selective areas, and IT.
RETINOTOPIC = ("V1", "V2", "V3", "hV4", "VO1", "VO2", "LO1 (prf)", "LO2 (prf)", "TO1", "TO2", "V3b", "V3a")
SELECTIVE = ("EBA", "FFA", "OFA", "STS", "PPA", "RSC", "TOS", "LOC")  # with l and r before them
VISUAL = (*RETINOTOPIC, *(side + area for area in SELECTIVE for side in "lr"), "IT")
CEILINGS = ("nc_singletrial", "nc_testset")  # per cent of the variance
_XYZ = ("voxel_x", "voxel_y", "voxel_z")
_NOT_REGIONS = ("subject_id", "splithalf_", "prf-")
_FLAG = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}


@dataclass(frozen=True)
class Voxels:
    """The voxels chosen of one subject.

    Attributes:
        ids_A: int64, voxel_id of every voxel, in the order of the file.
        rows_V: int64, which of them are chosen, ascending.
        xyz_V3: float32, voxel_x, voxel_y and voxel_z.
        ceiling_V2: float32, nc_singletrial and nc_testset in per cent.
        regions: name -> which of the V voxels belong to it.
        below: how many voxels of the regions were left out for their noise ceiling.
    """

    ids_A: np.ndarray
    rows_V: np.ndarray
    xyz_V3: np.ndarray
    ceiling_V2: np.ndarray
    regions: dict[str, np.ndarray]
    below: int


def read_voxels(path: Path, roi: str | list[str], least_ceiling: float) -> Voxels:
    """Read the table of voxels and choose those of the regions ``roi`` whose nc_singletrial reaches ``least_ceiling``.

    ``roi``: columns of the table, or an area such as "FFA" for lFFA and rFFA, or "visual" for all of VISUAL that are
    there, or "all". A voxel without a ceiling (NaN) is below any threshold above 0.

    Raises:
        ConfigError: an unknown region, or no voxel is left.
        DataError: a missing column, or a value that is not what the column says.
    """
    ids: list[int] = []
    rows: list[int] = []
    numbers: list[list[float]] = []
    flags: list[bytes] = []
    below = 0
    with open_table(path, ("voxel_id", *_XYZ, *CEILINGS)) as (place, lines):
        known = {"voxel_id", *_XYZ, *CEILINGS}
        areas = [name for name in place if name not in known and not name.startswith(_NOT_REGIONS)]
        chosen = _choose_regions(roi, areas, path)
        for line, row in lines:
            where = f"{path}, line {line}"
            ids.append(whole_number(row[place["voxel_id"]], f"{where}: voxel_id"))
            if not chosen or any(_flag(row[place[name]], f"{where}: {name}") for name in chosen):
                values = [_number(row[place[name]], f"{where}: {name}") for name in (*_XYZ, *CEILINGS)]
                if least_ceiling > 0 and not values[3] >= least_ceiling:
                    below += 1
                    continue
                rows.append(len(ids) - 1)
                numbers.append(values)
                flags.append(bytes(_FLAG.get(row[place[name]], 2) for name in areas))
    ids_A = np.array(ids, dtype=np.int64)
    if len(np.unique(ids_A)) != len(ids_A):
        raise DataError(f"{path}: a voxel_id occurs twice. Download the file again.")
    if not rows:
        raise ConfigError(f"{path}: roi {roi} with a noise ceiling from {least_ceiling} has no voxels. Choose others.")
    values_V5 = np.array(numbers, dtype=np.float32)
    flags_VR = np.frombuffer(b"".join(flags), dtype=np.uint8).reshape(len(rows), len(areas))
    regions = _regions(areas, flags_VR)
    return Voxels(ids_A, np.array(rows, dtype=np.int64), values_V5[:, :3], values_V5[:, 3:], regions, below)


def _choose_regions(roi: str | list[str], areas: list[str], path: Path) -> list[str]:
    """Columns whose union is taken; none for "all"."""
    chosen: list[str] = []
    for name in [roi] if isinstance(roi, str) else roi:
        if name == "all":
            return []
        sides = [f"l{name}", f"r{name}"]
        wanted = [name] if name in areas else sides if set(sides) <= set(areas) else []
        wanted = [area for area in VISUAL if area in areas] if name == "visual" else wanted
        if not wanted:
            near = difflib.get_close_matches(name, [*areas, *SELECTIVE, "visual", "all"], n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Regions: {', '.join(areas[:40])}."
            raise ConfigError(f"{path}: no region '{name}'. {hint}")
        chosen += wanted
    if not chosen:
        raise ConfigError("roi is empty: name a region, visual, or all.")
    return list(dict.fromkeys(chosen))


def _regions(areas: list[str], flags_VR: np.ndarray) -> dict[str, np.ndarray]:
    """Voxels of each column that holds 0 and 1 only, and of both sides of an area together."""
    regions = {name: np.flatnonzero(flags_V) for name, flags_V in zip(areas, flags_VR.T) if flags_V.max() <= 1}
    for area in SELECTIVE:
        sides = [regions[side + area] for side in "lr" if side + area in regions]
        if area not in areas and sides:
            regions[area] = np.unique(np.concatenate(sides))
    return {name: voxels for name, voxels in regions.items() if len(voxels)}


def _number(text: str, where: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise DataError(f"{where}: '{text[:40]}', expected a number.") from None


def _flag(text: str, where: str) -> int:
    if text not in _FLAG:
        raise DataError(f"{where}: '{text[:40]}', expected 0 or 1.")
    return _FLAG[text]
