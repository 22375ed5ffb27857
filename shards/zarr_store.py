"""The archive of whole scans: one uncompressed zarr v3 array (T frames, V voxels) float16 per run.

zarr is fine as an archive and slow as a loader (0.4 ms per request), so training reads the tar blocks instead.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.errors import DataError
from cadiff.files import read_json, sha256, share_file, write_json
from cadiff.shards.parallel import cores
from cadiff.shards.record import safe_key
from cadiff.shards.voxels import to_half

_DESCRIPTION_BYTES = 16 * 1024**2  # most that zarr.json of the archive may have: it is read whole
SCANS = "scans.zarr"  # name of the archive in a packed folder
_LISTED = ".files.json"  # beside a part's archive: what is in it
CHUNK_FRAMES = 250  # frames per chunk: 2 MB at the paper's width


class ScanWriter:
    """Append runs to a new archive. It lies inside a folder that is renamed when complete, so it is never seen half.

    Chunks that are not compressed are plain bytes, and what describes them is a little JSON (zarr v3 specification), so
    both are written without zarr: five times as fast, and the same bytes whatever its version.

    Attributes:
        files: size and sha256 of every file, by its path within the archive, taken while it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.files: dict[str, tuple[int, str]] = {}
        self._describe(folder, {"node_type": "group", "attributes": {}})

    def add(
        self,
        subject: str,
        run: str,
        frames_TV: np.ndarray,
        attributes: dict[str, Any],
        zscore: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Store one z-scored run as ``<subject>/<run>``; subject and run are kept verbatim in its attributes.

        Args:
            frames_TV: float16 or float32 (T, V).
            zscore: float32 (V,) arrays by name, what the run was z-scored with: kept as ``<subject>/<run>.<name>``.
        """
        group, key = self.folder / safe_key(subject), safe_key(run)
        if not group.is_dir():
            self._describe(group, {"node_type": "group", "attributes": {}})
        half_TV = frames_TV if frames_TV.dtype == np.float16 else to_half(frames_TV)
        self._store(group / key, half_TV, CHUNK_FRAMES, {"subject": subject, "run": run, **attributes})
        for name, values_V in (zscore or {}).items():
            self._store(group / f"{key}.{name}", values_V, len(values_V), {})

    def _store(self, folder: Path, values: np.ndarray, rows: int, attributes: dict[str, Any]) -> None:
        """Write an array in chunks of ``rows`` entries of its first axis."""
        rows = min(rows, len(values))
        self._describe(
            folder,
            {
                "node_type": "array",
                "shape": values.shape,
                "data_type": values.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *values.shape[1:]]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0.0,
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                "attributes": attributes,
                "storage_transformers": [],
            },
        )
        little = values.dtype.newbyteorder("<")
        for number, start in enumerate(range(0, len(values), rows)):
            path = folder.joinpath("c", str(number), *["0"] * (values.ndim - 1))
            path.parent.mkdir(parents=True, exist_ok=True)
            chunk = np.ascontiguousarray(values[start : start + rows], dtype=little)
            if len(chunk) < rows:  # the last chunk is whole too, filled up with zeros
                chunk = np.concatenate([chunk, np.zeros((rows - len(chunk), *chunk.shape[1:]), dtype=little)])
            self._write(path, chunk.data)
        self.count += 1

    def _describe(self, folder: Path, node: dict[str, Any]) -> None:
        folder.mkdir()
        text = json.dumps({"zarr_format": 3, **node}, indent=1, sort_keys=True, allow_nan=False)
        self._write(folder / "zarr.json", text.encode())

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        path.write_bytes(data)
        name = path.relative_to(self.folder).as_posix()
        self.files[name] = memoryview(data).nbytes, hashlib.sha256(data).hexdigest()

    def list_files(self) -> None:
        """Note ``files`` beside the archive, for ``adopt``."""
        write_json(self.folder.with_suffix(_LISTED), self.files)

    def adopt(self, folder: Path) -> None:
        """Take another archive's files into this one under second names; no subject may be in both."""
        listed = {name: tuple(entry) for name, entry in read_json(folder.with_suffix(_LISTED)).items()}
        self.files = listed | self.files
        for subject in sorted(path for path in folder.iterdir() if path.is_dir()):
            self.count += sum(1 for path in subject.iterdir() if path.is_dir())
            shutil.copytree(subject, self.folder / subject.name, copy_function=_share)

    def describe(self) -> dict[str, Any]:
        """The manifest's entry for this archive."""
        size, digest = _hash_of_listing(self.files)
        return {"path": self.folder.name, "arrays": self.count, "bytes": size, "sha256": digest}


def _share(source: str, target: str) -> None:
    share_file(Path(source), Path(target))


def archive_hash(folder: Path) -> tuple[int, str]:
    """Total bytes, and one sha256 over the sorted names, sizes and hashes of all files, read anew."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(cores()) as pool:
        return _hash_of_listing(dict(zip(names, pool.map(lambda path: (path.stat().st_size, sha256(path)), paths))))


def _hash_of_listing(files: dict[str, tuple[int, str]]) -> tuple[int, str]:
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        size, content = files[name]
        digest.update(f"{name}\t{size}\t{content}\n".encode())
    return sum(size for size, _ in files.values()), digest.hexdigest()


def open_scans(folder: str | Path) -> Any:
    """Open a packed folder's scans for reading: a zarr group with arrays ``<subject>/<run>`` of float16 (T, V).

    Raises:
        DataError: the folder has no archive, or it is damaged.
    """
    import zarr

    path = Path(folder) / SCANS
    try:
        if not (path / "zarr.json").is_file():
            raise FileNotFoundError("no zarr.json")
        if (size := (path / "zarr.json").stat().st_size) > _DESCRIPTION_BYTES:
            raise ValueError(f"zarr.json has {size:,} bytes")
        return zarr.open_group(store=str(path), mode="r")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise DataError(f"{path}: no readable scan archive ({problem}). Only packed HCP runs have one.") from None
