"""A simulated new subject joins a finished phase 2: how much of full training does a voxel map from 10 % of it reach?

    OMP_NUM_THREADS=2 python benchmarks/study_new_subject.py --json result.json

Data: the simulator's GOD files (docs/simulator.md): subjects with their own voxels in no common order, who see the same
scenes. Phase 2 is trained on all but the last of them with linear voxel adapters, then the last one joins:

- "full": everything is trained on all of its training stimuli, from the known subjects' network and a ridge start
- "full, fresh": the same from fresh weights, as if there were no other subjects
- "adapted": only its map is trained, on a part of the stimuli; "ridge alone": the map as it begins, all but untrained
- "adapted, no ridge": only its map is trained, which begins as wrap padding
- "part, fresh": everything is trained on that part, from fresh weights
- "voxels, all" and "voxels, part": no network at all, the readout is fitted on the new subject's own signals

Retrieval (cadiff/retrieval.py) of the test stimuli among themselves, from all fMRI tokens: a ridge readout of them
into the pictures at 8 x 8 pixels, the same targets for all, fitted on the new subject's training samples that
the condition may see; "shared" also fits it on the known subjects' samples through the frozen network. Intervals are
percentile bootstraps over test stimuli of the mean over seeds; shares are (score - chance) / ("full"'s score - chance).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.config import Phase2Job
from cadiff.distributed import Place
from cadiff.files import write_json
from cadiff.frozen import load_encoder
from cadiff.launch.machine import machine
from cadiff.launch.start import free_port
from cadiff.retrieval import Retrieval, retrieve
from cadiff.sample import held_out
from cadiff.shards.dataset import Dataset
from cadiff.shards.god import pack_god
from cadiff.shards.mixture import choose
from cadiff.shards.portion import part_of_stimuli
from cadiff.shards.synthetic.brain import BrainSpec, simulate
from cadiff.statistics import interval_of, resampled_means
from cadiff.train import train

IMAGE_SIZE, THUMB = 32, 8
SIZES = {
    "model": {
        "patch": 16, "width": 64, "depth": 3, "heads": 4, "mlp_ratio": 1.0,
        "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4,
    },
    "image": {
        "patch": 8, "width": 64, "depth": 2, "heads": 4, "mlp_width": 128, "decoder_width": 32, "decoder_depth": 1,
        "decoder_heads": 4, "decoder_mlp_width": 64, "train_encoder": True,
    },
    "cross": {"layers": 2},
    "engine": {"zero": 0, "precision": "fp32"},
    "track": {"wandb": "off"},
}  # fmt: skip
LINEAR = {"kind": "linear"}
ALONE = {**LINEAR, "only": True}


def job_of(dataset: Dataset, name: str, seed: int, steps: int, subjects: list[str], part: float, lr: float, **sections):
    train_section = {"steps": steps, "batch": 32, "log_every": 50, "save_every": 10**6, "val_every": 10**6}
    data = {"shards": [str(dataset.folder)], "image_size": IMAGE_SIZE, "subjects": subjects, "stimuli_fraction": part}
    optim = {"lr": lr, "warmup_steps": min(20, steps // 2), "betas": [0.9, 0.95]}
    tree = {"phase": "phase2", "name": name, "seed": seed, "data": data, "train": train_section, "optim": optim}
    return Phase2Job.model_validate({**tree, **SIZES, **sections})


def thumbnails(dataset: Dataset) -> np.ndarray:
    """What a readout leads to, float32 (stimuli, values)."""
    pictures, side = dataset.images(np.arange(len(dataset.stimuli)), IMAGE_SIZE).astype(np.float32), IMAGE_SIZE // THUMB
    return pictures.reshape(len(pictures), 3, THUMB, side, THUMB, side).mean((3, 5)).reshape(len(pictures), -1)


def of_voxels(dataset: Dataset, new: str, ids: np.ndarray, seed: int) -> Retrieval:
    """Retrieval with a readout of signals, fitted on these samples of the new subject."""
    test_N, thumbs, stimulus_N = held_out(dataset, [new]), thumbnails(dataset), dataset.table.stimulus.astype(np.int64)
    signal_NV = dataset.signals(np.arange(len(dataset)), dataset.voxels)
    fit, test = ((signal_NV[rows], thumbs[stimulus_N[rows]], stimulus_N[rows]) for rows in (ids, test_N))
    return retrieve(*fit, *test, seed=seed)


def readout(fitted: dict[Path, np.ndarray], export: Path, dataset: Dataset, new: str, seed: int) -> Retrieval:
    """Retrieval of the new subject's test stimuli, with a readout fitted on these samples through these exports."""
    test_N = held_out(dataset, [new])
    features = [load_encoder(run).features(dataset, ids)["patches"] for run, ids in fitted.items()]
    stimulus = [dataset.table.stimulus[ids].astype(np.int64) for ids in (np.concatenate([*fitted.values()]), test_N)]
    thumbs = thumbnails(dataset)
    asked = load_encoder(export).features(dataset, test_N)["patches"], thumbs[stimulus[1]], stimulus[1]
    return retrieve(np.concatenate(features), thumbs[stimulus[0]], stimulus[0], *asked, seed=seed)


