"""Phase 2 has one loss curve: ZeRO-2 and ZeRO-3 on two ranks, accumulation, and a job cut short and resumed."""

import shutil

import pytest
import torch
from tuned_world import ALL_SPLIT, TINY_PAIR, write_vit

from cadiff.checkpoint import committed
from cadiff.config import load_job
from cadiff.exports import load_part
from cadiff.phases import Space, build_phase
from cadiff.schedule import lr_at
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

pytestmark = pytest.mark.multiprocess
STEPS = 12
EVERY_STEP = ["train.log_every=1", "optim.warmup_steps=3", "train.val_every=100", "train.val_batches=1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_job):
    folder = tmp_path_factory.mktemp("pair")
    vit = write_vit(folder / "vit")
    return tiny_job(folder / "job.toml", "phase2", f'{TINY_PAIR}[init]\nimage = "{vit}"\n')


@pytest.fixture(scope="module")
def plain(config):
    """The curve of a plain loop in one process: no DeepSpeed, no ranks, no accumulation."""
    job = load_job(config, EVERY_STEP)
    stream = Stream(
        [Dataset(job.data.shards[0])], split="train", batch=8, micro_batch=8, width=32, image_size=16, seed=job.seed
    )
    torch.manual_seed(job.seed)
    phase = build_phase(job, Space(voxels=32, classes=3))
    named = [(name, p) for name, p in phase.named_parameters() if p.requires_grad]
    flat = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    rest = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": job.optim.weight_decay}]
    optimizer = torch.optim.AdamW(groups, betas=tuple(job.optim.betas), eps=job.optim.eps)
    curve = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, job.optim, STEPS, stream.steps_per_epoch)
        loss = sum(phase(stream.micro(step, 0)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flat + rest, job.optim.clip)
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.fixture(scope="module")
def train(config, warm):
    def run(folder, *overrides, ranks=2):
        said = []
        warm.train(config, [*EVERY_STEP, *overrides], folder, phase="phase2", ranks=ranks, say=said.append)
        return said

    return run


def curve_of(run):
    return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


@pytest.mark.parametrize("options", [
    ["engine.zero=2"], ["engine.zero=3", *ALL_SPLIT],
    ["engine.zero=3", *ALL_SPLIT, "train.micro_batch=2", "engine.checkpoint_activations=true"],
], ids=lambda options: " ".join(word for word in options if word not in ALL_SPLIT))  # fmt: skip
def test_two_ranks_have_the_curve_of_one_process(plain, train, tmp_path, options):
    train(tmp_path / "run", *options)
    curve = curve_of(tmp_path / "run")
    assert len(curve) == STEPS and plain[-1] < 0.95 * plain[0]
    worst = max(abs(a - b) / abs(b) for a, b in zip(curve, plain))
    assert worst < 1e-5, f"{worst:.1e}"


@pytest.mark.parametrize("zero", [2, 3])
def test_a_job_cut_short_ends_with_the_same_bits(train, tmp_path, zero):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = [f"engine.zero={zero}", "train.select=last", *(ALL_SPLIT if zero == 3 else [])]
    train(whole, *options)
    shutil.copytree(whole, cut)
    for leftover in ("export", "summary.json", "preview.npz"):  # as a kill before the end leaves it
        path = cut / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(committed(cut)[-1])
    said = train(cut, *options)
    assert any("resuming tiny at step 4 of 12" in line for line in said)
    for part in ("fmri", "image"):
        ours, theirs = load_part(whole, part), load_part(cut, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert curve_of(whole) == curve_of(cut)
