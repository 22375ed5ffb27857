"""The header of a CIFTI-2 dense time series: the NIfTI-2 fields, and the XML that says what each column is.

Written after the CIFTI-2 and NIfTI-2 specifications: nibabel spends half a second on the 91,282 places of a file, most
of it on positions of voxels that nobody asks for here. The runs of a study say the same, so it is parsed only once.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.mmp import CORTEX, parcellation

MESH = 32_492  # vertices per hemisphere of the 32k fs_LR mesh, medial wall included
LEFT_RIGHT = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
SERIES = ("SeriesAxis", "BrainModelAxis")  # the axes of a dense time series, as nibabel calls them
_AXES = {"SERIES": "SeriesAxis", "BRAIN_MODELS": "BrainModelAxis", "PARCELS": "ParcelsAxis", "SCALARS": "ScalarAxis",
         "LABELS": "LabelAxis"}  # fmt: skip
# Fields of NIfTI-2's fixed header that matter here: sizeof_hdr, magic, datatype, dim, vox_offset, scl_slope, scl_inter.
_FIELDS, _NIFTI2 = "i8sh2x8q88xqdd", 540
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CIFTI = 32  # NIfTI's code of an extension that holds CIFTI's XML
_MOST = 64 * 1024**2  # a larger header is damage: the release's have 0.6 MB
_OPEN, _CLOSE = b"<MatrixIndicesMap", b"</MatrixIndicesMap>"


@dataclass(frozen=True)
class Layout:
    """What a file's XML says, the same for all files that say it.

    Attributes:
        kinds: the axes, by nibabel's names; of any but a dense time series nothing else is known.
        shape: frames and columns.
        meshes: mesh vertices of the left and the right cortex, 0 where it is absent.
        sizes: columns of each structure, in the file's order.
        place_C: int64 (59412,), the column of each cortical grayordinate, -1 where the file has none; None if the
            meshes are others.
    """

    kinds: tuple[str, ...]
    shape: tuple[int, ...] = ()
    tr_s: float = 0.0
    meshes: tuple[int, int] = (0, 0)
    sizes: tuple[int, ...] = ()
    place_C: np.ndarray | None = None


@dataclass(frozen=True)
class DenseHeader:
    """What is known of a dense time series before its values are read."""

    path: Path
    frames: int
    grayordinates: int
    tr_s: float
    offset: int  # bytes before the first value
    dtype: np.dtype
    slope: float
    inter: float
    layout: Layout
    sha256: str  # of all bytes before the first value


def parse_header(path: Path) -> DenseHeader:
    """Read and check everything before the values.

    Raises:
        DataError: not CIFTI, not a dense time series (parcellated, scalar, label), or damaged.
    """
    with open(path, "rb") as handle:
        fixed = handle.read(_NIFTI2)
        order = "<" if fixed[:4] == struct.pack("<i", _NIFTI2) else ">"
        known = struct.unpack_from(f"{order}{_FIELDS}", fixed) if len(fixed) == _NIFTI2 else (0, b"")
        if known[0] != _NIFTI2 or known[1][:3] != b"n+2":
            raise DataError(f"{path}: not a NIfTI-2 file, expected a CIFTI-2 dense time series (.dtseries.nii).")
        _, _, code, *dim, offset, slope, inter = known
        if not _NIFTI2 <= offset <= _MOST:
            raise _damaged(path, f"values at byte {offset:,}")
        rest = handle.read(offset - _NIFTI2)
    try:
        layout = _layout(_matrix_maps(path, rest, order))
    except (ValueError, KeyError, OverflowError, ElementTree.ParseError) as problem:
        raise _damaged(path, str(problem)) from None
    if layout.kinds != SERIES:
        raise DataError(
            f"{path}: its axes are {' x '.join(layout.kinds)}, expected {' x '.join(SERIES)}. Parcellated, scalar and "
            "label files hold no grayordinate time series; use the run's .dtseries.nii."
        )
    if tuple(dim[1:7]) != (1, 1, 1, 1, *layout.shape):
        raise _damaged(path, f"the matrix is {dim[5:7]} by its NIfTI header and {list(layout.shape)} by its XML")
    if code not in _TYPES:
        raise _damaged(path, f"values of NIfTI type {code}")
    scaled = math.isfinite(slope) and slope != 0
    if scaled and not math.isfinite(inter):
        raise _damaged(path, f"an intercept of {inter}")
    scaling = (slope, inter) if scaled else (1.0, 0.0)
    dtype = np.dtype(_TYPES[code]).newbyteorder(order)
    head = hashlib.sha256(fixed + rest).hexdigest()
    return DenseHeader(path, *layout.shape, layout.tr_s, offset, dtype, *scaling, layout, head)


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: its CIFTI header is damaged ({problem}). Download the file again.")


def _matrix_maps(path: Path, rest: bytes, order: str) -> bytes:
    """The XML from the first matrix map to the last, out of the extensions that follow the fixed header.

    Without what stands before them, so that nothing there can define entities for the parser to expand.
    """
    place = 4  # after the four bytes that announce extensions
    while place + 8 <= len(rest):
        size, code = struct.unpack_from(f"{order}ii", rest, place)
        if code == _CIFTI:
            text = rest[place + 8 : place + max(size, 8)]
            start, stop = text.find(_OPEN), text.rfind(_CLOSE)
            if 0 <= start < stop:
                return text[start : stop + len(_CLOSE)]
        place += max(size, 8)
    raise DataError(f"{path}: no description of a CIFTI matrix, expected a CIFTI-2 dense time series (.dtseries.nii).")


@lru_cache(maxsize=32)
def _layout(maps: bytes) -> Layout:
    """Parse the matrix maps. Raises ValueError or KeyError where they contradict themselves."""
    kinds, of_kind = {}, {}
    for node in ElementTree.fromstring(b"<Matrix>" + maps + b"</Matrix>").iter("MatrixIndicesMap"):
        kind = node.attrib["IndicesMapToDataType"].removeprefix("CIFTI_INDEX_TYPE_")
        for dimension in node.attrib["AppliesToMatrixDimension"].split(","):
            kinds[int(dimension)] = _AXES.get(kind, kind)
        of_kind[_AXES.get(kind, kind)] = node
    axes = tuple(kinds[dimension] for dimension in sorted(kinds))
    if axes != SERIES:
        return Layout(axes)
    series = of_kind["SeriesAxis"].attrib
    seconds = float(series["SeriesStep"]) * 10.0 ** int(series["SeriesExponent"])
    models = sorted(of_kind["BrainModelAxis"].iter("BrainModel"), key=lambda model: int(model.attrib["IndexOffset"]))
    sizes = tuple(int(model.attrib["IndexCount"]) for model in models)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    if [int(model.attrib["IndexOffset"]) for model in models] != starts or min(sizes, default=0) < 0:
        raise ValueError("its structures overlap or leave columns out")
    frames = int(series["NumberOfSeriesPoints"])
    if frames < 1 or not math.isfinite(seconds):
        raise ValueError(f"{frames} frames, {seconds} s apart")
    by_name = {model.attrib["BrainStructure"]: (model, start) for model, start in zip(models, starts)}
    sides = [by_name.get(name) for name in LEFT_RIGHT]
    meshes = tuple(int(side[0].attrib["SurfaceNumberOfVertices"]) if side else 0 for side in sides)
    place_C = _places(sides) if meshes == (MESH, MESH) else None
    tr_s = seconds if series["SeriesUnit"] == "SECOND" else 0.0
    return Layout(axes, (frames, sum(sizes)), tr_s, meshes, sizes, place_C)


def _places(sides: list[tuple[ElementTree.Element, int]]) -> np.ndarray:
    table = parcellation()
    place_C = np.full(CORTEX, -1, dtype=np.int64)
    for (model, start), part in zip(sides, (slice(0, table.left), slice(table.left, CORTEX))):
        vertices = np.array((model.findtext("VertexIndices") or "").split(), dtype=np.int64)
        count = int(model.attrib["IndexCount"])
        if len(vertices) != count or not ((vertices >= 0) & (vertices < MESH)).all():
            raise ValueError(f"{len(vertices):,} vertices listed for {count:,} columns, or some beyond the mesh")
        column_of_vertex = np.full(MESH, -1, dtype=np.int64)
        column_of_vertex[vertices] = start + np.arange(count)
        place_C[part] = column_of_vertex[table.vertex_C[part]]
    return place_C
