"""Injure one thing, walk the road a user takes, and judge what came of it: a process that does this for many."""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np
from drill.absurd import manifest_absurd
from drill.failing_disk import writes
from drill.injuries import accidents, pick, sorts
from drill.kinds import ACCIDENTS, TAMPERING, Injury
from drill.packing import Packing
from drill.road import Judged, Walk, fresh, judge, walk, watched
from drill.sets import delivered, pack_set, streamed
from drill.tampering import any_file, index_odd, manifest_edited, manifest_refused

from cadiff.shards.dataset import Dataset
from cadiff.shards.remote import Remote


class Drill:
    """The sound sets, made once below ``base``, and a folder ``work`` that is new for each injury."""

    def __init__(self, base: Path, raw: dict[str, str]) -> None:
        self.base, self.work, self.packing = base, base / "work", Packing(base, raw)
        self._facts: dict[Path, list[tuple]] = {}
        (base / "tmp").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(base / "tmp")
        os.environ["CADIFF_CACHE"] = str(self.work / "cache")
        Remote.sleep = staticmethod(lambda seconds: None)

    def injure(self, injury: Injury) -> Judged:
        fresh(self.work)
        for name in ("outside", "cwd", "out"):
            (self.work / name).mkdir()
        os.chdir(self.work / "cwd")
        rng = np.random.default_rng(injury.seed)
        if injury.kind in ACCIDENTS:
            kinds = accidents(self.sound(injury.target, 2), injury.target != "scans", injury.target == "scans")
            kinds["manifest: edited by hand"] = manifest_edited
            return self._local(injury, rng, kinds[injury.kind], consistent=False)
        if injury.kind in TAMPERING:
            return self._local(injury, rng, TAMPERING[injury.kind][0], consistent=True)
        if injury.kind.startswith("remote"):
            return self._remote(injury, rng)
        if injury.kind == "cut short or gone after opening":
            return self._after_opening(injury, rng)
        if injury.kind == "raw file damaged":
            return self.packing.damaged(injury.target, rng)
        return self.packing.stopped(injury.kind, injury.target, rng)

    def sound(self, name: str, seed: int = 1) -> Path:
        path = self.base / "sound" / f"{name}-{seed}"
        return path if path.exists() else pack_set(name, seed, path)

    def facts(self, folder: Path) -> list[tuple]:
        """What a sound set gives out."""
        if folder not in self._facts:
            self._facts[folder] = delivered(Dataset(folder))
        return self._facts[folder]

    def _local(self, injury: Injury, rng: np.random.Generator, harm, *, consistent: bool) -> Judged:
        folder, sound = self.work / "set", self.sound(injury.target)
        shutil.copytree(sound, folder)
        names = harm(folder, rng, injury.turn)
        facts = self.facts(sound)
        with watched([self.work, self.base / "tmp"]) as notes:
            found = walk(folder, facts, scans=injury.target == "scans")
        return notes[0] if notes else judge(found, names, consistent)

    def _after_opening(self, injury: Injury, rng: np.random.Generator) -> Judged:
        """A shard changes between the opening of a set and the first read of the shard."""
        folder, sound = self.work / "set", self.sound(injury.target)
        shutil.copytree(sound, folder)
        ds, found = Dataset(folder), Walk()
        paths = sorts(folder)[("signals", "pictures")[injury.turn // 2 % 2]]
        path = paths[int(rng.integers(len(paths)))]
        if rng.random() < 0.3:
            path.unlink()
        else:
            os.truncate(path, int(rng.integers(1000)))
        found.step(lambda: list(streamed(ds)))
        found.step(lambda: delivered(ds))
        return judge(found, {path.name}, False)

    def _remote(self, injury: Injury, rng: np.random.Generator) -> Judged:
        source, cache, sound = self.work / "source", self.work / "cache", self.sound(injury.target)
        names, full_at, consistent = any_file(sound), 0, False
        shutil.copytree(sound, source)
        if injury.kind in ("remote: accident in the cache", "remote: replaced by another set"):
            delivered(Dataset(f"file://{source}"))
        if injury.kind == "remote: accident at the source":
            kinds = accidents(self.sound(injury.target, 2), True, False)
            del kinds["another thing in its place"]  # what a server makes of a pipe is its own affair
            names = list(kinds.values())[injury.turn % len(kinds)](source, rng, injury.turn)
        elif injury.kind == "remote: tampering at the source":
            harm = (manifest_refused, manifest_absurd, index_odd)[injury.turn % 3]
            names, consistent = harm(source, rng, injury.turn // 3), True
        elif injury.kind == "remote: accident in the cache":
            names = self._spoil_cache(next(cache.glob("?" * 16)), rng, injury.turn)
        elif injury.kind == "remote: replaced by another set":
            sound = self.sound(injury.target, 2)
            shutil.rmtree(source)
            shutil.copytree(sound, source)
        else:
            full_at = 1 + int(rng.integers(30))
        facts = self.facts(sound)
        with (
            watched([source, *(self.work / name for name in ("outside", "cwd", "out")), self.base / "tmp"]) as notes,
            writes(cache, full_at, "full"),
        ):
            found = walk(f"file://{source}", facts, scans=False)
        if left := [path.name for path in cache.rglob("*.tmp")]:
            notes.append(("litter", f"{left} in the cache"))
        return notes[0] if notes else judge(found, names, consistent)

    def _spoil_cache(self, root: Path, rng: np.random.Generator, turn: int) -> set[str]:
        """Harm a file of the cache, or what the cache keeps beside it."""
        if turn % 6 == 4:
            path = pick(root, rng, turn)
            path.unlink()
            path.with_name(f".{path.name}.999999999.tmp").write_bytes(b"of a process that was killed")
            return any_file(root)
        if turn % 6 == 5:
            marks = sorted(root.glob(".*.ok"))
            marks[int(rng.integers(len(marks)))].write_bytes(rng.bytes(64))
            return any_file(root)
        kinds = accidents(self.sound("half", 2), True, False)
        wanted = ("flip: block", "cut short", "flip: index.npz", "another thing in its place")[turn % 6]
        return kinds[wanted](root, rng, turn)


def main() -> None:
    """Read injuries as JSON lines from standard input, and answer each with [outcome, detail]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    drill = Drill(Path(sys.argv[1]), json.loads(sys.argv[2]))
    for line in sys.stdin:
        try:
            judged = drill.injure(Injury(**json.loads(line)))
        except Exception:  # noqa: BLE001 - a mistake of the drill itself must not pass for an outcome
            judged = ("drill failed", traceback.format_exc())
        print(json.dumps(judged), file=answers, flush=True)


if __name__ == "__main__":
    main()
