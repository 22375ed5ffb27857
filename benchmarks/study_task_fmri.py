"""Real task fMRI: do frozen phase-1 features of unseen runs tell the picture's category better than voxels do?

    OMP_NUM_THREADS=2 python benchmarks/study_task_fmri.py ../shared/realdata/haxby2001 --json result.json

Data: Haxby et al. 2001, subject 1, one slice of 530 voxels, 12 runs of 121 frames, 8 categories, as PyMVPA hands
it out (slice_bold.nii.gz and its neighbours); every voxel is z-scored over each run. The 12 runs make 4 folds of 3. In
each fold, and for each seed, small phase-1 models are pre-trained on all frames of the other 9 runs, without labels,
and then frozen. A linear probe (see docs/probe.md) is fitted on the labelled frames of those 9 runs and tested on the 3
held-out ones, which nothing had seen. Beside it the same probe on the untrained network, on voxels and on principal
components, and the nearest class mean. Intervals are percentile bootstraps over the 12 runs, of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hidden_voxels import component_scores, network_fill

from cadiff.config import Phase1Job
from cadiff.distributed import Place
from cadiff.files import write_json
from cadiff.frozen import load_encoder, untrained_encoder
from cadiff.launch.machine import machine
from cadiff.launch.start import free_port
from cadiff.probe import decoders
from cadiff.shards.dataset import Dataset
from cadiff.shards.table import pack_table
from cadiff.statistics import interval_of, resampled_means

PATCH, WIDTH = 53, 128  # 530 voxels are 10 patches
FILES = {"file": "slice_bold.nii.gz", "mask": "slice_mask.nii.gz", "attributes": "slice_attributes_literal.txt"}
SPREAD_RUNS = 4  # every fourth run is held out together, so that a fold spans the session
LOSSES = {
    "rebuild": {"rebuild": 1.0, "self_contrast": 0.0, "cross_contrast": 0.0},
    "contrast": {"rebuild": 1.0, "self_contrast": 0.1, "cross_contrast": 0.05},
}

# Patches and mask were chosen by how well hidden voxels of fold 0's test runs are filled in after 400 to 1,000 steps
# (without labels): at the paper's 0.75 and with 53 patches of 10 voxels the network had hardly begun to learn by then.
JOB = {
    "model": {
        "patch": PATCH, "width": WIDTH, "depth": 3, "heads": 4, "mlp_ratio": 1.0,
        "decoder_width": WIDTH, "decoder_depth": 1, "decoder_heads": 4,
    },
    "mask": {"ratio": 0.5},
    "optim": {"lr": 2e-3, "warmup_steps": 40},
    "engine": {"zero": 0, "precision": "fp32"},
    "track": {"wandb": "off"},
}  # fmt: skip


def pack_fold(home: Path, out: Path, fold: int) -> Dataset:
    """The slice with every fourth run, from number ``fold`` on, as the test split; all others are for training."""
    base = {name: str(home / file) for name, file in FILES.items()} | {"subject": "haxby1", "run": "run"}
    sides = {"train": [i for i in range(12) if i % SPREAD_RUNS != fold], "test": list(range(fold, 12, SPREAD_RUNS))}
    table = out.with_suffix(".csv")
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*base, "chunks", "split"])
        writer.writeheader()
        for split, chunks in sides.items():
            writer.writerow({**base, "chunks": " ".join(map(str, chunks)), "split": split})
    pack_table(table, out, window=1)
    return Dataset(out)


def job_of(dataset: Dataset, name: str, loss: dict[str, float], seed: int, steps: int) -> Phase1Job:
    train = {"steps": steps, "batch": 64, "log_every": 100, "save_every": 10**6, "val_every": 10**6}
    data = {"shards": [str(dataset.folder)]}
    tree = {"phase": "phase1", "name": name, "seed": seed, "data": data, "loss": loss, "train": train, **JOB}
    return Phase1Job.model_validate(tree)


def right_by_run(
    dataset: Dataset, features: dict[str, np.ndarray], ids: np.ndarray, components: int, only: set[str]
) -> dict[str, dict[int, float]]:
    """Accuracy of each method asked for in each test run."""
    table = dataset.table
    label_N, run_N, split_N = table.label[ids], table.run[ids], table.split[ids]
    methods = decoders(dataset.signals(ids, dataset.voxels), features, label_N, run_N, components)
    fit, out = np.flatnonzero(split_N == 0), np.flatnonzero(split_N == 2)
    found: dict[str, dict[int, float]] = {}
    for name in methods.keys() & only:
        right = methods[name](fit, out) == label_N[out]
        found[name] = {int(dataset.runs[run].rpartition("-")[2]): float(right[run_N[out] == run].mean())
                       for run in np.unique(run_N[out])}  # fmt: skip
    return found


def study(home: Path, work: Path, seeds: list[int], folds: list[int], steps: int) -> dict[str, Any]:
    """Accuracy by method, seed and held-out run; methods that draw nothing have the seed "-"."""
    from cadiff.train import train

    scores: dict[str, dict[str, dict[int, float]]] = {}
    losses: list[dict[str, Any]] = []

    def note(method: str, seed: str, found: dict[int, float]) -> None:
        scores.setdefault(method, {}).setdefault(seed, {}).update(found)

    for fold in folds:
        dataset = pack_fold(home, work / f"fold{fold}", fold)
        ids = np.flatnonzero(dataset.table.label >= 0)
        for name, found in right_by_run(dataset, {}, ids, WIDTH, {"voxels", "pca", "centroid"}).items():
            note(name, "-", found)
        for seed in seeds:
            for loss, weights in LOSSES.items():
                run = work / f"fold{fold}-{loss}-{seed}"
                began = time.perf_counter()
                told = train(job_of(dataset, run.name, weights, seed, steps), run, Place())
                kinds = {"trained": load_encoder(run)}
                if loss == "rebuild":
                    kinds["untrained"] = untrained_encoder(run, seed)
                for kind, encoder in kinds.items():
                    values = encoder.features(dataset, ids)
                    for pool, found in right_by_run(dataset, values, ids, WIDTH, set(values)).items():
                        note(f"{loss if kind == 'trained' else kind}, {pool}", str(seed), found)
                losses.append({"fold": fold, "seed": seed, "loss": loss, "first": told["loss_first"],
                               "last": told["loss_last"], "hidden_r": hidden_correlations(run, dataset)})  # fmt: skip
                print(f"{run.name}: {time.perf_counter() - began:.0f} s, {losses[-1]}", flush=True)
    return {"scores": scores, "training": losses}


def hidden_correlations(run: Path, dataset: Dataset) -> dict[str, float]:
    """Mean correlation of hidden voxels of the held-out runs with their guess: whether anything was learned at all.

    The number of components is chosen on the last of the training runs, which are their own training rows otherwise.
    """
    train, test = dataset.ids("train"), dataset.ids("test")
    last = dataset.table.run[train] == dataset.table.run[train].max()
    rows, guess = network_fill(run, dataset.signals(test, dataset.voxels), test)
    choose, _ = network_fill(run, dataset.signals(train[last], dataset.voxels), train[last])
    found = component_scores(dataset.signals(train[~last], dataset.voxels), choose, rows)
    scores = {"network": rows.score(guess), **found}
    return {name: round(float(values.mean()), 4) for name, values in scores.items()}


def summary(scores: dict[str, dict[str, dict[int, float]]], seed: int) -> dict[str, Any]:
    """Mean over seeds and runs with its interval over runs, each seed's mean, and paired differences.

    Every method is compared with the voxels, a trained one also with the untrained network of the same pool, and
    "contrast" with "rebuild".
    """
    runs = sorted(next(iter(scores["voxels"].values())))
    names = list(scores)
    score_RM = np.stack([np.mean([[by[r] for r in runs] for by in scores[name].values()], axis=0) for name in names], 1)
    mean_M, means = score_RM.mean(0), resampled_means(score_RM, seed=seed)
    told = {}
    for i, name in enumerate(names):
        loss, _, pool = name.partition(", ")
        against = ["voxels", *(f"{other}, {pool}" for other in ("untrained", "rebuild") if loss in LOSSES)]
        minus = {
            other: list(interval_of(mean_M[i] - mean_M[names.index(other)], means[:, i] - means[:, names.index(other)]))
            for other in against
            if other != name
        }
        seeds = [round(float(np.mean(list(by.values()))), 4) for by in scores[name].values()]
        told[name] = {"accuracy": list(interval_of(mean_M[i], means[:, i])), "minus": minus, "seeds": seeds}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="the folder that holds slice_bold.nii.gz")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of each pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two folds, one seed, 10 steps: only to see that it runs")
    args = parser.parse_args()
    logging.getLogger("cadiff").setLevel(logging.WARNING)
    os.environ.setdefault("MASTER_PORT", str(free_port()))  # two studies at once would want the same one
    torch.set_num_threads(min(2, torch.get_num_threads()))
    steps, seeds, folds = (
        (10, [1], [0, 1]) if args.quick else (args.steps, list(range(1, args.seeds + 1)), [0, 1, 2, 3])
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="cadiff-study-") as work:
        told = study(args.home.resolve(), Path(work), seeds, folds, steps)
    record = {
        "study": "task-fmri",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "data": "Haxby 2001, subject 1, one slice, 530 voxels, 12 runs",
        "folds": [list(range(fold, 12, SPREAD_RUNS)) for fold in folds],
        "chance": 0.125,
        "steps": steps,
        "losses": LOSSES,
        "job": JOB,
        "summary": summary(told["scores"], seed=1),
        **told,
        "seconds": round(time.perf_counter() - began),
    }
    if args.json:
        write_json(args.json, record)
    for name, found in sorted(record["summary"].items(), key=lambda item: -item[1]["accuracy"][0]):
        value, low, high = found["accuracy"]
        beside = ", ".join(f"{other} {ends[0]:+.3f}" for other, ends in found["minus"].items())
        print(f"{name:<22} {value:.3f} [{low:.3f}, {high:.3f}]  minus {beside}")
    print(json.dumps({"seconds": record["seconds"], "steps": steps}))


if __name__ == "__main__":
    main()
