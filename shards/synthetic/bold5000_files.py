"""BOLD5000 release 2.0 as shipped: GLMsingle betas per ROI, the picture dictionary and the presentation lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.files import whole_file, write_text
from cadiff.shards.synthetic.encoding import grow, respond
from cadiff.shards.synthetic.features import Features, join, see
from cadiff.shards.synthetic.gallery import Gallery, Stimuli
from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.noise import draw_ncsnr, noise_ceiling, trial_noise
from cadiff.shards.synthetic.truth import save_truth

BETAS = "BOLD5000_GLMsingle_ROI_betas/py"
STIMULI = "BOLD5000_Stimuli"
SHARES = {"EarlyVis": 0.30, "LOC": 0.22, "OPA": 0.16, "PPA": 0.20, "RSC": 0.12}  # of the voxels, as in CSI1
PER_RUN = 37  # pictures in a run
RUNS_PER_SESSION = 10
SHOWINGS = 4  # of each repeated picture


@dataclass(frozen=True)
class BoldPlan:
    """What to write: ``trials`` in all, of which ``repeated`` pictures take four each. ``snr`` as in GodPlan."""

    seed: int
    subjects: int
    trials: int
    repeated: int
    voxels: int
    snr: float


def write_bold5000(root: Path, plan: BoldPlan, gallery: Gallery, tick: Callable[[], None]) -> list[Path]:
    """Write ``root/bold5000``; ``tick`` is called after the pictures and after each subject. Returns the paths."""
    folder = root / "bold5000"
    repeated = gallery.held_out("bold5000/repeated", gallery.limit(plan.repeated))
    once = gallery.training("bold5000/once", plan.trials - SHOWINGS * len(repeated.labels))
    names = stimulus_names(gallery, once, repeated)
    features = join(see(once.images, once.labels), see(repeated.images, repeated.labels))
    pictures = dict(zip(names, [*once.images, *repeated.images]))
    paths = [
        _save(folder / STIMULI / "Scene_Stimuli/Presented_Stimuli/img_dict.npy", np.array(pictures, dtype=object)),
        folder / STIMULI / "Scene_Stimuli/repeated_stimuli_113_list.txt",
    ]
    write_text(paths[-1], "".join(f"{name}\n" for name in names[len(once.labels) :]))
    tick()
    for number in range(1, plan.subjects + 1):
        subject = f"CSI{number}"
        order = generator(plan.seed, "bold5000/order", subject).permutation(
            np.concatenate([np.arange(len(once.labels)), np.repeat(np.arange(len(once.labels), len(names)), SHOWINGS)])
        )
        paths += _write_lists(folder, subject, [names[picture] for picture in order])
        paths += _write_betas(root, plan, subject, gallery, features, order, len(once.labels))
        tick()
    return paths


def stimulus_names(gallery: Gallery, once: Stimuli, repeated: Stimuli) -> list[str]:
    """File names in the three styles of BOLD5000: a third each ImageNet, COCO and scene pictures."""
    names = []
    labels = [*once.labels, *repeated.labels]
    for number, (label, wnid) in enumerate(zip(labels, [*once.wnids, *repeated.wnids])):
        scene = f"{gallery.classes[label].replace(' ', '')}{number}.jpg"
        names.append((f"{wnid}_{number}.JPEG", f"COCO_train2014_{number:012d}.jpg", scene)[number % 3])
    return names


def presented(names: list[str]) -> list[str]:
    """Lines of the presentation lists: ``rep_`` stands before a name from its second showing on."""
    seen: set[str] = set()
    lines = []
    for name in names:
        lines.append(f"rep_{name}" if name in seen else name)
        seen.add(name)
    return lines


def _write_lists(folder: Path, subject: str, names: list[str]) -> list[Path]:
    lines, paths = presented(names), []
    for run, start in enumerate(range(0, len(lines), PER_RUN)):
        session = f"{subject}_sess{run // RUNS_PER_SESSION + 1:02d}"
        file = f"{session}_run{run % RUNS_PER_SESSION + 1:02d}.txt"
        paths.append(folder / STIMULI / "Stimuli_Presentation_Lists" / subject / session / file)
        write_text(paths[-1], "".join(f"{line}\n" for line in lines[start : start + PER_RUN]))
    return paths


def _write_betas(
    root: Path, plan: BoldPlan, subject: str, gallery: Gallery, features: Features, order: np.ndarray, once: int
) -> list[Path]:
    """Betas float32 (trials, voxels) of ten ROIs, LH and RH of five areas; signal ncsnr, noise one."""
    paths, truth = [], {"order": order}
    for area, share in SHARES.items():
        for side in ("LH", "RH"):
            rng = generator(plan.seed, "bold5000/betas", subject, side, area)
            count = max(2, round(plan.voxels * share / 2))
            halves = (count, 0) if side == "LH" else (0, count)
            voxels = grow(plan.seed, f"bold5000/{subject}/{side}", area, *halves, gallery.kinds)
            ncsnr_V = draw_ncsnr(rng, count, plan.snr)
            response_NV = respond(voxels, features, once)
            noiseless_NV = response_NV * ncsnr_V
            mind = generator(plan.seed, "bold5000/mind", subject)
            betas = noiseless_NV[order] + trial_noise(mind, rng, len(order), response_NV[:once])
            name = f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{side}{area}.npy"
            paths.append(_save(root / "bold5000" / BETAS / name, betas))
            truth |= {
                f"{side}{area}_repeated_responses": noiseless_NV[once:],
                f"{side}{area}_ncsnr": ncsnr_V,
                f"{side}{area}_noise_ceiling_single": noise_ceiling(ncsnr_V, 1),
                f"{side}{area}_rf_x": voxels.x_V,
                f"{side}{area}_rf_y": voxels.y_V,
            }
    return [*paths, save_truth(root, "bold5000", subject, truth)]


def _save(path: Path, array: np.ndarray) -> Path:
    """Write an npy whole. The picture dictionary is an object array and so a pickle, as BOLD5000's own file is."""
    with whole_file(path) as beside, open(beside, "wb") as handle:
        np.save(handle, array, allow_pickle=True)
    return path
