"""The end of a cell that is a whole road: its phase 3 decodes held-out pictures, one judge scores those of all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cadiff.errors import DataError
from cadiff.files import read_json
from cadiff.launch.ablation_cells import Cell, Plan
from cadiff.launch.stages import Ledger, Stage
from cadiff.launch.view import View


class Decoder:
    """Samples and scores cells of one plan, each once as long as what goes in stays the same."""

    def __init__(self, plan: Plan, view: View) -> None:
        from cadiff.sample import SampleOptions
        from cadiff.shards.dataset import Dataset

        self.plan, self.sampling, self.evaluation, self.view = plan, plan.grid.sample, plan.grid.eval, view
        known = self.sampling.model_dump(exclude={"shards", "count", "limit"})
        self.options = SampleOptions(samples=self.sampling.count, **known)
        folder = self.sampling.shards or plan.cells[0].runs[-1].job.data.shards[0]
        self.dataset = Dataset(folder)
        self.judge_sets = [self.dataset, *map(Dataset, self.evaluation.images)]
        self._judges: dict[int, Any] = {}  # by pixels per side

    def forget_stale(self) -> None:
        """Delete scores that were made otherwise than the grid and this version score now, or of weights that are gone.

        So a table never holds scores of two kinds, however few of its cells get new ones.
        """
        for cell in self.plan.cells:
            ledger = Ledger(cell.folder / "stages")
            try:
                *_, scores = self._stages(cell)
                fresh = read_json(ledger.folder / "scores.done.json").get("key") == scores.key
            except DataError:  # no finished phase 3, or no record
                fresh = False
            if not fresh:
                ledger.forget({"scores": cell.folder / "scores"})

    def run(self, cell: Cell) -> bool:
        """Write ``samples/`` and ``scores/metrics.json`` in the cell's folder; False if they were there already."""
        self._worked = False
        ledger = Ledger(cell.folder / "stages")
        for stage in self._stages(cell):
            ledger.run(stage, self.view.line)
        _free_gpu()
        return self._worked

    def _stages(self, cell: Cell) -> tuple[Stage, Stage]:
        """Sampling and scoring of a cell whose phase 3 is finished, with all that goes into them."""
        from cadiff.exports import export_hash, read_card
        from cadiff.metrics import METRICS

        sampled = {
            "phase3": export_hash(read_card(cell.runs[-1].folder)),
            "data": self.dataset.hash,
            "limit": self.sampling.limit,
            **asdict(self.options),
        }
        scored = {
            **sampled,
            "judge": [one.hash for one in self.judge_sets],
            "eval": self.evaluation.seed,
            "protocols": {name: metric.protocol for name, metric in METRICS.items()},
        }
        return self._stage(cell, "samples", self._sample, sampled), self._stage(cell, "scores", self._score, scored)

    def _stage(self, cell: Cell, name: str, work: Any, inputs: dict[str, Any]) -> Stage:
        from cadiff.files import sha256

        folder = cell.folder / name
        written = {"samples": ("samples.npz", "samples.json"), "scores": ("metrics.json",)}[name]

        def do() -> None:
            self._worked = True
            work(cell, folder)

        return Stage(name, inputs, folder, do, lambda: "+".join(sha256(folder / file) for file in written))

    def _sample(self, cell: Cell, folder: Path) -> None:
        from cadiff.sample import write_samples

        with self.view.task(f"{cell.name} sample") as task:
            write_samples(
                folder,
                cell.runs[-1].folder,
                self.dataset,
                self.options,
                limit=self.sampling.limit,
                progress=lambda done, total: task.advance("pictures", done, total),
            )

    def _score(self, cell: Cell, folder: Path) -> None:
        from cadiff.comparison import read_samples
        from cadiff.evaluate import MAIN, evaluate
        from cadiff.files import write_json
        from cadiff.judge import train_judge

        samples = read_samples(cell.folder / "samples")
        size = samples.truth.shape[-1]
        if size not in self._judges:
            self._judges[size] = train_judge(self.judge_sets, size=size, seed=self.evaluation.seed)
        scored = evaluate(
            {MAIN: samples.reconstruction},
            samples.truth,
            samples.label,
            self._judges[size],
            seed=self.evaluation.seed,
            stimulus=samples.stimulus,
        )
        write_json(folder / "metrics.json", scored)


def _free_gpu() -> None:
    """Give back what sampling cached: the next cell trains in processes of its own on the same GPU."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
