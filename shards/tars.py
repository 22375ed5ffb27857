"""A series of uncompressed, reproducible tar shards: ordinary WebDataset files whose data offsets we remember."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from cadiff.files import copy_file, share_file

SHARD_BYTES = 512 * 1024**2  # a shard is closed when it has reached this size
_BLOCK = 512  # tar's unit: one header, and the padding of contents


class Tars:
    """One series of tar files ``<prefix>-000000.tar`` …, each begun when the one before is full."""

    def __init__(self, folder: Path, prefix: str, shards: list[Path], shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._prefix, self._shards, self._shard_bytes = folder, prefix, shards, shard_bytes
        self._count, self._size, self._tar, self._stream = 0, 0, None, None

    def write(self, key: str, extension: str, data: bytes, told: dict[str, Any]) -> tuple[int, int]:
        """Write one sample of two members; return (shard number, offset of ``data`` within the shard)."""
        if self._tar is None or self._size >= self._shard_bytes:
            self.close()
            self._open()
        text = json.dumps(told, sort_keys=True, allow_nan=False).encode()
        offset = 0
        for name, content in sorted({extension: data, "json": text}.items()):
            if name == extension:
                offset = self._size + _BLOCK
            self._size += _BLOCK + -(-len(content) // _BLOCK) * _BLOCK
        self._tar.write({"__key__": key, extension: data, "json": text})
        return self._number, offset

    def adopt(self, path: Path, *, share: bool) -> int:
        """Take over a finished tar as the next of this series; return its shard number.

        Args: ``share``: by a second name for the same file, where the file system can; else by a copy.
        """
        self.close()
        target = self._next()
        if share:
            share_file(path, target)
        else:
            copy_file(path, target)
        return self._number

    def _next(self) -> Path:
        path = self._folder / f"{self._prefix}-{self._count:06d}.tar"
        self._number, self._count, self._size = len(self._shards), self._count + 1, 0
        self._shards.append(path)
        return path

    def _open(self) -> None:
        from webdataset import TarWriter

        path = self._next()
        self._stream = open(path, "wb")  # noqa: SIM115 - closed by close(), as shards outlive a block
        self._tar = TarWriter(self._stream, user="", group="", mtime=0, encoder=False, compress=None)

    def abandon(self) -> None:
        """Let go of a tar that will never be finished, without writing its end."""
        if self._tar is not None:
            self._tar.tarstream.fileobj.closed = True  # else its destructor would write to the closed stream
            with suppress(OSError):  # a full disk refuses the rest of what is buffered
                self._stream.close()
            self._tar = None

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._tar = None
