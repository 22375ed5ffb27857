"""The fault drill: some hundred injuries of packed sets, caches and raw files; each is named, or does no harm.

``python -m pytest tests/shards/test_drill.py -s -q`` shows the table of kinds and outcomes. A process does the injuries
one after the other, so that a crash or a hang is an outcome like the others, and the rest of the drill goes on.
"""

import json
import os
import select
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
from drill.kinds import Injury, plan
from drill.road import GOOD, Walk, judge


class Worker:
    """The process that injures; a new one takes the place of one that died or hung."""

    def __init__(self, base: Path, *command: str, longest_s: float = 60) -> None:
        self._base, self._command, self._longest_s, self._process = base, command, longest_s, None

    def judge(self, injury: Injury) -> tuple[str, str]:
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            place = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
            with open(self._base / "errors.txt", "ab") as errors:
                self._process = subprocess.Popen([sys.executable, *self._command], stderr=errors, env=place, **pipes)
        self._process.stdin.write(json.dumps(asdict(injury)) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self._longest_s)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return tuple(json.loads(answer))
        if not ready:
            self._process.kill()
        code = self._process.wait()
        self._process = None
        return ("crashed", f"exit code {code}") if ready else ("hung", f"no answer within {self._longest_s} s")

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


def drill(base: Path, raw: dict[str, str], injuries: list[Injury]) -> dict[Injury, tuple[str, str]]:
    worker = Worker(base, "-m", "drill.worker", str(base), json.dumps(raw))
    try:
        return {injury: worker.judge(injury) for injury in injuries}
    finally:
        worker.close()


def table(judged: dict[Injury, tuple[str, str]]) -> str:
    """Counts by kind and outcome, and one line over all."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for injury, (outcome, _) in judged.items():
        counts[injury.kind][outcome] += 1
    columns = [*GOOD, *sorted({outcome for outcome, _ in judged.values()} - set(GOOD))]
    lines = [f"{'':32}{'injuries':>9}" + "".join(f"{name:>16}" for name in columns)]
    for kind, row in counts.items():
        lines.append(f"{kind:32}{row.total():9}" + "".join(f"{row[name] or '':>16}" for name in columns))
    return "\n".join([*lines, summary(judged)])


def summary(judged: dict[Injury, tuple[str, str]]) -> str:
    total = Counter(outcome for outcome, _ in judged.values())
    found = total["named"] + total["named by verify"]
    bad = ", ".join(f"{total[name]} {name}" for name in total if name not in (*GOOD, "silent", "crashed", "hung"))
    return (
        f"drill: {len(judged)} injuries: {found} detected and named, {total['harmless']} harmless, {total['silent']} "
        f"passed silently, {total['crashed'] + total['hung']} crashed or hung" + (f", {bad}" if bad else "")
    )


def check(judged: dict[Injury, tuple[str, str]]) -> None:
    print("\n" + table(judged))
    failed = {injury: outcome for injury, outcome in judged.items() if outcome[0] not in GOOD}
    assert not failed, "\n".join(f"{injury}: {outcome}: {detail}" for injury, (outcome, detail) in failed.items())


def test_what_the_drill_must_not_overlook_has_a_name(tmp_path):
    ill = "import os, sys, time\nfor line in sys.stdin: os.kill(os.getpid(), 7) if 'crash' in line else time.sleep(99)"
    worker = Worker(tmp_path, "-c", ill, longest_s=2)
    outcomes = [worker.judge(Injury(kind, "half", 0, (0, 0)))[0] for kind in ("crash", "hang", "crash")]
    assert outcomes == ["crashed", "hung", "crashed"]
    assert judge(Walk(), {"a.tar"}, False)[0] == "harmless"
    assert judge(Walk(raised=["set/a.tar: cut"]), {"a.tar"}, False)[0] == "named"
    assert judge(Walk(raised=["set: cut"]), {"a.tar"}, False)[0] == "unnamed"
    assert judge(Walk(listed=["set/a.tar: cut"], wrong="x"), {"a.tar"}, True)[0] == "named by verify"
    assert judge(Walk(listed=["set/a.tar: cut"], wrong="x"), {"a.tar"}, False)[0] == "silent"
    assert judge(Walk(wrong="x"), {"a.tar"}, True)[0] == "silent"
    assert judge(Walk(broken="Traceback", raised=["a.tar"]), {"a.tar"}, True)[0] == "wrong error"


@pytest.fixture(scope="session")
def raw(god_files, nsd_files):
    return {"god": str(god_files), "nsd": str(nsd_files)}


def test_every_injury_is_named_or_harmless(tmp_path, raw):
    injuries = list(plan(seed=1))
    assert len(injuries) >= 200
    check(drill(tmp_path, raw, injuries))


@pytest.mark.slow
def test_a_thousand_other_injuries_are_named_or_harmless(tmp_path, raw):
    check(drill(tmp_path, raw, list(plan(seed=2, times=3))))
