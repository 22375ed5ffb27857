"""The road a user takes over a packed set, and what came of it: named, harmless, or one of the failures."""

import contextlib
import io
import json
import os
import shutil
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from drill.sets import as_streamed, delivered, streamed
from typer.main import get_command

from cadiff.errors import CadiffError
from cadiff.launch.cli import app
from cadiff.shards.dataset import Dataset
from cadiff.shards.facts import facts
from cadiff.shards.verify import glance, verify
from cadiff.shards.zarr_store import open_scans

Judged = tuple[str, str]  # outcome, what it rests on
GOOD = ("named", "named by verify", "harmless")  # others: silent, unnamed, wrong error, litter, memory, crashed, hung
MEMORY_KB = 600 * 1024  # more than this on top of what the process had is an attack that works


@dataclass
class Walk:
    """What happened on the road.

    Attributes:
        raised: messages of the errors that ended a step; ``listed``: what verify found.
        wrong: something else than the sound set was given out.
        broken: the traceback of an error that no user should see.
    """

    raised: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    wrong: str = ""
    broken: str = ""

    def step(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CadiffError as problem:
            self.raised.append(str(problem))
        except Exception:  # noqa: BLE001 - that is what is looked for
            self.broken = self.broken or traceback.format_exc(limit=-4)


def walk(folder: Path | str, sound: list[tuple], *, scans: bool) -> Walk:
    """Open, stream an epoch of each split, read everything, look and verify; ``sound``: what it should give out."""
    found, url = Walk(), "://" in str(folder)

    def stream() -> None:
        expected = as_streamed(sound)
        for fact in streamed(Dataset(folder)):
            if fact not in expected:
                found.wrong = f"streamed {fact}"

    def read() -> None:
        given = delivered(Dataset(folder))
        if given != sound:
            differ = sorted(set(given) ^ set(sound))
            found.wrong = found.wrong or f"read {differ[:2]} of {len(differ)}"

    found.step(stream)
    found.step(read)
    if not url:
        found.step(lambda: json.dumps(facts(folder)))
        found.step(lambda: glance(folder))
        found.step(lambda: found.listed.extend(verify(folder)))
        found.step(lambda: _command(folder, bool(found.listed)))
    if scans:
        found.step(lambda: open_scans(folder))
    return found


@lru_cache(maxsize=1)
def _cadiff():
    return get_command(app)


def _command(folder: Path, damaged: bool) -> None:
    """``cadiff shards verify`` must agree with what ``verify`` has found."""
    code, told = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            _cadiff()(["-q", "shards", "verify", str(folder)], standalone_mode=False)
    except CadiffError as problem:
        code = problem.exit_code
    assert code == (3 if damaged else 0), f"exit code {code}: {told.getvalue()}"


def judge(found: Walk, names: set[str], consistent: bool) -> Judged:
    """The outcome and what it rests on. ``consistent``: hashes agree, so only verify can tell some of it."""

    def named(message: str) -> bool:
        return any(name in message for name in names)

    if found.broken:
        return "wrong error", found.broken
    if found.wrong and not (consistent and found.listed):
        return "silent", found.wrong
    if unnamed := [message for message in found.raised if not named(message)]:
        return "unnamed", unnamed[0]
    if found.raised:
        return "named", found.raised[0]
    if found.listed:
        told = next((message for message in found.listed if named(message)), "")
        return ("named by verify", told) if told else ("unnamed", found.listed[0])
    return "harmless", "everything given out is as in the sound set, and verify says so"


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything below a folder: what it is, its size, and when it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        size = state.st_size if stat.S_ISREG(state.st_mode) else 0
        found[path.relative_to(folder).as_posix()] = (stat.S_IFMT(state.st_mode), size, state.st_mtime_ns)
    return found


@contextlib.contextmanager
def watched(folders: list[Path]) -> Iterator[list[tuple[str, str]]]:
    """Note what is written to folders that nobody may write to, and memory beyond measure."""
    notes: list[tuple[str, str]] = []
    before = [snapshot(folder) for folder in folders]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    at_first = _kilobytes("VmRSS")
    yield notes
    for folder, old in zip(folders, before):
        new = snapshot(folder)
        if new != old:
            changed = sorted(name for name in {*new, *old} if new.get(name) != old.get(name))
            notes.append(("litter", f"{folder}: {', '.join(changed[:5])}"))
    if (more := _kilobytes("VmHWM") - at_first) > MEMORY_KB:
        notes.append(("memory", f"{more // 1024:,} MB at once"))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def fresh(folder: Path) -> Path:
    """An empty folder."""
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
