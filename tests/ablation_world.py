"""A small grid over a tiny phase 1 and phase 2 for tests of `cadiff ablate`, and a trainer that only pretends."""

import json

from cadiff.config import load_job
from cadiff.errors import DataError, Preempted
from cadiff.exports import save_export
from cadiff.files import write_json
from cadiff.launch.ablation import Ablation
from cadiff.launch.view import View
from cadiff.session import job_hash, parents
from cadiff.shards.dataset import Dataset

GRID = """
name = "tiny_grid"
seeds = [1, 2]
base = ["one.toml", "two.toml"]
figures = ["val/loss", "phase1:val/rebuild"]
better = "lower"
reference = "full"
[[row]]
id = "full"
[[row]]
id = "plain"
label = "no residual"
phase2 = ["cross.residual=false"]
"""


def grid_writer(tmp_path, tiny_job):
    """Jobs of a tiny phase 1 and phase 2, and what writes a grid over them with some texts replaced."""
    tiny_job(tmp_path / "one.toml", "phase1")
    tiny_job(tmp_path / "two.toml", "phase2")

    def write(text=GRID, *changes):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "grid.toml").write_text(text)
        return tmp_path / "grid.toml"

    return write


class Trainer:
    """Stands in for ``start_training``: leaves what a finished run leaves, with a loss made of row and seed."""

    def __init__(self):
        self.started, self.broken, self.stop_at = [], set(), None

    def __call__(self, config, overrides, run, *, phase, ranks, say):
        name = "/".join(run.parts[-3:])
        self.started.append(name)
        if name == self.stop_at:
            raise Preempted("asked to stop")
        if name in self.broken:
            raise DataError("a shard is damaged")
        job = load_job(config, overrides, phase=phase)
        run.mkdir(parents=True)
        identity = {"job_hash": job_hash(job), "data": [Dataset(one).hash for one in job.data.shards]}
        write_json(run / "identity.json", {**identity, "parents": parents(job), "world": ranks})
        value = job.seed + (10 if phase == "phase2" and not job.cross.residual else 0)
        told = {"val/loss": value, "val/rebuild": job.seed / 2, "val/rebuild_chance": 0.25}
        lines = [{"step": 4, "val/loss": 99.0}, {"step": 8, **told}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        save_export(run / "export", {}, {"phase": phase, "job": job.model_dump(), "lineage": {}})
        write_json(run / "summary.json", {"phase": phase, "seconds": 5.0})


def run(plan, trainer, **options):
    written = []
    ablation = Ablation(plan, 1, View(), after_cell=written.append, train=trainer, **options)
    ablation.run()
    return ablation, written
