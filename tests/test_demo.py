"""The whole road on a tiny brain: it ends with a report, is not done twice, and survives kills."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cadiff.errors import ConfigError
from cadiff.exports import load_part
from cadiff.launch.commands.train import configs_folder
from cadiff.launch.demo_plan import load_plan

pytestmark = pytest.mark.multiprocess

_TINY = """
brain.classes=3 brain.voxels=60 brain.train_images=48 brain.test_images=8 brain.test_repeats=2
brain.hcp_subjects=2 brain.hcp_movie_runs=0 brain.hcp_frames=160 brain.bold_trials=36 brain.bold_repeated=4
brain.bold_voxels=40 brain.extra_images=40 pack.hcp_window=4 pack.val=0.2 sample.samples=1 sample.steps=2
"""
_JOBS = {
    "phase1": "model.width=16 model.depth=1 model.heads=2 model.decoder_width=16 model.decoder_heads=2",
    "first_stage": "model.channels=[8,8,8] model.codes=16",
    "prior": "model.channels=[8,16] model.heads=2 model.context_width=8",
    "phase2": "model.width=16 model.depth=1 model.heads=2 model.decoder_width=16 model.decoder_heads=2 "
    "image.width=16 image.depth=1 image.heads=2 image.mlp_width=16 image.decoder_width=16 image.decoder_heads=2",
    "phase3": "model.width=16 model.depth=1 model.heads=2 condition.tokens=4",
}
_ORDER = ["simulate", "pack-hcp", "pack-god", "pack-bold5000", "pack-images", *_JOBS]
_ORDER += ["sample-cadiff", "sample-shuffled", "compare"]
_TRAIN = "train.steps=4 train.batch=8 train.log_every=2 train.save_every=2 train.val_every=4 track.wandb=off"
_TRAIN += " engine.precision=fp32"


def overrides():
    words = _TINY.split()
    for job, model in _JOBS.items():
        words += [f"{job}.{word}" for word in f"{model} {_TRAIN}".split()]
    return [*words, "prior.track.wandb=offline"]


def command(out, *more):
    return [sys.executable, "-m", "cadiff.launch.cli", "demo", "-o", str(out), *more, *overrides()]


def run(out, *more):
    return subprocess.run(command(out, *more), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = run(out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done


def test_it_prints_the_tables_and_writes_a_report_that_needs_nothing_else(finished):
    out, done = finished
    for text in ("phase1", "first_stage", "prior", "phase2", "phase3", "chance", "ridge", "shuffled", "report.html"):
        assert text in done.stdout
    page = (out / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert page.count("<img") > 8
    metrics = json.loads((out / "comparison" / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"cadiff", "ridge", "nearest", "shuffled"}
    assert metrics["stimuli"] == 8
    assert list((out / "prior" / "wandb").glob("offline-run-*/*.wandb"))


def test_every_job_ran_on_two_ranks_and_names_its_parents(finished):
    out, _ = finished
    cards = {job: json.loads((out / job / "export" / "card.json").read_text()) for job in _JOBS}
    assert all(card["lineage"]["world"] == 2 and card["lineage"]["zero"] == 2 for card in cards.values())
    parents = {job: sorted(card["lineage"]["parents"]) for job, card in cards.items()}
    assert parents == {
        "phase1": [], "first_stage": [], "prior": ["first_stage"], "phase2": ["fmri"], "phase3": ["fmri", "prior"],
    }  # fmt: skip


def test_phase_3_with_its_frozen_parts_trains_the_same_under_zero_3(finished, warm, tmp_path):
    out, _ = finished
    words = f"{_JOBS['phase3']} {_TRAIN} seed=1 engine.zero=3".split()
    words += [f'data.shards=["{out}/shards/god"]', f'init.fmri="{out}/phase2"', f'init.prior="{out}/prior"']
    warm.train(configs_folder() / "demo_phase3.toml", words, tmp_path, phase="phase3", ranks=2, say=print)
    for part in ("conditioner", "unet", "first_stage"):
        split, whole = load_part(tmp_path, part), load_part(out / "phase3", part)
        assert split.keys() == whole.keys()
        assert all(torch.allclose(split[name], whole[name], atol=1e-5) for name in whole), part


def test_a_second_start_does_nothing_again(finished):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("card.json")}
    again = run(out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("done before, unchanged") == 13
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("card.json")}


@pytest.mark.slow
def test_a_prior_can_be_brought_along(finished, tmp_path):
    out, _ = finished
    done = run(tmp_path / "demo", "--init", str(out / "prior"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "demo" / "prior").exists()
    assert (tmp_path / "demo" / "report.html").exists()


def test_overrides_are_checked_before_anything_runs(cadiff, tmp_path):
    for text, named in [
        ("brain.snrr=1", "snrr"),
        ("phase9.train.steps=1", "begin a demo override with"),
        ("brain.snr=loud", "loud"),
    ]:
        with pytest.raises(ConfigError, match=named):
            load_plan([text], 1, None)
    with pytest.raises(ConfigError, match="no such folder"):
        load_plan([], 1, tmp_path / "none")
    for text, named in [("phase3.optim.lr=abc", "optim.lr"), ("phase2.trian.steps=3", "Did you mean 'train'")]:
        code, _, err = cadiff("demo", "-o", tmp_path / "demo", text, *overrides())
        assert code == 2
        assert named in err
        assert not (tmp_path / "demo").exists()


def test_ctrl_c_ends_the_simulation_and_its_workers_at_once(tmp_path):
    out = tmp_path / "demo"
    process = subprocess.Popen(command(out, "brain.train_images=2000"), stderr=subprocess.PIPE, start_new_session=True)
    while not (out / "stages" / "simulate.started.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)  # a terminal sends it to the whole group, workers included
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in said
    assert _gone(process.pid, patience_s=15)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_metrics(finished, tmp_path):
    out, _ = finished
    killed = tmp_path / "demo"
    kills = sum(_kill_in(killed, stage) for stage in _ORDER)
    done = run(killed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert kills >= 9  # the shortest stages may be over before the signal comes
    for name in ("comparison/metrics.json", "samples/cadiff/samples.npz", "phase3/export/conditioner.safetensors"):
        assert (killed / name).read_bytes() == (out / name).read_bytes(), name


def _gone(group, patience_s):
    """True once no process of the group is left."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _kill_in(out, stage):
    """Start the demo and kill it, and it alone, shortly after ``stage`` began; False if that was over already."""
    began, done = out / "stages" / f"{stage}.started.json", out / "stages" / f"{stage}.done.json"
    if done.exists():
        return False
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not began.exists() and process.poll() is None:
            time.sleep(0.02)
        checkpoint = out / stage / "checkpoints"
        if stage in _JOBS:
            while not list(checkpoint.glob("step-*/COMMITTED")) and process.poll() is None:
                time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    return not done.exists()
