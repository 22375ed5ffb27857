"""The loss curve is one curve: for every ZeRO stage, number of ranks, accumulation, with and without recomputation."""

from itertools import product

import pytest
import torch

from cadiff.config import load_job
from cadiff.kernels.pairs import Pairs
from cadiff.phases import Space, build_phase
from cadiff.schedule import lr_at
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

pytestmark = pytest.mark.multiprocess
STEPS = 30
LONG = [
    "train.steps=30", "train.log_every=1", "train.save_every=100", "train.val_every=100", "optim.lr=1e-3",
    "optim.warmup_steps=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_job):
    path = tiny_job(tmp_path_factory.mktemp("curve") / "job.toml", "phase1")
    text = path.read_text()
    for key in LONG:
        section, _, rest = key.partition(".")
        name, _, value = rest.partition("=")
        lines = [line for line in text.splitlines() if not line.startswith(f"{name} =")]
        place = lines.index(f"[{section}]") + 1
        text = "\n".join([*lines[:place], f"{name} = {value}", *lines[place:]])
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def plain(config):
    """The curve of a plain loop in one process: no DeepSpeed, no ranks, no accumulation, no recomputation."""
    job = load_job(config, [])
    stream = Stream([Dataset(job.data.shards[0])], split="train", batch=8, micro_batch=8, width=32, seed=job.seed)
    torch.manual_seed(job.seed)
    phase = build_phase(job, Space(voxels=32, classes=3))
    named = list(phase.named_parameters())
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
        torch.nn.utils.clip_grad_norm_(phase.parameters(), job.optim.clip)
        optimizer.step()
        curve.append(loss.item())
    return curve


def _curves(warm, config, folder, world, names):
    log = folder / "log.txt"
    codes = warm.run("zero_rank:main", [str(config), str(folder), names], log, world)
    assert codes == [0] * world, log.read_text()[-4000:]
    return {
        name: [line["train/loss"] for line in read_metrics(folder / name.replace(" ", "_")) if "train/loss" in line]
        for name in names
    }


def _compare(curves, plain):
    for name, curve in curves.items():
        assert len(curve) == STEPS, name
        worst = max(abs(a - b) / abs(b) for a, b in zip(curve, plain))
        print(f"{name}: {worst:.1e}")
        assert worst < 1e-5, f"{name}: {worst:.1e} from the plain curve"
    assert plain[-1] < 0.9 * plain[0]


def test_the_plain_curve_contrasts_over_the_whole_batch(config):
    job = load_job(config, [])
    assert job.loss.negatives == "global" and job.loss.cross_contrast > 0
    assert Pairs().subjects == job.loss.negative_subjects


FEW = {
    1: ["zero=0 accumulate=2 recompute=1", "zero=3 accumulate=1 recompute=0"],
    2: ["zero=0 accumulate=1 recompute=0", "zero=1 accumulate=2 recompute=0", "zero=3 accumulate=2 recompute=1"],
    4: ["zero=2 accumulate=2 recompute=1"],
}
ALL = [f"zero={zero} accumulate={n} recompute={again}" for zero, n, again in product((0, 1, 2, 3), (1, 2), (0, 1))]


@pytest.mark.parametrize("world", FEW)
def test_a_few_combinations_give_the_plain_curve(warm, config, plain, tmp_path, world):
    _compare(_curves(warm, config, tmp_path, world, FEW[world]), plain)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_combinations_give_the_plain_curve(warm, config, plain, tmp_path, world):
    _compare(_curves(warm, config, tmp_path, world, ALL), plain)
