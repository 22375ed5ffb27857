"""The sequence of sample ids is one: for every world size, number of workers, order, and after any interruption."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import piece_of_samples
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Reading, Stream

BATCH, STEPS = 24, 60


def pack_wide(folder, subjects=6, rows=100, voxels=20, name="s"):
    """Several subjects; each sample's first value says which it is."""

    def fill(pack):
        for s in range(subjects):
            signals = np.random.default_rng(s).normal(size=(rows, voxels)).astype(np.float32)
            signals[:, 0] = np.arange(rows) + rows * s
            pack.add(make_records(f"{name}{s}", "r", signals, "train"))

    pack_folder(folder, "hcp", {"name": name}, {}, fill, silent)
    return Dataset(folder)


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return pack_wide(tmp_path_factory.mktemp("ledger") / "set")


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces and windows small enough that a tiny set has many."""
    monkeypatch.setattr("cadiff.shards.mixture.PIECE_BYTES", 64 * 40)
    monkeypatch.setattr("cadiff.shards.mixture.WINDOW_BYTES", 40 * 600)


def make(ds, order, rank=0, world=1, workers=1, micro_batch=1, **options):
    return Stream(
        ds if isinstance(ds, list) else [ds], split="train", batch=BATCH, micro_batch=micro_batch, width=32, seed=3,
        rank=rank, world=world, reading=Reading(order=order, workers=workers, **options),
    )  # fmt: skip


def ledger(stream, start, stop):
    """What this rank saw: (step, sample id, first value of the signal) of each sample."""
    seen = []
    for step, _, batch in stream.iterate(start, stop):
        seen += [(step, int(i), float(v)) for i, v in zip(batch["sample_id"], batch["signal"][:, 0])]
    return seen


def whole_ledger(ds, order, world, workers, resume):
    parts = []
    for rank in range(world):
        stream = make(ds, order, rank, world, workers, micro_batch=BATCH // world // 2)
        parts.append(ledger(stream, 0, resume) + ledger(make(ds, order, rank, world, workers), resume, STEPS))
    return [entry for step in range(STEPS) for part in parts for entry in part if entry[0] == step]


@pytest.mark.parametrize("order", ["random", "window"])
def test_all_worlds_workers_and_resumes_see_one_sequence(ds, order, small_pieces):
    expected = ledger(make(ds, order, workers=0), 0, STEPS)
    assert len(expected) == BATCH * STEPS and all(i == value for _, i, value in expected)
    assert [i for _, i, _ in expected] == [i for s in range(STEPS) for i in make(ds, order).sample_ids(s).tolist()]
    draw = random.Random(7)
    for world in (1, 2, 3, 4, 6):
        for workers in range(4):
            assert whole_ledger(ds, order, world, workers, draw.randrange(1, STEPS)) == expected, (world, workers)


def test_a_windowed_epoch_shows_every_sample_once_and_rotates_what_is_left_out(ds, small_pieces):
    stream = make(ds, "window")
    assert stream.steps_per_epoch == 25
    for epoch in range(2):
        seen = [i for s in range(25) for i in stream.sample_ids(25 * epoch + s).tolist()]
        assert sorted(seen) == list(range(600))
    assert (stream.sample_ids(0) != stream.sample_ids(25)).any()


def test_ranks_of_a_windowed_order_read_their_own_pieces_only(ds, small_pieces):
    stream = make(ds, "window")
    pieces = piece_of_samples([ds], stream._chosen)
    total = len(np.unique(pieces))
    assert total > 8
    for world in (1, 2, 4):
        share = BATCH // world
        opened = 0
        for rank in range(world):
            mine = [stream.sample_ids(s)[rank * share : (rank + 1) * share] for s in range(25)]
            opened += len(np.unique(pieces[np.concatenate(mine)]))
        assert opened / total <= 1 + world / total + 0.3, (world, opened, total)
    # Of a random order every rank reads nearly everything.
    random_share = np.concatenate([make(ds, "random").sample_ids(s)[:6] for s in range(25)])
    assert len(np.unique(pieces[random_share])) == total


def test_reading_ahead_touches_every_piece_once_an_epoch(ds, small_pieces):
    read = []
    for epochs in (1, 2):
        fresh = Dataset(ds.folder)
        ledger(make(fresh, "window", workers=2), 0, 25 * epochs)
        read.append(fresh.checks.bytes_read)
    total = fresh.checks.lengths.sum()
    assert fresh.checks.all_sound and total <= read[0] < 2 * total  # headers between blocks come along
    assert read[1] == 2 * read[0]


def test_weights_fix_the_share_of_every_set_in_every_batch(ds, tmp_path, small_pieces):
    other = pack_wide(tmp_path / "o", subjects=1, rows=70, name="o")
    for order in ("random", "window"):
        stream = make([ds, other], order, weights=(3.0, 1.0))
        for step in range(40):
            assert (stream.sample_ids(step) >= 600).sum() == 6
        for half in (slice(0, 12), slice(12, 24)):  # also within each of two ranks
            assert (stream.sample_ids(5)[half] >= 600).sum() == 3
        small = [i for s in range(11) for i in stream.sample_ids(s).tolist() if i >= 600]
        assert len(small) == len(set(small)) == 66  # an epoch of its own: 11 steps
        told = stream.state(23)["sources"]
        assert told == [
            {"samples": 23 * 18, "epoch": 0, "share": 18},
            {"samples": 23 * 6, "epoch": 2, "share": 6},
        ]
        batch = stream.micro(12, 0)
        assert batch["epoch"].tolist() == [int(batch["sample_id"][0] >= 600)]
    with pytest.raises(ConfigError, match="2 weights for 1 sets"):
        make(ds, "random", weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="no room for the smallest"):
        make([ds, other], "random", weights=(1.0, 0.001))
    with pytest.raises(ConfigError, match="above 0"):
        make([ds, other], "random", weights=(1.0, -1.0))


def test_the_state_is_a_few_numbers_and_the_same_on_every_rank(ds):
    states = [make(ds, "auto", rank, 2).state(17) for rank in range(2)]
    assert states[0] == states[1] and len(json.dumps(states[0])) < 400
    assert states[0]["order"] == "cadiff-order/1/random" and states[0]["step"] == 17


def test_large_sets_are_read_in_windows_unless_told_otherwise(ds, monkeypatch):
    assert make(ds, "auto").order == "random"
    monkeypatch.setattr("cadiff.shards.mixture.RANDOM_BYTES", 10)
    assert make(ds, "auto").order == "window" and make(ds, "random").order == "random"
    with pytest.raises(ConfigError, match="one of auto, random, window"):
        make(ds, "shuffled")


CODE = """
import json, os, sys
sys.path.insert(0, {here!r})
from test_ledger import make, Dataset
stream = make(Dataset({folder!r}), "window", workers=2, micro_batch=24)
done = open({path!r}, "a+")
done.seek(0)
start = sum(1 for line in done if line.endswith("\\n"))
for step, _, batch in stream.iterate(start, 400):
    done.write(json.dumps([step, batch["sample_id"].tolist()]) + "\\n")
    done.flush()
    os.fsync(done.fileno())
print("finished")
"""


def test_a_kill_between_any_two_steps_loses_and_repeats_nothing(ds, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.touch()
    code = CODE.format(here=str(Path(__file__).parent), folder=str(ds.folder), path=str(path))
    draw = random.Random(1)
    for _ in range(3):
        before = len(path.read_text().splitlines())
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        while len(path.read_text().splitlines()) < before + draw.randrange(5, 60) and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = path.read_text().rpartition("\n")[0]  # a line that the kill cut short was not a step that was kept
        path.write_text(whole + "\n" if whole else "")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "finished\n"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    stream = make(ds, "window")
    assert lines == [[step, stream.sample_ids(step).tolist()] for step in range(400)]
