"""The manifest of a packed folder: its schema, and safe reading of it.

``manifest.json`` is written last, so a folder with one is finished; its sha256 is the version of the data. It is
untrusted when read: every name, size and count is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadiff.errors import DataError
from cadiff.files import read_json

FORMAT = "cadiff-shards/2"
KINDS = ("hcp", "god", "bold5000", "things", "nsd", "table", "images", "merged")
MANIFEST_BYTES = 256 * 1024**2  # a larger one is an attack or a mistake
REMEDY = "Mend it with `cadiff shards repair FOLDER --from COPY`, copy the folder again, or pack again."

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Subject(_Part):
    name: str
    voxels: Count
    family: str = ""  # subjects of one family never lie on two sides of a split; empty: not known


class PackedFile(_Part):
    path: FileName
    bytes: Count
    sha256: Sha256


class Source(_Part):
    """One input file, by a name relative to the folder the user gave."""

    name: str
    bytes: Count
    sha256: Sha256


class Array(_Part):
    """An array of index.npz that belongs to one subject, or ("*") to all.

    ``role``: "roi" (columns of the signals that belong to region ``name``), "mean" and "std" (what the signals were
    z-scored with), "ids" and "xyz" (what each voxel is, and where), or another that the packer documents.
    """

    subject: str
    role: str
    name: str
    array: FileName


class Dropped(_Part):
    what: str
    why: str


class Scans(_Part):
    """The zarr archive beside the shards; ``sha256`` covers the names, sizes and hashes of its files."""

    path: FileName
    arrays: Count
    bytes: Count
    sha256: Sha256


class Manifest(_Part):
    format: Literal["cadiff-shards/2"]
    kind: Literal["hcp", "god", "bold5000", "things", "nsd", "table", "images", "merged"]
    dtype: Literal["float16", "float32", "int16", "int8"]
    # What keeps the splits apart: whole subjects, whole runs, whole stimuli, or the end of each run ("tail").
    split_by: Literal["subject", "run", "stimulus", "tail"]
    subjects: list[Subject]
    runs: list[str]
    sessions: list[str]
    stimuli: list[str]
    classes: list[str]
    samples: dict[Literal["train", "val", "test"], Count]
    options: dict[str, Any]
    recipe_sha256: Sha256  # of kind and options: equal recipes on equal sources give equal bytes
    made_by: dict[str, str]  # versions of the tools that decide the bytes
    sources: list[Source]
    files: list[PackedFile]
    arrays: list[Array]
    dropped: list[Dropped]
    notes: dict[str, Any]
    scans: Scans | None
    checksum: Sha256  # see manifest_checksum


def manifest_checksum(tree: dict[str, Any]) -> str:
    """sha256 of all that a manifest says beside its own checksum: a name that is changed by accident is noticed."""
    rest = json.loads(json.dumps({name: value for name, value in tree.items() if name != "checksum"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest.json, not the files it lists.

    Raises:
        DataError: not JSON, not of this schema, or of another version.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > MANIFEST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, more than any manifest has. Damaged. {REMEDY}")
    try:
        tree = _read_tree(path)
        found = tree.get("format") if isinstance(tree, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path}: format {json.dumps(found)[:60]}, expected {json.dumps(FORMAT)}. Another version of CADiff "
                f"wrote it, or it is damaged. {REMEDY}"
            )
        manifest = Manifest.model_validate(tree)
        if manifest.checksum != manifest_checksum(tree):
            raise DataError(f"{path}: its checksum is not that of its content. Damaged or edited. {REMEDY}")
        return manifest
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise DataError(f"{path}: {where}: {first['msg']}. Damaged, or of another version. {REMEDY}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for a manifest. Damaged. {REMEDY}") from None


def _read_tree(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError as problem:  # its own remedy is for files that one command writes anew
        raise DataError(str(problem).replace("Make it again with the command that wrote it.", REMEDY)) from None


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check manifest.json, and that every file it lists has its full size.

    Raises:
        DataError: not a packed folder, an unfinished or damaged one, or one of another version.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not folder.exists():
        raise DataError(
            f"{folder}: no such folder (looked in {Path.cwd()}). Pack it first with cadiff pack, or correct "
            "data.shards; runs/demo is made by cadiff demo."
        )
    if not path.is_file():
        raise DataError(f"{folder}: no manifest.json, so this is not a finished packed folder. Run cadiff pack again.")
    manifest = parse_manifest(path)
    for entry in manifest.files:
        file = folder / entry.path
        found = file.stat().st_size if file.is_file() else None
        if found != entry.bytes:
            state = "missing" if found is None else f"{found:,} bytes"
            raise DataError(f"{file}: {state}, expected {entry.bytes:,} bytes. {REMEDY}")
    return manifest


def shard_names(manifest: Manifest) -> list[str]:
    """Tar shards in the order in which the index numbers them."""
    return [entry.path for entry in manifest.files if entry.path.endswith(".tar")]
