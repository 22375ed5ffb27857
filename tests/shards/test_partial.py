"""Packing in parts: the same bytes for any number of processes, and nothing is done twice after an interruption."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.parallel import Behind, cores, run_all, slices, workers_for
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.verify import verify


def unit(number, log, pause, pack):
    """Two runs of one subject; writes down that it worked."""
    with open(log, "a") as handle:
        handle.write(f"{number}\n")
    time.sleep(pause)
    pack.source(f"in{number}")
    signals = np.random.default_rng(number).normal(size=(70, 5 + number % 2)).astype(np.float32)
    for run in ("r1", "r2"):
        pack.add(make_records(f"s{number}", run, signals, "train" if number else "val"))
    pack.notes.setdefault("seen", {})[f"s{number}"] = number
    if number == 2:
        pack.drop("in2", "only half")


def whole(pack):
    pack.split_by = "subject"
    pack.attach("*", "ids", np.arange(3))


def run(folder, workers=1, count=5, pause=0.0, broken=None, version=1):
    sources = {}
    for number in range(count):
        path = folder.parent / f"in{number}"
        path.write_bytes(b"x" * (10 + number))
        sources[f"in{number}"] = path
    log = folder.parent / "log"
    units = [partial(unit if n != broken else fail, n, log, pause) for n in range(count)]
    return pack_folder(folder, "hcp", {"version": version}, sources, whole, silent, units=units, workers=workers)


def fail(number, log, pause, pack):
    raise DataError(f"in{number}: damaged")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def done(folder):
    return sorted((folder.parent / "log").read_text().split())


@pytest.fixture
def out(tmp_path):
    (tmp_path / "a").mkdir()
    return tmp_path / "a" / "out"


def test_the_number_of_processes_does_not_change_a_byte(out, tmp_path):
    told = run(out)
    (tmp_path / "b").mkdir()
    run(tmp_path / "b" / "out", workers=3)
    assert contents(out) == contents(tmp_path / "b" / "out")
    assert verify(out) == [] and told["samples"] == {"train": 560, "val": 140, "test": 0}
    ds = Dataset(out)
    assert ds.subjects == [f"s{n}" for n in range(5)] and ds.manifest["notes"] == {
        "seen": {f"s{n}": n for n in range(5)}
    }
    assert told["dropped"] == [{"what": "in2", "why": "only half"}] and len(ds.manifest["sources"]) == 5
    expected = np.random.default_rng(3).normal(size=(70, 6)).astype(np.float16)
    np.testing.assert_array_equal(ds.signals(ds.ids("train", ["s3"]), 6), np.concatenate([expected, expected]))


def test_a_failure_keeps_finished_parts_and_the_next_start_continues(out):
    with pytest.raises(DataError, match="in3: damaged"):
        run(out, broken=3)
    assert not out.exists() and done(out) == ["0", "1", "2"]
    run(out)
    assert done(out) == ["0", "1", "2", "3", "4"] and verify(out) == []
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_parts_of_another_recipe_or_of_changed_inputs_are_made_anew(out):
    with pytest.raises(DataError):
        run(out, broken=3)
    run(out, version=2, count=2)
    assert done(out) == ["0", "0", "1", "1", "2"] and verify(out) == []
    assert not list(out.glob("part-*"))


def test_a_kill_while_packing_in_parts_is_continued(out, tmp_path):
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_partial as t; from pathlib import Path\n"
    code += f"t.run(Path({str(out)!r}), pause=0.5)"
    process = subprocess.Popen([sys.executable, "-c", code])
    log = out.parent / "log"
    while not log.exists() or len(log.read_text().split()) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    run(out)
    times = [done(out).count(str(n)) for n in range(5)]
    assert times[:2] == [1, 1] and times[3:] == [1, 1] and verify(out) == []
    (tmp_path / "b").mkdir()
    run(tmp_path / "b" / "out")
    assert contents(out) == contents(tmp_path / "b" / "out")
    assert os.listdir(out.parent).count("out") == 1


def test_work_behind_waits_for_the_last_and_hands_its_problem_on():
    seen = []

    def note(value):
        time.sleep(0.02)
        if value == 2:
            raise OSError("disk full")
        seen.append(value)

    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        for value in range(5):
            behind.do(note, value)
    assert seen == [0, 1]  # 3 was never begun
    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.do(note, 2)  # the last piece's problem is not lost
    with pytest.raises(ValueError, match="mine"), Behind() as behind:
        behind.do(note, 4)
        raise ValueError("mine")
    assert seen == [0, 1, 4]


def test_pieces_and_processes_are_chosen_by_size():
    assert slices(list(range(5)), 2) == [[0, 1], [2, 3], [4]] and slices([], 3) == []
    assert workers_for(10, None) == 1 and workers_for(10**12, None) == cores() and workers_for(10**12, 3) == 3


def _die(how, piece):
    if piece == 2:
        os._exit(1) if how == "leave" else os.kill(os.getpid(), how)


@pytest.mark.parametrize(
    "how,why", [(signal.SIGKILL, r"memory ran out.*Fewer --workers"), ("leave", r"exit codes \[.*\b1\b.*__main__")]
)
def test_a_process_that_ends_without_a_word_is_one_clear_error(how, why):
    with pytest.raises(ConfigError, match=why):
        list(run_all(partial(_die, how), range(5), 2))


def _script(out, pause, workers):
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_partial as t; from pathlib import Path\n"
    return code + f"if __name__ == '__main__': t.run(Path({str(out)!r}), pause={pause}, workers={workers})"


def _workers_of(parent):
    """Processes that pack for ``parent``, which is in the command line of none but in the environment of all."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and f"PACKING_FOR={parent}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def test_workers_do_not_outlive_a_killed_pack_and_a_second_interrupt_ends_them(out):
    for stop in ("kill", "interrupt"):
        mark = f"{out}-{stop}"
        log = out.parent / "log"
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", _script(out, 60, 2)], env=os.environ | {"PACKING_FOR": mark}, stderr=subprocess.PIPE
        )
        while not log.exists() or len(log.read_text().split()) < 2:
            time.sleep(0.05)
        assert len(_workers_of(mark)) >= 3
        if stop == "kill":
            process.kill()
        else:
            process.send_signal(signal.SIGINT)
            time.sleep(1)
            assert process.poll() is None  # the parts at work may end, but no other is begun
            assert len(log.read_text().split()) == 2
            process.send_signal(signal.SIGINT)
        process.wait(20)
        until = time.monotonic() + 20
        while _workers_of(mark) and time.monotonic() < until:
            time.sleep(0.2)
        assert _workers_of(mark) == []


