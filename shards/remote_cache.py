"""The cache of downloaded shards: one folder per set, locks between processes, checked files, eviction by last use.

Beside a file ``name`` lie, all hidden: ``.name.ok``, its sha256, written last and touched at each use; ``.name.lock``,
held by the process that downloads, checks or evicts it; ``.name.<pid>.tmp``, a download in progress. Locks are the
kernel's (flock), so a killed process holds none, and what it left is removed by the next that gets its lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cadiff.files import sha256 as sha256_of
from cadiff.files import write_text

log = logging.getLogger(__name__)

RECENT_S = 600  # files that this process used so lately are evicted last
WAIT_S = 0.2  # between looks at a cache that others' downloads fill

_SET = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HIDDEN = re.compile(r"\.(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)\.(?P<part>ok|lock|[0-9]+\.tmp)")
_used: dict[Path, float] = {}  # file -> when this process last used it


def use(path: Path, size: int, sha256: str) -> bool:
    """Note the use of a file that is present and was checked; False if it is not."""
    try:
        if path.stat().st_size != size or _beside(path, "ok").read_bytes() != sha256.encode():
            return False
        os.utime(_beside(path, "ok"))
    except FileNotFoundError:
        return False
    _used[path] = time.monotonic()
    return True


def adopt(path: Path, size: int, sha256: str) -> bool:
    """Hash a file that is present without its mark, and mark it if it is right."""
    if not path.is_file() or path.stat().st_size != size or sha256_of(path) != sha256:
        return False
    _mark(path, sha256)
    return True


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file: one process of the node works on it, the others wait here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(_beside(path, "lock"), fcntl.LOCK_EX):
        yield


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to download into, gone at the end; only within ``alone``."""
    for part in _downloads(path):  # of killed processes: the living hold the lock
        part.unlink(missing_ok=True)
    beside = _beside(path, f"{os.getpid()}.tmp")
    try:
        beside.write_bytes(b"")
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def publish(beside: Path, path: Path, sha256: str) -> None:
    """Put a checked download in place, then mark it: a crash in between costs one more hashing."""
    _beside(path, "ok").unlink(missing_ok=True)
    os.replace(beside, path)
    _mark(path, sha256)


def clear(path: Path) -> None:
    """Remove a file and all that lies beside it but the lock. Who has it open or mapped can go on reading."""
    for part in (_beside(path, "ok"), path, *_downloads(path)):
        part.unlink(missing_ok=True)


def reserve(cache: Path, cap_bytes: int, beside: Path, size: int) -> None:
    """Evict until ``size`` more bytes fit, and hold them by giving the file ``beside`` this size (a hole).

    Waits while nothing is left but other processes' downloads. ``size`` must not exceed ``cap_bytes``.
    """
    while True:
        with _locked(cache / ".evict.lock", fcntl.LOCK_EX):
            if _make_room(cache, cap_bytes - size):
                os.truncate(beside, size)
                return
        time.sleep(WAIT_S)


@dataclass
class _Held:
    """What one file takes in the cache, downloads in progress included, and when it was last used."""

    bytes: int = 0
    used: float = 0.0


def _make_room(cache: Path, allowed: int) -> bool:
    """Evict, least recently used first, until ``allowed`` bytes are left at most; False if that was not possible."""
    held, now = _inventory(cache), time.monotonic()
    total = sum(file.bytes for file in held.values())
    for path in sorted(held, key=lambda path: (now - _used.get(path, -RECENT_S) < RECENT_S, held[path].used)):
        if total <= allowed:
            break
        if held[path].bytes and _evict(path):
            log.info("%s: evicted from the cache (%s bytes).", path, f"{held[path].bytes:,}")
            total -= held[path].bytes
    return total <= allowed


def _evict(path: Path) -> bool:
    try:
        with _locked(_beside(path, "lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
            clear(path)
    except BlockingIOError:
        return False  # being downloaded or checked
    return True


def _inventory(cache: Path) -> dict[Path, _Held]:
    """Files of all sets. Nothing else that lies in the folder is looked at, or ever removed."""
    held: dict[Path, _Held] = {}
    for folder in (entry for entry in cache.iterdir() if _SET.fullmatch(entry.name) and entry.is_dir()):
        for entry in os.scandir(folder):
            hidden = _HIDDEN.fullmatch(entry.name)
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since the folder was listed
            if not entry.is_file(follow_symlinks=False) or not (hidden or _FILE.fullmatch(entry.name)):
                continue
            file = held.setdefault(folder / (hidden["name"] if hidden else entry.name), _Held())
            if hidden and hidden["part"] == "ok":
                file.used = found.st_mtime
                continue
            file.bytes += found.st_size
            if not hidden and not file.used:
                file.used = found.st_mtime  # not marked yet
    return held


def _mark(path: Path, sha256: str) -> None:
    write_text(_beside(path, "ok"), sha256)
    _used[path] = time.monotonic()


def _beside(path: Path, part: str) -> Path:
    return path.with_name(f".{path.name}.{part}")


def _downloads(path: Path) -> list[Path]:
    found = [(entry, _HIDDEN.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    return [entry for entry, hidden in found if hidden and hidden["name"] == path.name and ".tmp" in hidden["part"]]


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with open(path, "ab") as handle:
        fcntl.flock(handle, how)
        try:
            yield
        finally:
            # Closing is not enough: a process forked meanwhile has a copy of the handle.
            fcntl.flock(handle, fcntl.LOCK_UN)
