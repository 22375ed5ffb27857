"""Options of the engine on two ranks: the running mean, float16, compiled blocks, offload."""

import json
import shutil

import numpy as np
import pytest

from cadiff.checkpoint import committed
from cadiff.exports import load_part, read_card
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.tracking import read_metrics

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_job, warm):
    folder = tmp_path_factory.mktemp("options")
    config = tiny_job(folder / "job.toml", "phase1")

    def run(name, *overrides, ranks=2):
        said = []
        warm.train(config, list(overrides), folder / name, phase="phase1", ranks=ranks, say=said.append)
        return folder / name, said

    return run


@pytest.fixture(scope="module")
def plain(train):
    return train("plain")[0]


@pytest.fixture(scope="module")
def averaged(train):
    return train("averaged", "train.ema=0.9")[0]


def test_the_running_mean_is_what_is_exported_and_judged_beside_the_weights(plain, averaged):
    differing = [not np.array_equal(a, b) for a, b in _both(plain, averaged)]
    assert any(differing)
    last = [line for line in read_metrics(averaged) if "val_ema/loss" in line][-1]
    first, second = (
        [line["val/loss"] for line in read_metrics(run) if "val/loss" in line] for run in (plain, averaged)
    )
    assert first == second  # averaging changes nothing of the training
    assert last["val/subject_leak"] <= 1 and 0 <= last["val/own_top1"] <= last["val/own_top1_within"] <= 1
    assert last["val_ema/loss"] != last["val/loss"]
    assert last["val_ema/loss"] == pytest.approx(last["val/loss"], rel=0.1)


@pytest.mark.parametrize(("zero", "ranks"), [(3, 2), (2, 1)])
def test_the_running_mean_is_one_for_every_stage_and_world(train, averaged, zero, ranks):
    other, _ = train(f"averaged-{zero}-{ranks}", "train.ema=0.9", f"engine.zero={zero}", ranks=ranks)
    _alike(averaged, other, 2e-5)
    mine, theirs = (
        [line["val_ema/loss"] for line in read_metrics(run) if "val_ema/loss" in line] for run in (averaged, other)
    )
    assert theirs == pytest.approx(mine, rel=1e-4)


def test_the_running_mean_resumes_to_the_same_bits(train, averaged):
    cut = averaged.parent / "cut"
    shutil.copytree(averaged, cut)
    for leftover in ("export", "summary.json", "preview.npz"):
        path = cut / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(list(committed(cut)[-1].glob("ema/rank-*.safetensors"))) == 2
    train("cut", "train.ema=0.9")
    _alike(averaged, cut, 0.0)


@pytest.mark.parametrize("zero", [0, 2])
def test_float16_learns_the_same(train, plain, zero):
    run, _ = train(f"half-{zero}", "engine.precision=fp16", f"engine.zero={zero}")
    losses = [json.loads((folder / "summary.json").read_text())["loss_last"] for folder in (plain, run)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert read_card(run)["lineage"]["precision"] == "fp16"
    norms = [
        {line["step"]: line["optim/grad_norm"] for line in read_metrics(r) if "optim/grad_norm" in line}
        for r in (plain, run)
    ]
    # The first step overflowed, so the weights are a step apart; a scale left in would show as a factor of thousands.
    assert norms[1][12] == pytest.approx(norms[0][12], rel=1.0)
    assert not (run / "bad_steps.jsonl").exists()  # an overflow at a high scale is no bad step


def test_optimizer_state_in_host_memory_trains_the_same(train, plain):
    run, _ = train("offload", "engine.offload=true")
    _alike(plain, run, 1e-5)


def test_several_micro_batches_train_the_same_whole_batch(train, plain):
    run, _ = train("micro", "train.micro_batch=2")
    _alike(plain, run, 1e-4)
    mine, theirs = ([line["val/loss"] for line in read_metrics(r) if "val/loss" in line] for r in (plain, run))
    assert theirs == pytest.approx(mine, rel=1e-4)


def test_a_learned_temperature_is_told_at_every_report(train):
    run, said = train("warmth", "loss.learn_temperature=true", "engine.zero=3", ranks=2)
    told = [line["train/temperature"] for line in read_metrics(run) if "train/loss" in line]
    assert told[0] == pytest.approx(0.1) and len(told) == 4  # the first forward's is where it began
    assert len(set(told)) == 4 and all(0.05 < value < 0.2 for value in told)
    assert any(f"| temperature {told[-1]:.3f} |" in line for line in said)


def test_compiled_blocks_train_the_same(train, plain):
    run, _ = train("compiled", "engine.compile=true", ranks=1)
    _alike(plain, run, 1e-4)
    assert load_part(run, "fmri").keys() == load_part(plain, "fmri").keys()


def _both(one, other):
    a, b = load_part(one, "fmri"), load_part(other, "fmri")
    for key in a:
        if key.endswith("qkv.bias"):  # a key bias has no true gradient
            third = len(a[key]) // 3
            a[key][third : 2 * third] = b[key][third : 2 * third]
        yield a[key].numpy(), b[key].numpy()


def _alike(one, other, tolerance):
    for a, b in _both(one, other):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def runs_of_frames(tmp_path_factory):
    """Two subjects of 30 and 27 voxels, a run of 20 frames each for training and one of 10 for validation."""
    folder = tmp_path_factory.mktemp("frames") / "set"
    rng = np.random.default_rng(0)

    def fill(pack):
        for subject, voxels in (("A", 30), ("B", 27)):
            for run, frames, split in (("1", 20, "train"), ("2", 10, "val")):
                signals = rng.standard_normal((frames, voxels)).astype(np.float32)
                pack.add(make_records(subject, run, signals, split, start=list(range(frames)), frames=1))

    pack_folder(folder, "table", {"frames": 1}, {}, fill, silent)
    return folder


@pytest.mark.parametrize("layout", [["data.pad=packed"], ["data.clip_frames=2", "model.patch_frames=2"]])
def test_packed_samples_and_clips_train_alike_however_the_batch_is_cut(train, runs_of_frames, layout):
    name = layout[0].split("=")[0].rpartition(".")[2]
    layout = [*layout, f'data.shards=["{runs_of_frames}"]', "train.val_batches=1"]
    whole, _ = train(f"{name}-whole", *layout, ranks=1)
    cut, said = train(f"{name}-cut", *layout, "train.micro_batch=2", "engine.zero=3")
    _alike(whole, cut, 1e-4)
    losses = [json.loads((run / "summary.json").read_text())["loss_last"] for run in (whole, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert any("samples/s" in line for line in said)
    assert (whole / "previews" / "000012.png").read_bytes().startswith(b"\x89PNG")
