"""Packing raw files that are damaged, and packing that the disk, a quota or a kill stops."""

import os
import shutil
from pathlib import Path

import numpy as np
from drill import recordings
from drill.disasters import injuries_of
from drill.failing_disk import killed_at, largest_file, writes
from drill.road import Judged, Walk, judge, watched
from drill.sets import DTYPES, delivered, pack_set

from cadiff.files import sha256
from cadiff.shards.dataset import Dataset


class Packing:
    """Raw files that nobody has injured, what they give, and a folder ``work`` to pack into."""

    def __init__(self, base: Path, raw: dict[str, str]) -> None:
        self.base, self.work, self.raw = base, base / "work", {name: Path(path) for name, path in raw.items()}
        self._writes: dict[str, int] = {}

    def recordings(self, name: str) -> Path:
        if name not in self.raw:
            self.raw[name] = self.base / "raw" / name
            if not self.raw[name].exists():
                self.raw[name].parent.mkdir(exist_ok=True)
                recordings.WRITERS[name](self.raw[name])
        return self.raw[name]

    def sound(self, name: str) -> Path:
        """What a packer gives: of uninjured raw files, or a small set."""
        out = self.base / "sound" / f"packed-{name}"
        if not out.exists():
            self._pack(name, self.recordings(name) if name not in DTYPES else None, out)
        return out

    def _pack(self, name: str, root: Path | None, out: Path) -> dict | None:
        if name in DTYPES:
            pack_set(name, 1, out)
            return None
        return recordings.PACKERS[name](root, out)

    def damaged(self, name: str, rng: np.random.Generator) -> Judged:
        """Injure one raw file and pack."""
        root, out = self.work / "raw", self.work / "out" / "set"
        sound = self.sound(name)
        shutil.copytree(self.recordings(name), root, copy_function=os.link)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        path, harm = _choose([(path, harm) for path in paths for harm in injuries_of(path)], rng)
        shutil.copyfile(path, beside := path.with_name("copied"))  # not the uninjured file that it is a link to
        os.replace(beside, path)
        harm(path, rng)
        found = Walk()
        with watched([root, self.work / "outside", self.work / "cwd", self.base / "tmp"]) as notes:
            found.step(lambda: self._pack_and_compare(name, root, out, sound, found))
        if found.raised and _parts_are_finished(out.parent):  # kept on purpose: the next start goes on after them
            self._pack(name, self.recordings(name), out)
            if _contents(out) != _contents(sound):
                return "silent", "started again, it gave other bytes"
            shutil.rmtree(out)
        if left := sorted(path.name for path in out.parent.iterdir() if found.raised or path.name != "set"):
            notes.append(("litter", f"{left} beside the packed folder; {found.raised}"))
        outcome, detail = notes[0] if notes else judge(found, {path.name}, False)
        return outcome, f"{path.name}, {harm.__qualname__}: {detail}"

    def _pack_and_compare(self, name: str, root: Path, out: Path, sound: Path, found: Walk) -> None:
        told = self._pack(name, root, out)
        found.listed += [f"{entry['what']}: {entry['why']}" for entry in told["dropped"]]
        if delivered(Dataset(out)) != delivered(Dataset(sound)):
            found.wrong = "packed other signals or pictures, and no word of it"

    def stopped(self, kind: str, name: str, rng: np.random.Generator) -> Judged:
        """Stop packing at some write; started again it must give the same bytes, and leave nothing else."""
        out, sound = self.work / "out" / "set", self.sound(name)

        def work() -> None:
            self._pack(name, None if name in DTYPES else self.recordings(name), out)

        found, at = Walk(), 1 + int(rng.integers(self._count_writes(name, work, out)))
        if kind == "killed while packing":
            if not killed_at(work, out.parent, at):
                return "drill failed", f"was not killed at write {at}"
            found.raised.append(f"{out}: killed at write {at}")
        elif kind == "disk full while packing":
            with writes(out.parent, at, "full"):
                found.step(work)
        else:
            sizes = sorted(path.stat().st_size for path in sound.rglob("*") if path.is_file())
            with largest_file(int(rng.integers(sizes[-1]))):
                found.step(work)
        if found.broken:
            return judge(found, {str(out)}, False)
        if out.exists():  # only the last flush was refused
            if _contents(out) != _contents(sound):
                return "litter", f"{out} is not whole; {found.raised}"
        elif kind != "killed while packing" and any(out.parent.iterdir()) and not _parts_are_finished(out.parent):
            return "litter", f"{[path.name for path in out.parent.iterdir()]} left; {found.raised}"
        found.step(work)
        if not found.broken and _contents(out) != _contents(sound):
            return "silent", "started again, it gave other bytes"
        if [path.name for path in out.parent.iterdir()] != ["set"]:
            return "litter", "started again, it left what the stopped one had left"
        return judge(found, {str(out)}, False)

    def _count_writes(self, name: str, work, out: Path) -> int:
        if name not in self._writes:
            with writes(out.parent, 0, "count") as count:
                work()
            self._writes[name] = count[0]
            shutil.rmtree(out)
        return self._writes[name]


def _choose(values: list, rng: np.random.Generator):
    return values[int(rng.integers(len(values)))]


def _parts_are_finished(folder: Path) -> bool:
    left = list(folder.iterdir())
    return bool(left) and all(list(path.glob("part-*/manifest.json")) for path in left)


def _contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
