"""Clips are frames of one run in a row, the same for every rank, resume and order; damage in any frame counts."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from packed_folder import flip

from cadiff.errors import ConfigError, DataError
from cadiff.shards.clips import following
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import FaultPolicy
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Reading, Stream

WINDOW = 2  # frames (TRs) averaged into a stored one


def pack(folder, runs, dtype="float32"):
    """Runs of (subject, session, run, starts, splits): row i of the set is filled with the number i."""

    def fill(pack):
        pack.split_by, count = "tail", 0
        for subject, session, run, starts, splits in runs:
            rows = np.arange(count, count + len(starts), dtype=np.float32)[:, None] + np.zeros((1, 30), np.float32)
            count += len(starts)
            pack.add(make_records(subject, run, rows, splits, session=session, start=starts, frames=WINDOW))

    pack_folder(folder, "table", {}, {}, fill, silent, dtype=dtype)
    return folder


def steps(first, count):
    return list(range(first, first + WINDOW * count, WINDOW))


# Two subjects. A's first run has a gap after 5 windows; its second session repeats the run's name; B's last windows are
# validation.
RUNS = [
    ("A", "s1", "r1", steps(0, 5) + steps(14, 7), "train"),
    ("A", "s2", "r1", steps(24, 6), "train"),
    ("B", "s1", "r1", steps(0, 40), ["train"] * 30 + ["val"] * 10),
]


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return Dataset(pack(tmp_path_factory.mktemp("clips") / "set", RUNS))


def make(ds, **options):
    chosen = {"split": "train", "batch": 12, "micro_batch": 6, "width": 32, "frames": 3, "seed": 5} | options
    return Stream(ds if isinstance(ds, list) else [ds], **chosen)


def begins(runs, frames):
    """What may begin a clip, counted by hand: (first row, split) for all."""
    where, found = {}, set()
    for subject, session, run, starts, splits in runs:
        for i, start in enumerate(starts):
            split = splits if isinstance(splits, str) else splits[i]
            where[len(where)] = (subject, session, run, split, start)
    row_of = {place: row for row, place in where.items()}
    for row, (*run, start) in where.items():
        if all((*run, start + WINDOW * k) in row_of for k in range(frames)):
            found.add((row, run[3]))
    return found


@pytest.mark.parametrize(("frames", "split"), [*product((2, 3, 5), ("train", "val"))])
def test_only_frames_with_enough_others_behind_them_begin_a_clip(ds, frames, split):
    stream = make(ds, frames=frames, split=split, batch=1, micro_batch=1)
    wanted = {row for row, of in begins(RUNS, frames) if of == split}
    assert set(np.concatenate([stream.sample_ids(step) for step in range(len(stream))])) == wanted
    assert len(stream) == len(wanted) > 0


def test_a_clip_holds_the_frames_that_follow_its_first_padded_like_any_signal(ds):
    stream = make(ds)
    for step in range(stream.steps_per_epoch):
        for index in range(2):
            batch = stream.micro(step, index)
            assert batch["signal"].shape == (6, 3, 32) and batch["signal"].dtype == torch.float32
            for clip, sample in zip(batch["signal"], batch["sample_id"].tolist()):
                assert torch.equal(clip, torch.tensor([[sample], [sample + 1], [sample + 2]]).expand(3, 32).float())
    assert batch.keys() == {"signal", "label", "stimulus", "subject", "sample_id", "epoch"}
    assert set(batch["subject"].tolist()) <= {0, 1} and (batch["epoch"] == 0).all()


def test_frames_may_be_stored_in_any_order(tmp_path):
    shuffled = np.random.default_rng(0).permutation(12)
    ds = Dataset(pack(tmp_path / "set", [("A", "", "r", (WINDOW * shuffled).tolist(), "train")]))
    after = following(ds)
    for row, place in enumerate(shuffled.tolist()):
        assert after[row] == (-1 if place == 11 else shuffled.tolist().index(place + 1))
    stream = make(ds, frames=4, batch=3, micro_batch=3)
    batch = stream.micro(0, 0)
    for clip, sample in zip(batch["signal"], batch["sample_id"].tolist()):
        frames = [shuffled.tolist().index(shuffled[sample] + k) for k in range(4)]
        assert clip[:, 0].tolist() == frames


@pytest.mark.parametrize("order", ["random", "window"])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 12), (2, 3), (4, 3)])
def test_ranks_and_micro_batches_together_hold_the_same_global_batch(ds, order, world, micro_batch):
    reading = Reading(order=order)
    whole = make(ds, micro_batch=12, reading=reading).micro(4, 0)
    parts = []
    for rank in range(world):
        stream = make(ds, rank=rank, world=world, micro_batch=micro_batch, reading=reading)
        parts += [stream.micro(4, index) for index in range(stream.accumulate)]
    for key, value in whole.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), value), key


@pytest.mark.parametrize("order", ["random", "window"])
def test_a_stream_taken_up_in_the_middle_goes_on_alike(ds, order):
    def read(start, stop):
        batches = make(ds, reading=Reading(order=order)).iterate(start, stop)
        return [(step, i, batch["signal"].clone(), batch["sample_id"].clone()) for step, i, batch in batches]

    whole, rest = read(0, 6), read(3, 6)
    for one, two in zip(whole[6:], rest, strict=True):
        assert one[:2] == two[:2] and torch.equal(one[2], two[2]) and torch.equal(one[3], two[3])


def test_clips_have_an_order_of_their_own_and_single_frames_keep_theirs(ds):
    single = make(ds, frames=1)
    assert single.micro(0, 0)["signal"].shape == (6, 32) and len(single) == 48
    plain = Stream([ds], split="train", batch=12, micro_batch=6, width=32, seed=5)
    assert (single.sample_ids(3) == plain.sample_ids(3)).all()
    orders = [[make(ds, frames=frames, subjects=["B"]).sample_ids(0).tolist()] for frames in (2, 3)]
    assert orders[0] != orders[1]


def test_sets_are_mixed_by_weight_and_held_in_memory_alike(ds, tmp_path):
    other = Dataset(pack(tmp_path / "set", [("C", "", "r", steps(0, 20), "train")]))
    reading = Reading(weights=(2.0, 1.0))
    files = make([ds, other], reading=reading)
    batches = [files.micro(step, index) for step in range(3) for index in range(2)]
    rows = {int(i): clip for batch in batches for i, clip in zip(batch["sample_id"], batch["signal"].clone())}
    assert sum(len(batch["sample_id"][batch["sample_id"] >= 58]) for batch in batches) == 3 * 4
    for sample, clip in rows.items():
        first = sample if sample < 58 else sample - 58
        assert clip[:, 0].tolist() == [first, first + 1, first + 2]
    held = [Dataset(each.folder) for each in (ds, other)]
    for each in held:
        each.store.hold("cpu", 32)
    again = make(held, reading=reading)
    assert torch.equal(again.micro(2, 1)["signal"], batches[-1]["signal"])


def test_what_makes_no_clips_is_refused(ds, tmp_path, tiny_set):
    with pytest.raises(ConfigError, match=r"clip_frames = 9.* 0 clips begin in the train split .*Use fewer frames"):
        make(ds, frames=9, subjects=["A"], batch=1, micro_batch=1)
    with pytest.raises(ConfigError, match="fewer than one batch of 12"):
        make(ds, frames=4, split="val")
    with pytest.raises(ConfigError, match="without a place in a run"):
        make(Dataset(tiny_set), frames=2)  # recorded without times
    for options in ({"reading": Reading(pad="packed")}, {"image_size": 16}, {"width": 0}):
        with pytest.raises(ConfigError, match="clip_frames = 3 makes clips of signals"):
            make(ds, **options)


@pytest.fixture
def damaged(tmp_path):
    """One run of 200 frames in blocks of 64, of which block 1 (frames 64 to 127) is damaged."""
    folder = pack(tmp_path / "set", [("A", "", "r", steps(0, 200), "train")])
    place = Dataset(folder).describe(100)
    flip(folder / place["shard"], place["offset"])
    return folder


@pytest.mark.parametrize("check", ["first", "every"])
def test_a_clip_with_one_damaged_frame_is_replaced_by_another_clip(damaged, tmp_path, check):
    policy = FaultPolicy("quarantine", budget=0.9, check=check, ledger=tmp_path / "ledger.jsonl")
    stream = make(Dataset(damaged), batch=60, micro_batch=60, reading=Reading(faults=policy))
    bad = 0
    for step in range(3):
        planned, batch = stream.sample_ids(step), stream.micro(step, 0)
        seen = batch["sample_id"].numpy()
        touched = (planned + 2 >= 64) & (planned < 128)  # 62 and 63 end in the damaged block
        bad += touched.sum()
        assert (seen[~touched] == planned[~touched]).all()
        assert not ((seen + 2 >= 64) & (seen < 128)).any()
        assert torch.equal(batch["signal"][:, 2, 0], torch.from_numpy(seen + 2).float())
    assert bad > 0
    lines = [json.loads(line) for line in policy.ledger.read_text().splitlines()]
    assert len(lines) == bad and {"A"} == {line["replaced"]["subject"] for line in lines}


def test_damage_in_a_later_frame_stops_a_stream_too(damaged):
    stream = make(Dataset(damaged), batch=198, micro_batch=198)
    with pytest.raises(DataError, match=r"block 1 .* is damaged"):
        stream.micro(0, 0)
