"""Generic Object Decoding as the paper's code expects it: one npz per subject, one of pictures, and label tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.files import write_json, write_text
from cadiff.shards.synthetic.encoding import Population, grow, respond
from cadiff.shards.synthetic.features import join, see
from cadiff.shards.synthetic.gallery import Gallery, Stimuli
from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.noise import draw_ncsnr, noise_ceiling, trial_noise
from cadiff.shards.synthetic.truth import save_arrays, save_truth

# Share of the visual cortex (VC) each area takes, close to GOD's subjects.
SHARES = {"V1": 0.22, "V2": 0.20, "V3": 0.17, "V4": 0.16, "LOC": 0.13, "FFA": 0.05, "PPA": 0.07}
LOWER = ("V1", "V2", "V3")
HIGHER = ("LOC", "FFA", "PPA")
OUTSIDE = 0.05  # voxels in no area, as a share of VC: they carry noise only


@dataclass(frozen=True)
class GodPlan:
    """What to write. ``voxels`` counts VC; ``snr`` is the median ncsnr of a single trial."""

    seed: int
    subjects: int
    train_images: int
    test_images: int
    test_repeats: int
    voxels: int
    snr: float


def write_god(root: Path, plan: GodPlan, gallery: Gallery, tick: Callable[[], None]) -> list[Path]:
    """Write ``root/god``; ``tick`` is called after the pictures and after each subject. Returns the paths."""
    folder = root / "god"
    train = gallery.training("god/train", plan.train_images)
    test = gallery.held_out("god/test", gallery.limit(plan.test_images))
    pictures = {"train_images": train.images, "test_images": test.images}
    paths = [save_arrays(folder / "images_256.npz", pictures), *_write_labels(folder, gallery, train, test)]
    features = join(see(train.images, train.labels), see(test.images, test.labels))
    tick()
    for number in range(1, plan.subjects + 1):
        subject = f"sbj_{number}"
        areas = subject_areas(plan, subject, gallery.kinds)
        response = np.concatenate([respond(area, features, len(train.labels)) for area in areas], axis=1)
        arrays, truth = record(plan, subject, response[: len(train.labels)], response[len(train.labels) :])
        paths.append(save_arrays(folder / f"{subject}.npz", arrays | roi_masks(areas, arrays["arr_0"].shape[1])))
        truth |= {
            "rf_x": np.concatenate([area.x_V for area in areas]),
            "rf_y": np.concatenate([area.y_V for area in areas]),
            "rf_size": np.concatenate([area.size_V for area in areas]),
            "test_labels": test.labels,
        }
        paths.append(save_truth(root, "god", subject, truth))
        tick()
    return paths


def subject_areas(plan: GodPlan, subject: str, kinds: tuple[str, ...]) -> list[Population]:
    """The seven areas of one subject. Subjects differ by some per cent in the size of each area."""
    rng = generator(plan.seed, "god/sizes", subject)
    counts = {name: max(2, round(plan.voxels * share * rng.uniform(0.95, 1.05))) for name, share in SHARES.items()}
    return [
        grow(plan.seed, f"god/{subject}", name, count - count // 2, count // 2, kinds) for name, count in counts.items()
    ]


def roi_masks(areas: list[Population], voxels: int) -> dict[str, np.ndarray]:
    """Boolean masks (voxels,) under the names of GOD: the seven areas, LVC, HVC and VC."""
    masks, start = {}, 0
    for area in areas:
        masks[area.area] = np.zeros(voxels, dtype=bool)
        masks[area.area][start : start + len(area)] = True
        start += len(area)
    masks["LVC"] = np.any([masks[name] for name in LOWER], axis=0)
    masks["HVC"] = np.any([masks[name] for name in HIGHER], axis=0)
    masks["VC"] = masks["LVC"] | masks["V4"] | masks["HVC"]
    return masks


def record(
    plan: GodPlan, subject: str, train_NV: np.ndarray, test_NV: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scan one subject: every training picture once, every test picture ``test_repeats`` times, in random order.

    Returns the arrays ``arr_0`` to ``arr_6`` of the subject's file, and the truth behind them.
    """
    rng = generator(plan.seed, "god/scan", subject)
    outside = round(plan.voxels * OUTSIDE)
    voxels = train_NV.shape[1] + outside
    # Noise has unit variance and the signal ncsnr squared; voxels outside the areas have no signal.
    ncsnr_V = draw_ncsnr(rng, voxels, plan.snr)
    ncsnr_V[voxels - outside :] = 0
    noiseless = [np.pad(part, ((0, 0), (0, outside))) * ncsnr_V for part in (train_NV, test_NV)]
    elsewhere = rng.standard_normal((len(train_NV), outside), dtype=np.float32)
    patterns_NV = np.concatenate([train_NV, elsewhere], axis=1)
    order = rng.permutation(len(train_NV))
    trials = rng.permutation(np.repeat(np.arange(len(test_NV)), plan.test_repeats))
    training = noiseless[0][order] + trial_noise(rng, rng, len(order), patterns_NV)
    testing = noiseless[1][trials] + trial_noise(rng, rng, len(trials), patterns_NV)
    average = np.stack([testing[trials == image].mean(axis=0) for image in range(len(test_NV))])
    arrays = {
        "arr_0": training,
        "arr_1": testing,
        "arr_2": average,
        "arr_3": order,
        "arr_4": trials,
        "arr_5": noise_ceiling(ncsnr_V, plan.test_repeats),
        "arr_6": ncsnr_V,
    }
    return arrays, {"test_responses": noiseless[1], "ncsnr": ncsnr_V, "noise_ceiling_single": noise_ceiling(ncsnr_V, 1)}


def _write_labels(folder: Path, gallery: Gallery, train: Stimuli, test: Stimuli) -> list[Path]:
    """The class index and the two label tables; the number after the point is the picture's own."""
    index = {str(i): [*wnids, name] for i, (wnids, name) in enumerate(zip(gallery.wnids, gallery.classes))}
    write_json(folder / "imagenet_class_index.json", index)
    paths = [folder / "imagenet_class_index.json"]
    for name, stimuli, first in (("training", train, 1), ("testing", test, len(train.wnids) + 1)):
        lines = [
            f'{int(wnid[1:])}.{number:06d},"{wnid}_{number}.JPEG"\n' for number, wnid in enumerate(stimuli.wnids, first)
        ]
        paths.append(folder / f"imagenet_{name}_label.csv")
        write_text(paths[-1], "".join(lines))
    return paths
