"""The archive of whole scans: one uncompressed zarr v3 array (T frames, V voxels) float16 per run.

zarr is fine as an archive and slow as a loader (0.4 ms per request), so training reads the tar blocks instead.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import sha256
from cadiff.shards.record import safe_key
from cadiff.shards.voxels import to_half

CHUNK_FRAMES = 250  # frames per chunk: 2 MB at the paper's width


class ScanWriter:
    """Append runs to a new archive. It lies inside a folder that is renamed when complete, so it is never seen half."""

    def __init__(self, folder: Path) -> None:
        import zarr

        self.folder = folder
        self._group = zarr.create_group(store=str(folder), zarr_format=3)
        self.count = 0

    def add(self, subject: str, run: str, frames_TV: np.ndarray, attributes: dict[str, Any]) -> None:
        """Store one z-scored run as ``<subject>/<run>``; subject and run are kept verbatim in its attributes."""
        array = self._group.create_array(
            f"{safe_key(subject)}/{safe_key(run)}",
            shape=frames_TV.shape,
            chunks=(min(CHUNK_FRAMES, len(frames_TV)), frames_TV.shape[1]),
            dtype="float16",
            compressors=None,
            filters=None,
            attributes={"subject": subject, "run": run, **attributes},
        )
        array[:] = to_half(frames_TV)
        self.count += 1

    def describe(self) -> dict[str, Any]:
        """The manifest's entry for this archive."""
        size, digest = archive_hash(self.folder)
        return {"path": self.folder.name, "arrays": self.count, "bytes": size, "sha256": digest}


def archive_hash(folder: Path) -> tuple[int, str]:
    """Total bytes, and one sha256 over the sorted names, sizes and hashes of all files."""
    total, digest = 0, hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        total += size
        digest.update(f"{path.relative_to(folder).as_posix()}\t{size}\t{sha256(path)}\n".encode())
    return total, digest.hexdigest()


def open_scans(folder: str | Path) -> Any:
    """Open a packed folder's scans for reading: a zarr group with arrays ``<subject>/<run>`` of float16 (T, V).

    Raises:
        DataError: the folder has no archive, or it is damaged.
    """
    import zarr

    path = Path(folder) / "scans.zarr"
    try:
        return zarr.open_group(store=str(path), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{path}: no readable scan archive ({problem}). Only packed HCP runs have one.") from None
