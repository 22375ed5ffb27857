"""One outlier among the samples: a job stops, leaves its batch out, or goes back, on all ranks alike."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open

from cadiff.bad_steps import BadSteps
from cadiff.checkpoint import committed
from cadiff.errors import DataError, NonFiniteError
from cadiff.exports import load_part
from cadiff.shards.dataset import Dataset
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

pytestmark = pytest.mark.multiprocess
ALONE = ["train.steps=16", "train.log_every=4", "train.save_every=4", "train.val_every=100", "loss.self_contrast=0"]
PLAIN = [*ALONE, "loss.cross_contrast=0"]


@pytest.fixture(scope="module")
def outlier(tmp_path_factory):
    """A set of 128 samples one of which is so large that its squared error is infinite in float32."""
    folder = tmp_path_factory.mktemp("outlier") / "set"
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((140, 32)).astype(np.float32)
    signals[77] *= 1e25

    def fill(pack):
        pack.add(make_records("A", "run1", signals[:128], "train"))
        pack.add(make_records("A", "run2", signals[128:], "val"))

    pack_folder(folder, "table", {"outlier": 1}, {}, fill, silent, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def where(outlier):
    """A seed whose outlier comes at step 9 to 11 of an epoch of 16, and that step."""
    for seed in range(200):
        stream = Stream([Dataset(outlier)], split="train", batch=8, micro_batch=8, width=32, seed=seed)
        steps = [step for step in range(16) if 77 in stream.sample_ids(step)]
        if steps[0] in (9, 10, 11):
            return seed, steps[0]
    raise AssertionError("no seed puts the outlier there")


@pytest.fixture
def train(outlier, where, tiny_job, tmp_path, warm):
    def run(name, *overrides):
        config = tiny_job(tmp_path / f"{name}.toml", "phase1")
        words = [*PLAIN, f"seed={where[0]}", f'data.shards=["{outlier}"]', *overrides]
        said = []
        warm.train(config, words, tmp_path / name, phase="phase1", ranks=2, say=said.append)
        return said

    return run


def recorded(run):
    return [json.loads(line) for line in (run / "bad_steps.jsonl").read_text().splitlines()]


def test_stopping_names_the_step_and_keeps_its_samples_and_skipping_goes_on_from_there(train, where, tmp_path):
    with pytest.raises(
        NonFiniteError, match=rf"optimizer step {where[1]} had a gradient norm of (inf|nan).*on_bad_step=skip"
    ):
        train("run")
    (line,) = recorded(tmp_path / "run")
    assert line["step"] == where[1] and 77 in line["sample_ids"] and len(line["sample_ids"]) == 8
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    train("again", "train.on_bad_step=skip")
    train("whole", "train.on_bad_step=skip")
    again, whole = (load_part(tmp_path / name, "fmri") for name in ("again", "whole"))
    assert all(np.array_equal(again[key].numpy(), whole[key].numpy()) for key in whole)
    assert all(np.isfinite(value.numpy()).all() for value in whole.values())
    last = [line for line in read_metrics(tmp_path / "whole") if "train/loss" in line][-1]
    assert last["optim/bad_steps"] == 1 and np.isfinite(last["train/loss"])


def test_the_running_mean_takes_in_good_steps_only(train, where, tmp_path):
    train("run", "train.on_bad_step=skip", "train.ema=0.9")
    newest = committed(tmp_path / "run")[-1]
    assert newest.name.endswith("12") and where[1] < 12
    for part in newest.glob("ema/rank-*.safetensors"):
        with safe_open(part, "pt") as file:
            assert file.metadata()["updates"] == "11"
            assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_the_budget_of_bad_steps_ends_a_job_that_only_skips(train):
    with pytest.raises(NonFiniteError, match=r"Bad steps so far: 2; train.bad_budget is 1"):
        train("run", "train.on_bad_step=skip", "train.bad_budget=1", "train.steps=40")


def test_going_back_passes_by_the_steps_around(train, where, tmp_path):
    said = train("run", "train.on_bad_step=rewind")
    assert any("back to step 8" in line for line in said)
    (line,) = recorded(tmp_path / "run")
    assert line["passed_by"] == [where[1] - 2, where[1] + 3]
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 16


def test_a_job_whose_last_steps_are_passed_by_ends_like_any_other(train, where, tmp_path):
    train("run", "train.on_bad_step=rewind", "train.steps=12")
    (line,) = recorded(tmp_path / "run")
    assert 11 in range(*line["passed_by"])
    last = [line for line in read_metrics(tmp_path / "run") if line["step"] == 12]
    assert any("val/loss" in line for line in last) and any(line.get("optim/bad_steps") == 1 for line in last)


def test_a_bad_batch_counts_in_float16_too(train, where):
    told = rf"optimizer step {where[1]} had a gradient norm of (inf|nan)"
    with pytest.raises(NonFiniteError, match=told):
        train("run", "engine.precision=fp16")


def test_a_damaged_record_is_named_and_a_stop_may_become_a_rewind(train, where, tmp_path):
    with pytest.raises(NonFiniteError):
        train("run")
    path = tmp_path / "run" / "bad_steps.jsonl"
    whole = path.read_bytes()
    for broken in (whole[:-20], whole.replace(b"[0, 0]", b"[0, 3000000]"), b"\xff\xfe\n", b'{"step": Infinity}\n'):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="line 1 is no record of a bad step"):
            BadSteps(tmp_path / "run", None, writes=True)
    path.write_bytes(whole)
    said = train("run", "train.on_bad_step=rewind")
    assert any("back to step 8" in line for line in said)
    assert recorded(tmp_path / "run")[0]["policy"] == "rewind"
