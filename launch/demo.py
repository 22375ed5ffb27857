"""The whole road in one command: simulate, pack, train five jobs, sample, compare, report; resumable at every stage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import cadiff
from cadiff.exports import export_hash, load_part, read_card
from cadiff.files import read_json, sha256
from cadiff.launch.demo_plan import DemoPlan
from cadiff.launch.pool import two_processes
from cadiff.launch.stages import Ledger, Stage
from cadiff.launch.start import start_training
from cadiff.launch.view import View
from cadiff.launch.worker import hold

# Who reads what: job -> its packed sets and the init keys that name earlier jobs.
READS = {"phase1": "hcp", "first_stage": "images", "prior": "images", "phase2": "god", "phase3": "god"}
INITS = {
    "phase1": {},
    "first_stage": {},
    "prior": {"first_stage": "first_stage"},
    "phase2": {"fmri": "phase1"},
    "phase3": {"fmri": "phase2", "prior": "prior"},
}

# Stage -> the folder it writes.
FOLDERS = {
    "simulate": "raw",
    **{f"pack-{kind}": f"shards/{kind}" for kind in ("hcp", "god", "bold5000", "images")},
    **{job: job for job in READS},
    **{f"sample-{name}": f"samples/{name}" for name in ("cadiff", "shuffled")},
    "compare": "comparison",
}


class Demo:
    """One demo in one folder. ``run`` does what is not done yet and returns the metrics."""

    def __init__(self, plan: DemoPlan, out: Path, prior: Path | None, ranks: int, view: View) -> None:
        self.plan, self.out, self.prior, self.ranks, self.view = plan, out, prior, ranks, view
        self.ledger = Ledger(out / "stages")
        self.digests: dict[str, str] = {}

    def run(self, *, fresh: bool = False) -> dict[str, Any]:
        """Do the stages; ``fresh`` first deletes what they made here earlier, and nothing else."""
        with hold(self.out):
            if fresh:
                self.ledger.forget({name: self.out / folder for name, folder in FOLDERS.items()})
            return self._run()

    def _run(self) -> dict[str, Any]:
        self._simulate()
        for kind in ("hcp", "god", "bold5000", "images"):
            self._pack(kind)
        for job in self.trained:
            self._train(job)
        for name in ("cadiff", "shuffled"):
            self._sample(name)
        self._compare()
        return read_json(self.out / "comparison" / "metrics.json")

    @property
    def trained(self) -> list[str]:
        """The jobs of this demo, in order; a prior that was brought along is not trained again."""
        return [job for job in READS if self.prior is None or job not in ("first_stage", "prior")]

    def job_folder(self, job: str) -> Path:
        return self.prior if job == "prior" and self.prior is not None else self.out / job

    def _do(self, name: str, inputs: dict[str, Any], work: Callable, digest: Callable[[], str]) -> None:
        inputs = {"version": cadiff.__version__, **inputs}
        stage = Stage(name, inputs, self.out / FOLDERS[name], work, digest)
        self.digests[name] = self.ledger.run(stage, self.view.line)

    def _simulate(self) -> None:
        from cadiff.shards.synthetic.brain import PARTS, simulate, spec_hash
        from cadiff.shards.synthetic.photos import open_album

        raw, spec = self.out / "raw", self.plan.stages.brain
        study = spec_hash(spec, open_album(spec.photos).fingerprint() if spec.photos else "")

        def work() -> None:
            self.view.line("simulate: a brain that writes HCP, GOD and BOLD5000 files")
            calls = [(raw, spec, (part,)) for part in PARTS]
            with self.view.task("simulate") as task, two_processes(simulate, calls) as parts:
                for done, future in enumerate(as_completed(parts), start=1):
                    future.result()
                    *_, (part,) = parts[future]
                    task.advance(part, done, len(parts))

        markers = [raw / part / ".simulated.json" for part in PARTS]
        self._do("simulate", {"study": study}, work, lambda: "+".join(map(sha256, markers)))

    def _pack(self, kind: str) -> None:
        from cadiff.shards.bold5000 import pack_bold5000
        from cadiff.shards.dataset import Dataset
        from cadiff.shards.god import pack_god
        from cadiff.shards.hcp import pack_hcp
        from cadiff.shards.images import pack_images

        pack, raw, out = self.plan.stages.pack, self.out / "raw" / kind, self.out / "shards" / kind
        packer, options = {
            "hcp": (pack_hcp, {"window": pack.hcp_window, "val_fraction": 0.2}),
            "god": (pack_god, {"val_fraction": pack.val}),
            "bold5000": (pack_bold5000, {"val_fraction": pack.val}),
            "images": (pack_images, {"val_fraction": 0.05}),
        }[kind]

        def work() -> None:
            with self.view.task(f"pack {kind}") as task:
                told = packer(raw, out, progress=task.advance, **options)
            counts = ", ".join(f"{count:,} {split}" for split, count in told["samples"].items())
            self.view.line(f"pack {kind}: {counts} samples, {told['bytes'] / 1e6:.0f} MB")

        inputs = {"raw": self.digests["simulate"], **options}
        self._do(f"pack-{kind}", inputs, work, lambda: Dataset(out).hash)

    def _train(self, name: str) -> None:
        from cadiff.devices import device_of
        from cadiff.distributed import Place
        from cadiff.precision import choose_precision
        from cadiff.session import job_hash

        run, shards = self.out / name, self.out / "shards" / READS[name]
        extra = [f'data.shards=["{shards}"]']
        extra += [f'init.{key}="{self.job_folder(job)}"' for key, job in INITS[name].items()]
        job = self.plan.job(name, extra)
        parents = [self._digest_of(parent) for parent in INITS[name].values()]

        def work() -> None:
            self.view.line(f"{name}: {job.train.steps} steps of {job.train.batch}, {self.ranks} ranks")
            path, overrides = self.plan.jobs[name]
            with self.view.task(name) as task:
                start_training(
                    path, [*overrides, *extra], run, phase=job.phase, ranks=self.ranks, say=task.training_line
                )

        inputs = {"job": job_hash(job), "data": self.digests[f"pack-{READS[name]}"], "parents": parents}
        inputs["precision"] = choose_precision(job.engine.precision, device_of(Place()), Place())
        self._do(name, {**inputs, "ranks": self.ranks}, work, lambda: export_digest(run))

    def _digest_of(self, job: str) -> str:
        return self.digests.get(job) or export_digest(self.job_folder(job))

    def _sample(self, name: str) -> None:
        from cadiff.sample import SampleOptions, write_samples
        from cadiff.shards.dataset import Dataset

        plan, out, shards = self.plan.stages.sample, self.out / "samples" / name, self.out / "shards" / "god"
        options = SampleOptions(**plan.model_dump(exclude={"limit"}), seed=self.plan.seed)
        shuffle = self.plan.seed if name == "shuffled" else None

        def work() -> None:
            title = "sample held-out stimuli" if shuffle is None else "sample with shuffled fMRI"
            with self.view.task(title) as task:
                write_samples(
                    out,
                    self.out / "phase3",
                    Dataset(shards),
                    options,
                    limit=plan.limit,
                    shuffle_seed=shuffle,
                    progress=lambda done, total: task.advance("pictures", done, total),
                )

        inputs = {"phase3": self.digests["phase3"], **plan.model_dump(), "seed": self.plan.seed, "shuffle": shuffle}
        written = (out / "samples.npz", out / "samples.json")
        self._do(f"sample-{name}", inputs, work, lambda: "+".join(map(sha256, written)))

    def _compare(self) -> None:
        from cadiff.comparison import compare, read_samples, write_comparison
        from cadiff.shards.dataset import Dataset

        out, samples, shards = self.out / "comparison", self.out / "samples", self.out / "shards"

        def work() -> None:
            self.view.line("compare: ridge regression, nearest training stimulus, shuffled fMRI, chance")
            god, images = Dataset(shards / "god"), Dataset(shards / "images")
            pair = read_samples(samples / "cadiff"), read_samples(samples / "shuffled")
            with self.view.task("compare") as task:
                scored = compare(
                    *pair, self.out / "phase3", god, [god, images], seed=self.plan.seed, progress=task.advance
                )
            write_comparison(out, *scored)

        inputs = {name: self.digests[name] for name in ("sample-cadiff", "sample-shuffled", "pack-god", "pack-images")}
        self._do("compare", {**inputs, "seed": self.plan.seed}, work, lambda: sha256(out / "metrics.json"))


def export_digest(run: Path) -> str:
    """What identifies a run's export, after its weights were found to have the hashes of their card."""
    card = read_card(run)
    for part in card["parts"]:
        load_part(run, part)
    return export_hash(card)