def test_finished_parts_outlast_what_goes_wrong_after_they_are_joined(out, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cadiff.shards.writer.seal", full)
        patch.setattr("cadiff.shards.partial._make_part", _without(full))
        with pytest.raises(ConfigError, match="No space left"):
            run(out)
    assert not out.exists() and done(out) == ["0", "1", "2", "3", "4"]
    run(out)
    assert done(out) == ["0", "1", "2", "3", "4"] and verify(out) == []
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def _without(full):
    """Parts are sealed as ever; only the whole meets the full disk."""
    from cadiff.shards import partial as module
    from cadiff.shards import seal

    make = module._make_part

    def made(*how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cadiff.shards.writer.seal", seal.seal)
            make(*how)

    return made


def test_a_source_that_changes_between_two_parts_is_refused(out):
    def edit(pack):
        pack.source("in1")
        (out.parent / "in1").write_bytes(b"y" * 11)

    out.parent.mkdir(exist_ok=True)
    sources = {"in1": out.parent / "in1"}
    sources["in1"].write_bytes(b"x" * 11)
    units = [partial(unit, 1, out.parent / "log", 0)]
    with pytest.raises(DataError, match="in1: changed while it was being packed"):
        pack_folder(out, "hcp", {}, sources, edit, silent, units=units)
