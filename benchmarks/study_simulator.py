"""Simulated people watching films: does phase 1 fill in hidden voxels, and does contrast help to tell what they saw?

    OMP_NUM_THREADS=2 python benchmarks/study_simulator.py --json result.json

Data: the simulator's HCP-like runs (docs/simulator.md), V1, 1,618 voxels, z-scored over each run, windows of 4 s. All
subjects see the same four films, a new scene every 4 s; a window belongs to the scene that began 4 s before it. A
resting run and films 1 and 2 are trained on, film 3 chooses the number of principal components, film 4 is the test: its
runs and its scenes are new, its subjects are not. Reconstruction is the correlation of hidden voxels with their guess
(hidden_voxels.py). Retrieval asks whether a sample's nearest sample of other subjects shows the same scene. Features
are z-scored with the training samples' statistics, once over all and once subject by subject. Intervals are percentile
bootstraps over the scenes of film 4, of the mean over subjects and seeds; differences are paired.
"""

from __future__ import annotations

import argparse
import contextlib
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
from hidden_voxels import Hidden, component_scores, network_fill

from cadiff.config import Phase1Job
from cadiff.distributed import Place
from cadiff.files import write_json
from cadiff.frozen import load_encoder, untrained_encoder
from cadiff.launch.machine import machine
from cadiff.launch.start import free_port
from cadiff.leakage import confusions, nearest_subject, stimulus_retrieval
from cadiff.logistic import Components, Standard
from cadiff.shards.dataset import Dataset
from cadiff.shards.synthetic.brain import BrainSpec, simulate
from cadiff.shards.synthetic.hcp_files import SCENE_S
from cadiff.shards.table import pack_table
from cadiff.shards.voxels import padded_width
from cadiff.statistics import interval_of, resampled_means

PATCH, WIDTH, WINDOW, AREA = 128, 256, 4, "V1"
SPLIT_OF = {"REST1": "train", "MOVIE1": "train", "MOVIE2": "train", "MOVIE3": "val", "MOVIE4": "test"}
CONTRAST = {"rebuild": 1.0, "self_contrast": 0.1, "cross_contrast": 0.05}
LOSSES = {
    "rebuild": {"rebuild": 1.0, "self_contrast": 0.0, "cross_contrast": 0.0},
    "contrast": CONTRAST,
    "contrast, within subject": {**CONTRAST, "negative_subjects": "within"},
}
# One area, large patches, half of them hidden, and the rate were chosen by how well film 3 is filled in: correlation
# 0.15 with V1 to V4 at the paper's 0.75 (66 patches of 64, 300 steps of 120 samples), 0.25 so (800 steps of 32).
JOB = {
    "model": {
        "patch": PATCH, "width": WIDTH, "depth": 3, "heads": 4, "mlp_ratio": 1.0,
        "decoder_width": WIDTH, "decoder_depth": 1, "decoder_heads": 4,
    },
    "mask": {"ratio": 0.5},
    "optim": {"lr": 1e-3, "warmup_steps": 40},
    "engine": {"zero": 0, "precision": "auto"},
    "track": {"wandb": "off"},
}  # fmt: skip


