"""Training: every ZeRO stage, resume, and the errors a user meets.

The reference run, one stopped by a signal and a failing rank go through the real launchers, the others do not.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from cadiff.checkpoint import committed
from cadiff.errors import ConfigError, DataError, NonFiniteError
from cadiff.exports import load_part, read_card
from cadiff.launch.start import free_port, start_training
from cadiff.tracking import read_metrics

pytestmark = pytest.mark.multiprocess


def _train(config, run, *overrides, ranks=2):
    said = []
    start_training(config, list(overrides), run, phase="phase1", ranks=ranks, say=said.append)
    return said


@pytest.fixture(scope="module")
def again(warm):
    """The same by ranks that start at once."""

    def run(config, run, *overrides, ranks=2):
        said = []
        warm.train(config, list(overrides), run, phase="phase1", ranks=ranks, say=said.append)
        return said

    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_job):
    """One uninterrupted two-rank ZeRO-2 run through the deepspeed launcher, for the others to compare with."""
    folder = tmp_path_factory.mktemp("reference")
    config = tiny_job(folder / "job.toml", "phase1")
    said = _train(config, folder / "run")
    return config, folder / "run", said


def test_a_run_leaves_everything_the_next_phase_and_the_reader_need(reference):
    _, run, said = reference
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["world"], summary["zero"], summary["device"]) == (12, 2, 2, "cpu")
    validation = [line["val/loss"] for line in read_metrics(run) if "val/loss" in line]
    assert len(validation) == 3
    assert validation[-1] < validation[0]
    card = read_card(run)
    assert card["phase"] == "phase1"
    assert card["space"] == {"voxels": 32, "classes": 3}
    assert len(card["lineage"]["data"]) == 1
    weights = load_part(run, "fmri")
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == [1, 4, 4, 8, 8, 12, 12]
    assert len(committed(run)) == 2
    assert any("ZeRO-2" in line and "attention: " in line and "kernels: " in line for line in said)
    assert any("eta" in line and "samples/s" in line for line in said)
    assert set(np.load(run / "preview.npz")) >= {"signal", "prediction"}


@pytest.mark.parametrize("zero", [1, 3])
def test_other_zero_stages_train_the_same_weights(reference, again, tmp_path, zero):
    config, run, _ = reference
    again(config, tmp_path / "run", f"engine.zero={zero}")
    _same_weights(run, tmp_path / "run", tolerance=1e-5)
    sizes = [json.loads((folder / "summary.json").read_text())["parameters"] for folder in (run, tmp_path / "run")]
    assert sizes[0] == sizes[1] > 0


def test_one_process_trains_the_same_weights_as_two(reference, again, tmp_path):
    config, run, _ = reference
    again(config, tmp_path / "run", ranks=1)
    _same_weights(run, tmp_path / "run", tolerance=1e-4)


def test_a_run_cut_short_continues_to_the_same_bits(reference, again, tmp_path):
    config, run, _ = reference
    cut = tmp_path / "run"
    shutil.copytree(run, cut)
    for leftover in ("export", "summary.json", "preview.npz"):  # as a kill before the end leaves it
        path = cut / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = committed(cut)[-1]
    with open(next(newest.glob("deepspeed/*")), "ab") as handle:
        handle.write(b"damage")
    said = again(config, cut)
    assert any("is damaged" in line for line in said)
    assert any("resuming tiny at step 4 of 12" in line for line in said)
    _same_weights(run, cut, tolerance=0)
    first, second = ([line["train/loss"] for line in read_metrics(r) if "train/loss" in line] for r in (run, cut))
    assert first == second


def test_a_run_folder_of_another_job_is_refused_and_left_as_it_is(reference, again):
    config, run, _ = reference
    names = ("job.toml", "metrics.jsonl", "export/card.json")
    before = [(run / name).read_bytes() for name in names]
    with pytest.raises(ConfigError, match="job_hash"):
        again(config, run, "optim.lr=5e-3")
    assert any("nothing to do" in line for line in again(config, run))
    assert [(run / name).read_bytes() for name in names] == before


def test_a_run_knows_its_data_by_content_wherever_it_lies(reference, again, tmp_path):
    config, run, _ = reference
    moved, shards = tmp_path / "moved", tmp_path / "shards"
    shutil.copytree(run, moved)
    shutil.copytree(tomllib.loads(config.read_text())["data"]["shards"][0], shards)
    assert any("nothing to do" in line for line in again(config, moved, f'data.shards=["{shards}"]'))


def test_bf16_learns_the_same_and_is_part_of_what_a_run_is(reference, again, tmp_path):
    config, run, _ = reference
    again(config, tmp_path / "run", "engine.precision=bf16")
    losses = [json.loads((folder / "summary.json").read_text())["loss_last"] for folder in (run, tmp_path / "run")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert read_card(tmp_path / "run")["lineage"]["precision"] == "bf16"
    with pytest.raises(ConfigError, match="differs in precision"):
        again(config, tmp_path / "run", "engine.precision=fp32")


def test_ranks_of_another_launcher_find_each_other(reference, tmp_path):
    config, run, _ = reference
    command = [sys.executable, "-m", "cadiff.launch.worker", "--config", str(config), "--out", str(tmp_path / "run")]
    slurm = {"SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(command, env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    _same_weights(run, tmp_path / "run", tolerance=1e-6)


def test_a_mistyped_key_of_deepspeed_is_one_error(reference, again, tmp_path):
    config, _, _ = reference
    with pytest.raises(ConfigError, match=r"zero_optimization.overlapp_comm"):
        again(config, tmp_path / "run", "engine.deepspeed={zero_optimization={overlapp_comm=true}}", ranks=1)


def test_sigterm_saves_and_exits_75(reference, tmp_path):
    config, _, _ = reference
    command = [
        sys.executable,
        "-m",
        "cadiff.launch.cli",
        "train",
        "phase1",
        "-c",
        str(config),
        "-o",
        str(tmp_path / "run"),
    ]
    asked = ["train.steps=20000", "train.log_every=5", "train.save_every=20000", "train.val_every=20000"]
    process = subprocess.Popen([*command, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "step 5/" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "asked to stop; saved at step" in err
    assert len(committed(tmp_path / "run")) == 1


def test_the_rank_that_met_an_error_is_heard(tmp_path, tiny_set, tiny_job):
    damaged = tmp_path / "set"
    shutil.copytree(tiny_set, damaged)
    for shard in damaged.glob("fmri-*.tar"):
        shard.write_bytes(shard.read_bytes()[:2000])
    config = tiny_job(tmp_path / "job.toml", "phase1")
    with pytest.raises(DataError, match="fmri-"):
        _train(config, tmp_path / "run", f'data.shards=["{damaged}"]')


def test_a_loss_that_is_not_finite_stops_all_ranks(reference, again, tmp_path):
    config, _, _ = reference
    with pytest.raises(NonFiniteError, match=r"optimizer step \d+ had a gradient norm of (inf|nan)"):
        again(config, tmp_path / "run", "optim.lr=1e30", "optim.clip=0", "train.steps=20", "train.log_every=1")


def _same_weights(one, other, tolerance):
    a, b = load_part(one, "fmri"), load_part(other, "fmri")
    assert a.keys() == b.keys()
    for key in a:
        if key.endswith("qkv.bias"):  # a key bias has no true gradient: Adam turns its rounding noise into steps
            third = len(a[key]) // 3
            a[key][third : 2 * third] = b[key][third : 2 * third]
        np.testing.assert_allclose(a[key].numpy(), b[key].numpy(), atol=tolerance, rtol=0, err_msg=key)
