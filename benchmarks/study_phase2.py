"""Simulated people looking at pictures: does phase 2 make held-out stimuli easier to retrieve from fMRI features?

    OMP_NUM_THREADS=2 python benchmarks/study_phase2.py --work FOLDER --json result.json
    OMP_NUM_THREADS=2 python benchmarks/study_phase2.py --photos FOLDER_OF_PHOTOS --work OTHER --json photos.json

Data: the simulator's GOD files (docs/simulator.md), three subjects with their own voxels, a noisy scanner (snr 0.3),
rendered scenes or photos as stimuli, and the packer's splits. Phase 1 sees their training signals; phase 2 goes on from
it, or from fresh weights, with linear voxel adapters. "phase 1, twice the steps" has had as many steps as both.

Retrieval (cadiff/retrieval.py): a ridge readout per subject, fitted on its training samples, leads from frozen fMRI
features to the picture's 16 x 16 colours, which no network here has made; then each test picture is looked for among
all of them, from the mean of its trials. "patches" are all patch tokens, "mean" and "cls" single tokens. Intervals are
percentile bootstraps over test pictures, of means over subjects and seeds; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.config import Job, Phase1Job, Phase2Job
from cadiff.distributed import Place
from cadiff.files import write_json
from cadiff.frozen import load_encoder, untrained_encoder
from cadiff.launch.machine import machine
from cadiff.launch.start import free_port
from cadiff.retrieval import SCORES, retrieve
from cadiff.shards.dataset import Dataset
from cadiff.shards.god import pack_god
from cadiff.shards.synthetic.brain import BrainSpec, simulate
from cadiff.statistics import interval_of, resampled_means
from cadiff.train import train

SIZES = {
    "model": {
        "patch": 32, "width": 128, "depth": 3, "heads": 4, "mlp_ratio": 1.0,
        "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4,
    },
    "image": {
        "patch": 8, "width": 128, "depth": 2, "heads": 4, "mlp_width": 256, "decoder_width": 64, "decoder_depth": 1,
        "decoder_heads": 4, "decoder_mlp_width": 128, "train_encoder": True,
    },
    "cross": {"layers": 2},
}  # fmt: skip
REST = {
    "optim": {"lr": 1e-3, "warmup_steps": 30},
    "engine": {"zero": 0, "precision": "fp32"},
    "track": {"wandb": "off"},
}
SIDE = 32  # pixels
CONTRAST = {"self_contrast": 0.1, "cross_contrast": 0.05}
LINEAR = {"kind": "linear"}
BASES = ("phase 1", "phase 2 from scratch")
Found = dict[str, list[dict[str, np.ndarray]]]  # method -> for each seed and subject, the test pictures' scores


def make_set(work: Path, photos: str, pictures: int) -> Dataset:
    spec = BrainSpec(seed=2022, subjects=3, snr=0.3, train_images=pictures, test_images=60, photos=photos)
    raw = simulate(work / "raw", spec, ("god",))["god"]
    pack_god(raw, work / "set", val_fraction=0.1, workers=1)
    return Dataset(work / "set")


def run_job(dataset: Dataset, work: Path, name: str, phase: type[Job], seed: int, steps: int, **more: Any) -> Path:
    """Train once in a folder of its own; a finished run is taken as it is."""
    first = phase is Phase1Job
    tree = {
        "phase": "phase1" if first else "phase2", "name": name, "seed": seed, **REST,
        "data": {"shards": [str(dataset.folder)], **({} if first else {"image_size": SIDE})},
        "train": {
            "steps": steps, "batch": 32, "log_every": 50, "save_every": 10**6, "val_every": steps, "select": "last",
        },
        **({"model": SIZES["model"]} if first else SIZES), **more,
    }  # fmt: skip
    run, began = work / f"{name}-{seed}", time.perf_counter()
    told = train(phase.model_validate(tree), run, Place())
    print(f"{run.name}: {time.perf_counter() - began:.0f} s, {told['selected']}", flush=True)
    return run


class Readouts:
    """Scores of features, by method, each subject with a readout of its own."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self.found = dataset, Found()
        stimulus_N = dataset.table.stimulus.astype(np.int64)
        colours_SE = dataset.images(np.arange(len(dataset.stimuli)), 16).reshape(len(dataset.stimuli), -1) / 255.0
        self._stimulus_N, self._colours_NE = stimulus_N, colours_SE[stimulus_N]

    def add(self, name: str, features_NF: np.ndarray) -> None:
        """Args: ``features_NF``: of every sample of the set."""
        for subject in self._dataset.subjects:
            fit, test = (self._dataset.ids(split, [subject]) for split in ("train", "test"))
            told = retrieve(
                features_NF[fit], self._colours_NE[fit], self._stimulus_N[fit],
                features_NF[test], self._colours_NE[test], self._stimulus_N[test], seed=1,
            )  # fmt: skip
            self.found.setdefault(name, []).append(told.rows)
        print(f"  {name}: top1 {np.mean([rows['top1'].mean() for rows in self.found[name][-3:]]):.3f}", flush=True)


