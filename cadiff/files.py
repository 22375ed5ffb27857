"""Files that are whole or absent: write beside, flush to disk, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cadiff.errors import DataError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all files below ``folder`` durable: by one call for its file system where there is one, else one by one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "syncfs"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            if libc.syncfs(handle):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        finally:
            os.close(handle)
        return
    for path in sorted(folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes and flush them to disk."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, 8 * 1024**2)
        writing.flush()
        os.fsync(writing.fileno())


def share_file(source: Path, target: Path) -> None:
    """Give a file that nobody will change a second name; copy it where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EEXIST, errno.ENOENT):
            raise
        copy_file(source, target)


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys: the same value gives the same bytes. NaN is refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON, or say which file is missing or damaged."""
    if not Path(path).is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: no such file.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as problem:
        raise DataError(
            f"{path}: not readable as JSON ({problem}). Make it again with the command that wrote it."
        ) from None


def memory_bytes(system: Path = Path("/")) -> int:
    """RAM this process may use: the machine's, or less where a container, a scheduler or ulimit sets a limit.

    Limits of control groups count at every level above the process (versions 1 and 2).
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [soft for soft, _ in map(resource.getrlimit, (resource.RLIMIT_AS, resource.RLIMIT_DATA)) if soft > 0]
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            top, name = system / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = system / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / path.strip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)


def sha256(path: str | Path) -> str:
    """Hash a file in constant memory."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
