"""A disk that is full, or a process that is killed, at the nth write to a file below a folder."""

import builtins
import errno
import io
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writes(below: Path, at: int, act: str) -> Iterator[list[int]]:
    """Count what is written to files below a folder; from the ``at``-th time on, act: "full" or "kill".

    A write is one that reaches the system, or a flush to the disk. The list that is given holds the count.
    """
    count, real, real_fsync = [0], builtins.open, os.fsync

    def tick() -> None:
        count[0] += 1
        if count[0] >= at > 0:
            if act == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Raw(io.FileIO):
        def write(self, data):
            tick()
            return super().write(data)

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        inside = isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(below)
        if not inside or not set(mode) & set("wax+"):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def fsync(handle) -> None:
        tick()
        real_fsync(handle)

    builtins.open = io.open = opened
    os.fsync = fsync
    try:
        yield count
    finally:
        builtins.open = io.open = real
        os.fsync = real_fsync


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let the system refuse to make any file larger than so many bytes, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def killed_at(work, below: Path, at: int) -> bool:
    """Do ``work()`` in a forked process that is killed at its ``at``-th write; False if it ended before."""
    child = os.fork()
    if child == 0:
        try:
            with writes(below, at, "kill"):
                work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