def one_seed(dataset: Dataset, work: Path, seed: int, steps: int, part: float) -> dict[str, Retrieval]:
    *known, new = dataset.subjects
    base = work / f"known-{seed}"
    train(job_of(dataset, base.name, seed, steps, known, 1.0, 2e-3, adapter=LINEAR), base, Place())
    tuned, ridge = {"init": {"tuned": str(base)}}, {"init": "ridge"}
    runs = {
        "full": (steps, 1.0, 1e-3, {"adapter": LINEAR | ridge, **tuned}),
        "full, fresh": (steps, 1.0, 2e-3, {"adapter": LINEAR}),
        "adapted": (steps // 3, part, 3e-4, {"adapter": ALONE | ridge, **tuned}),
        "ridge alone": (1, part, 1e-12, {"adapter": ALONE | ridge, **tuned}),
        "adapted, no ridge": (steps // 3, part, 3e-3, {"adapter": ALONE, **tuned}),
        "part, fresh": (steps, part, 2e-3, {"adapter": LINEAR}),
    }
    mine = choose([dataset], "train", [new], True, 1)
    samples = {"all": mine.ids, "part": part_of_stimuli([dataset], mine, part, seed, 1).ids}
    found = {f"voxels, {name}": of_voxels(dataset, new, ids, seed) for name, ids in samples.items()}
    for name, (length, share, lr, sections) in runs.items():
        began, run = time.perf_counter(), work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        train(job_of(dataset, run.name, seed, length, [new], share, lr, **sections), run, Place())
        chosen = samples["all" if share == 1 else "part"]
        said = {name: readout({run: chosen}, run, dataset, new, seed)}
        if sections["adapter"].get("only"):
            # The known subjects' maps are in the known run's export, the network is the same there.
            both = {base: dataset.ids("train", known), run: chosen}
            said[f"{name}, shared"] = readout(both, run, dataset, new, seed)
        found |= said
        for key, value in said.items():
            print(f"seed {seed}, {key}: top1 {value.top1:.3f}, top5 {value.top5:.3f}, two-way {value.two_way:.3f} "
                  f"({time.perf_counter() - began:.0f} s)", flush=True)  # fmt: skip
    return found


def summary(by_seed: dict[int, dict[str, Retrieval]]) -> dict[str, Any]:
    """Each condition's scores over seeds with their intervals, and its share of "full" above chance."""
    first, told = next(iter(by_seed.values())), {}
    for score in ("top1", "top5", "two_way"):
        names, chance = list(first), first["full"].chance[score]
        rows_SK = np.stack([np.mean([found[name].rows[score] for found in by_seed.values()], 0) for name in names], 1)
        means_RK, full = resampled_means(rows_SK, seed=1), names.index("full")
        for k, name in enumerate(names):
            value = interval_of(rows_SK[:, k].mean(), means_RK[:, k])
            share = (rows_SK[:, k].mean() - chance) / (rows_SK[:, full].mean() - chance)
            shares = interval_of(share, (means_RK[:, k] - chance) / (means_RK[:, full] - chance))
            each = [float(found[name].rows[score].mean()) for found in by_seed.values()]
            told.setdefault(name, {})[score] = {
                "value": list(value), "chance": chance, "share_of_full": list(shares), "seeds": each
            }  # fmt: skip
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--voxels", type=int, default=400)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=60)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--part", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--photos", default="", help="Folder of photos to show instead of rendered scenes.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    by_seed = {}
    with tempfile.TemporaryDirectory(prefix="cadiff-study-") as folder:
        for seed in options.seeds:
            work = Path(folder) / str(seed)
            spec = BrainSpec(
                seed=seed, subjects=options.subjects, voxels=options.voxels, train_images=options.images,
                test_images=options.test_images, photos=options.photos,
            )  # fmt: skip
            pack_god(simulate(work / "raw", spec, ("god",))["god"], work / "set", workers=1)
            by_seed[seed] = one_seed(Dataset(work / "set"), work, seed, options.steps, options.part)
    told = summary(by_seed)
    for name, scores in told.items():
        for score, row in scores.items():
            value, share = ("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("value", "share_of_full"))
            print(f"{name:28} {score:8} {value}, share of full {share}")
    if options.json:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        write_json(options.json, {
            "study": "new_subject", "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
            "options": asked, "job": SIZES, "conditions": json.loads(json.dumps(told)),
        })  # fmt: skip


if __name__ == "__main__":
    main()