def make_set(work: Path, subjects: int, frames: int, seed: int) -> Dataset:
    """Simulate, and pack with one split per run and the scene of each window as its stimulus."""
    spec = BrainSpec(seed=seed, hcp_subjects=subjects, hcp_rest_runs=1, hcp_movie_runs=4, hcp_frames=frames)
    raw = simulate(work / "raw", spec, ("hcp",))["hcp"]
    rows = []
    for path in sorted(raw.rglob("*.dtseries.nii")):
        run = path.parent.name.split("_")[1]
        events = work / f"{run}.tsv"
        scenes = [] if run.startswith("REST") else range(int(frames // SCENE_S))
        lines = [f"{i * SCENE_S}\t{SCENE_S}\tscene\t{run}_scene{i:03d}" for i in scenes]
        events.write_text("\n".join(["onset\tduration\ttrial_type\tstim_file", *lines]) + "\n", encoding="utf-8")
        row = {"file": str(path), "subject": path.parents[3].name, "run": run, "split": SPLIT_OF[run]}
        rows.append({**row, "events": str(events)})
    with open(work / "study.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pack_table(work / "study.csv", work / "set", window=WINDOW, lag_s=SCENE_S, roi=[AREA], workers=1)
    return Dataset(work / "set")


def job_of(dataset: Dataset, name: str, loss: dict[str, Any], seed: int, steps: int) -> Phase1Job:
    train = {"steps": steps, "batch": 32, "log_every": 100, "save_every": 10**6, "val_every": 10**6}
    data = {"shards": [str(dataset.folder)]}
    tree = {"phase": "phase1", "name": name, "seed": seed, "data": data, "loss": loss, "train": train, **JOB}
    return Phase1Job.model_validate(tree)


def test_rows(run: Path, dataset: Dataset) -> tuple[Hidden, np.ndarray]:
    """The test windows with what this run's masks hide of them, and the network's guess."""
    test = dataset.ids("test")
    return network_fill(run, dataset.signals(test, padded_width(dataset.voxels, PATCH)), test)


def baselines(run: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Scores of the test windows under this run's masks, by the mean and by components."""
    width, subject = padded_width(dataset.voxels, PATCH), dataset.table.subject
    train, val, test = (dataset.ids(split) for split in ("train", "val", "test"))
    rows, _ = test_rows(run, dataset)
    choose, _ = network_fill(run, dataset.signals(val, width), val)
    found = component_scores(dataset.signals(train, width), choose, rows)
    for who in np.unique(subject):  # each subject's own components: networks and noise are mixed in its own way
        own = component_scores(
            dataset.signals(train[subject[train] == who], width), choose.of(subject[val] == who),
            rows.of(subject[test] == who),
        )  # fmt: skip
        for name in ("pca", "pca, shrunk"):
            found.setdefault(f"{name}, by subject", np.zeros(len(test)))[subject[test] == who] = own[name]
    return found


def standardised(features_NF: np.ndarray, train_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """z-scores with the statistics of each group's training samples."""
    out_NF = np.empty_like(features_NF)
    for group in np.unique(group_N):
        own = group_N == group
        out_NF[own] = Standard.of(features_NF[own & train_N])(features_NF[own])
    return out_NF


def retrieve(features_NF: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Retrieval and leakage on the test film, from features of all samples of the set."""
    table, told = dataset.table, {}
    train_N, test = table.split == 0, dataset.ids("test")
    films = np.flatnonzero(table.split != 0)  # two runs of everyone, none trained on
    for name, group_N in (("over all", np.zeros(len(table.split), int)), ("by subject", table.subject)):
        z_NF = standardised(features_NF, train_N, group_N)
        shown = z_NF[test], table.subject[test], table.stimulus[test]
        score, strict = stimulus_retrieval(*shown), stimulus_retrieval(*shown, own_subject=True)
        near = nearest_subject(z_NF[films], table.subject[films], table.run[films])
        told[name] = {"hit": score.hit, "scene": shown[2][score.row], "chance": score.expected}
        told[name] |= {"with_own_subject": strict.value, "subject_nearest": near.value, "subject_chance": near.expected}
    return told


def self_leak(guess_nV: np.ndarray, rows: Hidden, subject_n: np.ndarray) -> dict[str, float | None]:
    """What the network's predictions of test signals are mistaken for; None where nothing is."""
    mixed = confusions(guess_nV, rows.signal, subject_n, temperature=0.1)
    told = {"own_top1": mixed.found.value, "own_top1_within": mixed.found_within.value, "leak": mixed.leak}
    told |= {"stays": mixed.stays, "stays_chance": mixed.stays_chance}
    return {name: None if np.isnan(value) else round(float(value), 4) for name, value in told.items()}


def study(dataset: Dataset, work: Path, seeds: list[int], steps: int) -> dict[str, Any]:
    """Everything measured, by seed and method."""
    from cadiff.train import train

    ids, filled, found, leaks = np.arange(len(dataset)), {}, {}, {}
    signals_NV = dataset.signals(ids, dataset.voxels)
    found["voxels"] = {"-": retrieve(signals_NV, dataset)}
    found["pca"] = {"-": retrieve(Components.of(signals_NV[dataset.table.split == 0], WIDTH)(signals_NV), dataset)}
    for seed in seeds:
        for loss, weights in LOSSES.items():
            run, began = work / f"{list(LOSSES).index(loss)}-{seed}", time.perf_counter()
            told = train(job_of(dataset, run.name, weights, seed, steps), run, Place())
            encoders = {loss: load_encoder(run)}
            if loss == "rebuild":
                encoders["untrained"] = untrained_encoder(run, seed)
            for name, encoder in encoders.items():
                for pool, values in encoder.features(dataset, ids).items():
                    found.setdefault(f"{name}, {pool}", {})[str(seed)] = retrieve(values, dataset)
            rows, guess = test_rows(run, dataset)
            scores = {loss: rows.score(guess)}
            if loss == "rebuild":
                scores |= baselines(run, dataset)
            filled |= {f"{name}/{seed}": values for name, values in scores.items()}
            leaks[f"{loss}/{seed}"] = self_leak(guess, rows, dataset.table.subject[dataset.ids("test")])
            said = {name: round(float(values.mean()), 3) for name, values in scores.items()}
            print(f"{loss}/{seed}: {time.perf_counter() - began:.0f} s, loss {told['loss_last']:.3f}, {said}, "
                  f"{leaks[f'{loss}/{seed}']}", flush=True)  # fmt: skip
    return {"filled": filled, "found": found, "leaks": leaks}


def intervals(table: dict[str, np.ndarray], base: str) -> dict[str, Any]:
    """Mean of each column of equally many units with its interval, and the paired difference to ``base``."""
    names, score_UM = list(table), np.stack(list(table.values()), 1)
    means, at = resampled_means(score_UM, seed=1), list(table).index(base)
    return {
        name: {
            "value": list(interval_of(score_UM[:, i].mean(), means[:, i])),
            f"minus_{base}": list(interval_of((score_UM[:, i] - score_UM[:, at]).mean(), means[:, i] - means[:, at])),
        }
        for i, name in enumerate(names)
    }


def by_unit(values: list[np.ndarray], unit_N: np.ndarray) -> np.ndarray:
    """Means over seeds and over the samples of each unit, in the order of the units."""
    mean_N = np.mean(values, axis=0)
    return np.array([mean_N[unit_N == unit].mean() for unit in np.unique(unit_N)])


def summary(told: dict[str, Any], dataset: Dataset, seeds: list[int]) -> dict[str, Any]:
    start_N = dataset.table.start[dataset.ids("test")]
    names = dict.fromkeys(name.rpartition("/")[0] for name in told["filled"])
    filled = {name: by_unit([told["filled"][f"{name}/{seed}"] for seed in seeds], start_N) for name in names}
    out: dict[str, Any] = {"reconstruction": intervals(filled, "pca, shrunk"), "retrieval": {}, "leaks": told["leaks"]}
    for space in ("over all", "by subject"):
        first = told["found"]["voxels"]["-"][space]
        hits = {
            name: by_unit([found[space]["hit"] for found in by_seed.values()], first["scene"])
            for name, by_seed in told["found"].items()
        }
        part = {"chance": first["chance"]}
        for pool in ("mean", "cls", "patches"):
            chosen = {name: hit for name, hit in hits.items() if name in ("voxels", "pca") or name.endswith(pool)}
            part |= intervals(chosen, f"rebuild, {pool}")
        for name, by_seed in told["found"].items():
            for key in ("with_own_subject", "subject_nearest", "subject_chance"):
                part[name][key] = float(np.mean([found[space][key] for found in by_seed.values()]))
            part[name]["seeds"] = [round(float(found[space]["hit"].mean()), 4) for found in by_seed.values()]
        out["retrieval"][space] = part
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps of each pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--work", type=Path, help="keep set and runs there; a study that was cut short goes on")
    parser.add_argument("--quick", action="store_true", help="3 subjects, 1 seed, 5 steps: to see that it runs")
    args = parser.parse_args()
    logging.getLogger("cadiff").setLevel(logging.WARNING)
    os.environ.setdefault("MASTER_PORT", str(free_port()))  # two studies at once would want the same one
    torch.set_num_threads(min(2, torch.get_num_threads()))
    subjects, frames, seeds, steps = args.subjects, 240, list(range(1, args.seeds + 1)), args.steps
    if args.quick:
        subjects, frames, seeds, steps = 3, 160, [1], 5
    began = time.perf_counter()
    with contextlib.nullcontext(args.work) if args.work else tempfile.TemporaryDirectory(prefix="cadiff-") as work:
        dataset = make_set(Path(work), subjects, frames, seed=2022)
        counts = {split: len(dataset.ids(split)) for split in ("train", "val", "test")}
        print(f"{counts}, {dataset.voxels} voxels, {time.perf_counter() - began:.0f} s", flush=True)
        told = summary(study(dataset, Path(work), seeds, steps), dataset, seeds)
    record = {
        "study": "simulator",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "data": {"subjects": subjects, "area": AREA, "frames": frames, "samples": counts, "split": SPLIT_OF},
        "steps": steps,
        "seeds": seeds,
        "losses": LOSSES,
        "job": JOB,
        **told,
        "seconds": round(time.perf_counter() - began),
    }
    if args.json:
        write_json(args.json, record)
    print(json.dumps({name: record[name] for name in ("reconstruction", "retrieval")}, indent=1))


if __name__ == "__main__":
    main()
