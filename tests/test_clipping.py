"""Gradients are clipped to one norm whatever the precision: float16's, which carry a scale, as float32's."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cadiff.config import load_job
from cadiff.distributed import place
from cadiff.engine import Engine, start_processes, stop_processes

pytestmark = pytest.mark.multiprocess
CLIPS = {"bites": 0.05, "is far away": 1e4, "is off": 0.0}


class Small(nn.Module):
    """Two linear layers that shall give what they read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, batch):
        return {"rebuild": (self.layers(batch["signal"]).float() - batch["signal"]).square().mean()}


def clipped_gradients(config: str, told: str) -> None:
    """One rank: the norm of the first update's gradient, and what AdamW was given, by precision and clip."""
    here, found = place(), {}
    start_processes(here)
    batch = {"signal": torch.randn(4, 8, generator=torch.Generator().manual_seed(here.rank))}
    for zero in (0, 2):
        for name, clip in CLIPS.items():
            for precision in ("fp32", "fp16"):
                words = [f"engine.zero={zero}", f"engine.precision={precision}", f"optim.clip={clip}"]
                engine, given = Engine(Small(), load_job(Path(config), words), here, 4, 1, precision), []

                def keep(optimizer, *_, given=given):
                    scale = getattr(optimizer, "grad_scale", 1.0)
                    every = [p for group in optimizer.param_groups for p in group["params"]]
                    given.extend(p.grad.float().flatten() / scale for p in every if p.grad is not None)

                engine.guard._optimizer.register_step_pre_hook(keep)
                for step in range(20):
                    given.clear()
                    engine.backward_and_step(sum(engine(batch).values()), step)
                    if engine.guard.applied:  # float16's first scales are too high
                        break
                found[f"{zero} {name} {precision}"] = [engine.guard.norm.item(), torch.cat(given).tolist()]
    if here.is_main:
        Path(told).write_text(json.dumps(found))
    stop_processes()


@pytest.fixture(scope="module")
def found(warm, tiny_job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clipping")
    config, told, log = tiny_job(folder / "job.toml", "phase1"), folder / "told.json", folder / "log.txt"
    codes = warm.run("test_clipping:clipped_gradients", [str(config), str(told)], log, 2)
    assert codes == [0, 0], log.read_text()[-4000:]
    return json.loads(told.read_text())


@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("name", CLIPS)
def test_float16_is_clipped_to_the_norm_of_float32(found, zero, name):
    (norm, plain), (half_norm, half) = (found[f"{zero} {name} {precision}"] for precision in ("fp32", "fp16"))
    plain, half = torch.tensor(plain), torch.tensor(half)
    assert half_norm == pytest.approx(norm, rel=1e-2) and norm > 0.1
    assert (half - plain).abs().max() <= 1e-2 * plain.abs().max() and not torch.equal(half, plain)
    if zero == 0:  # otherwise a rank has its part of them
        assert plain.norm().item() == pytest.approx(min(norm, CLIPS[name] or norm), rel=1e-4)
        assert half.norm().item() == pytest.approx(min(half_norm, CLIPS[name] or half_norm), rel=1e-4)
