"""Damage stops a stream, or is replaced by the same other sample on every rank, written down, and limited."""

import json
import shutil

import numpy as np
import pytest
from packed_folder import flip
from test_store import pack

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import FaultPolicy
from cadiff.shards.stream import Reading, Stream


@pytest.fixture
def damaged(tmp_path):
    """300 samples in 6 blocks, of which block 1 (samples 64 to 127) is damaged."""
    folder = pack(tmp_path / "set")
    place = Dataset(folder).describe(100)
    flip(folder / place["shard"], place["offset"])
    return folder


def make(folder, policy, rank=0, world=1):
    reading = Reading(faults=policy, order="random")
    return Stream(
        [Dataset(folder)], split="train", batch=60, micro_batch=60 // world, width=64, rank=rank, world=world,
        reading=reading,
    )  # fmt: skip


def test_the_default_is_to_stop_and_say_what_to_do(damaged):
    with pytest.raises(DataError, match=r"block 1 .* is damaged .*cadiff shards repair.*data.on_damage=quarantine"):
        for _ in make(damaged, FaultPolicy()).iterate(0, 5):
            pass


def test_a_damaged_sample_is_replaced_alike_on_all_ranks_and_written_down(damaged, tmp_path):
    policy = FaultPolicy("quarantine", budget=0.5, ledger=tmp_path / "quarantine.jsonl")
    stream = make(damaged, policy)
    planned = np.concatenate([stream.sample_ids(s) for s in range(5)])
    seen = np.concatenate([batch["sample_id"].numpy().copy() for _, _, batch in stream.iterate(0, 5)])
    bad = (planned >= 64) & (planned < 128)
    assert bad.any() and (seen[~bad] == planned[~bad]).all()
    assert not ((seen >= 64) & (seen < 128)).any()
    lines = [json.loads(line) for line in policy.ledger.read_text().splitlines()]
    told = {line["replaced"]["sample"]: line["by"]["sample"] for line in lines}
    assert [told[i] for i in planned[bad].tolist()] == seen[bad].tolist()
    assert lines[0]["replaced"]["subject"] == "s0" and "block 1" in lines[0]["why"]
    for rank in range(3):
        part = make(damaged, FaultPolicy("quarantine", budget=0.5), rank, 3).micro(2, 0)["sample_id"]
        np.testing.assert_array_equal(part, seen[120 + 20 * rank : 140 + 20 * rank])


def test_more_damage_than_the_budget_stops_the_stream(damaged):
    with pytest.raises(DataError, match=r"of 300 samples are damaged, more than data.damage_budget = 0.01"):
        for _ in make(damaged, FaultPolicy("quarantine", budget=0.01)).iterate(0, 5):
            pass


def test_the_budget_holds_over_ranks_and_restarts_that_share_a_ledger(damaged, tmp_path):
    policy = FaultPolicy("quarantine", budget=0.15, ledger=tmp_path / "quarantine.jsonl")  # 45 samples; 64 are damaged
    seen = 0
    with pytest.raises(DataError, match=r"46 of 300 samples are damaged, more than data.damage_budget = 0.15"):
        for step in range(5):
            for rank in range(3):  # each in a process of its own, which alone would meet fewer than 45
                make(damaged, policy, rank, 3).micro(step, 0)
                seen += 1
    assert 3 < seen < 15
    with open(policy.ledger, "a") as ledger:
        ledger.write('{"replaced": {"set": "')  # the power failed
    with pytest.raises(DataError, match=r"more than data.damage_budget"):
        for step in range(5):
            make(damaged, policy, 0, 3).micro(step, 0)
    other = FaultPolicy("quarantine", budget=0.3, ledger=policy.ledger)
    for step in range(5):  # a sample that several starts write down counts once
        make(damaged, other).micro(step, 0)


def test_a_missing_shard_is_never_passed_over(damaged):
    stream = make(damaged, FaultPolicy("quarantine", budget=1.0))
    (damaged / "fmri-000000.tar").unlink()
    with pytest.raises(DataError, match="missing"):
        stream.micro(0, 0)


def test_damage_that_comes_later_is_replaced_where_every_read_is_checked(tmp_path):
    folder = pack(tmp_path / "set")
    stream = make(folder, FaultPolicy("quarantine", budget=0.5, check="every"))
    first = stream.micro(0, 0)["sample_id"].tolist()
    place = stream.datasets[0].describe(first[7])
    flip(folder / place["shard"], place["offset"])
    again = stream.micro(0, 0)["sample_id"].tolist()
    assert first[7] not in again and sum(a != b for a, b in zip(first, again)) >= 1


def test_a_table_in_memory_is_made_without_the_damaged_blocks(damaged):
    stream = make(damaged, FaultPolicy("quarantine", budget=0.5))
    stream.datasets[0].store.hold("cpu", 64, whole=False)
    seen = np.concatenate([batch["sample_id"].numpy().copy() for _, _, batch in stream.iterate(0, 5)])
    assert not ((seen >= 64) & (seen < 128)).any()
    with pytest.raises(DataError, match="is damaged"):
        stream.datasets[0].store.hold("cpu", 64)


def test_a_damaged_picture_is_replaced_too(tiny_set, tmp_path):
    copy = shutil.copytree(tiny_set, tmp_path / "set")
    ds = Dataset(copy)
    at = int(ds._index.image["offset"][3]) + 40
    flip(copy / "images-000000.tar", at)

    def make(policy):
        return Stream(
            [Dataset(copy)], split="train", batch=64, micro_batch=64, width=32, image_size=16,
            reading=Reading(faults=policy),
        )  # fmt: skip

    with pytest.raises(DataError, match=r"images-000000.tar: picture 3 .* is damaged"):
        make(FaultPolicy()).micro(0, 0)
    stream = make(FaultPolicy("quarantine", budget=0.1))
    batch = stream.micro(0, 0)
    assert 3 not in batch["stimulus"].tolist() and len(set(batch["sample_id"].tolist())) >= 60


def test_policies_are_checked():
    with pytest.raises(ConfigError, match="raise or quarantine"):
        FaultPolicy("ignore")
    with pytest.raises(ConfigError, match="first or every"):
        FaultPolicy(check="never")