def study(dataset: Dataset, work: Path, seeds: int, steps: int) -> Found:
    readouts, ids = Readouts(dataset), np.arange(len(dataset))
    readouts.add("voxels", dataset.signals(ids, dataset.voxels))
    for seed in range(1, seeds + 1):

        def job(name: str, phase: type[Job], length: int = steps, **more: Any) -> Path:
            return run_job(dataset, work, name, phase, seed, length, **more)  # noqa: B023

        first = job("phase1", Phase1Job, loss=CONTRAST)
        longer = job("phase1-longer", Phase1Job, 2 * steps, loss=CONTRAST)
        tuned = job("phase2", Phase2Job, adapter=LINEAR, init={"fmri": str(first)})
        scratch = job("phase2-scratch", Phase2Job, adapter=LINEAR)
        encoders = {
            "untrained": untrained_encoder(first, seed),
            "phase 1": load_encoder(first),
            "phase 1, twice the steps": load_encoder(longer),
            "phase 2": load_encoder(tuned),
            "phase 2 from scratch": load_encoder(scratch),
        }
        for name, encoder in encoders.items():
            for pool, values in encoder.features(dataset, ids).items():
                readouts.add(f"{name}, {pool}", values)
    return readouts.found


def summary(found: Found) -> dict[str, Any]:
    """Scores with intervals, top-1 of each seed and subject, and paired differences to ``BASES`` in the same tokens."""
    rows_SK = {
        name: np.mean([np.stack([rows[score] for score in SCORES], 1) for rows in runs], axis=0)
        for name, runs in found.items()
    }
    out: dict[str, Any] = {}
    for name, own_SK in rows_SK.items():
        pool = name.rpartition(", ")[2] if ", " in name else "patches"
        beside = [f"{base}, {pool}" for base in BASES]
        both_SK = np.concatenate([own_SK, *(own_SK - rows_SK[base] for base in beside)], axis=1)
        means = resampled_means(both_SK, seed=1)
        told = [*SCORES, *(f"{score} minus {base}" for base in beside for score in SCORES)]
        out[name] = {key: list(interval_of(both_SK[:, k].mean(), means[:, k])) for k, key in enumerate(told)}
        out[name]["runs"] = [round(float(rows["top1"].mean()), 4) for rows in found[name]]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps set and runs; a study cut short goes on")
    parser.add_argument("--photos", default="", help="folder of photos to use as stimuli instead of rendered scenes")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each phase")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=1200, help="training pictures")
    args = parser.parse_args()
    logging.getLogger("cadiff").setLevel(logging.WARNING)
    os.environ.setdefault("MASTER_PORT", str(free_port()))  # two studies at once would want the same one
    torch.set_num_threads(min(2, torch.get_num_threads()))
    began = time.perf_counter()
    dataset = make_set(args.work, args.photos, args.pictures)
    methods = summary(study(dataset, args.work, args.seeds, args.steps))
    record = {
        "study": "phase2",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "stimuli": "photos" if args.photos else "scenes",
        "steps": args.steps,
        "seeds": args.seeds,
        "samples": {split: len(dataset.ids(split)) for split in ("train", "val", "test")},
        "test_pictures": len(np.unique(dataset.table.stimulus[dataset.ids("test")])),
        "sizes": SIZES,
        "methods": methods,
        "seconds": round(time.perf_counter() - began),
    }
    if args.json:
        write_json(args.json, record)
    print(json.dumps(methods, indent=1))


if __name__ == "__main__":
    main()
