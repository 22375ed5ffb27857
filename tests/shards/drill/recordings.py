"""Small raw recordings of every kind that can be packed, and how each is packed."""

import csv
from pathlib import Path

import numpy as np
from things_world import build as build_things

from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.god import pack_god
from cadiff.shards.hcp import pack_hcp
from cadiff.shards.images import pack_images
from cadiff.shards.nsd import pack_nsd
from cadiff.shards.pictures import encode_png
from cadiff.shards.synthetic.hcp_files import save_dtseries
from cadiff.shards.table import pack_table
from cadiff.shards.things import pack_things

GRAYORDINATES = 91_282
PACKERS = {
    "god": lambda root, out: pack_god(root, out, test="averaged+trials"),
    "bold5000": lambda root, out: pack_bold5000(root, out, val_fraction=0.2),
    "things": lambda root, out: pack_things(root, out, images=root / "object_images", val_fraction=0.2),
    "nsd": lambda root, out: pack_nsd(root, out, subjects=["subj01"]),
    "hcp": lambda root, out: pack_hcp(root, out, roi="V1", val_fraction=0.3, workers=1),
    "table": lambda root, out: pack_table(root / "study.csv", out),
    "images": lambda root, out: pack_images(root, out),
}


def _pixels(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3)).astype(np.uint8)


def write_bold5000(root: Path) -> None:
    """One person, two sessions of 8 trials, two pictures shown three times; five regions in both hemispheres."""
    rng, tested = np.random.default_rng(1), ["church1.jpg", "COCO_train2014_000000000001.jpg"]
    trained = [f"n0144353{number % 3}_{number}.JPEG" for number in range(10)]
    shown = [*trained[:5], *tested, tested[0], *trained[5:], *tested, tested[1]]
    betas, stimuli = root / "BOLD5000_GLMsingle_ROI_betas/py", root / "BOLD5000_Stimuli"
    betas.mkdir(parents=True)
    for session in (0, 1):
        path = stimuli / f"Stimuli_Presentation_Lists/CSI1/CSI1_sess0{session}/run.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(shown[8 * session : 8 * session + 8]) + "\n")
    for voxels, roi in enumerate(("EarlyVis", "LOC", "OPA", "PPA", "RSC"), 3):
        for side in ("LH", "RH"):
            name = f"CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{side}{roi}.npy"
            np.save(betas / name, rng.normal(voxels, 2, (16, voxels)))
    presented = stimuli / "Scene_Stimuli/Presented_Stimuli"
    presented.mkdir(parents=True)
    pictures = {name: _pixels(rng, 16) for name in tested + trained}
    np.save(presented / "img_dict.npy", pictures, allow_pickle=True)
    (stimuli / "Scene_Stimuli/repeated_stimuli_113_list.txt").write_text("\n".join(tested) + "\n")


def write_hcp(root: Path) -> None:
    """Three people, one run of 20 frames each."""
    rng = np.random.default_rng(2)
    for subject in ("100001", "100002", "100003"):
        series = rng.normal(1e4, 50, (GRAYORDINATES, 20)).astype(np.float32)
        folder = root / subject / "MNINonLinear/Results/rfMRI_REST1_LR"
        folder.mkdir(parents=True)
        save_dtseries(folder / "rfMRI_REST1_LR_Atlas.dtseries.nii", series, 0.72)


def write_table(root: Path) -> None:
    """A .npy with events and a picture, an .npz, a NIfTI series in a mask, and one that is compressed."""
    import nibabel as nib

    rng = np.random.default_rng(3)
    root.mkdir()
    np.save(root / "run1.npy", rng.normal(5, 2, (12, 6)).astype(np.float32))
    np.savez(root / "run2.npz", bold=rng.normal(size=(8, 6)))
    grid = np.zeros((4, 4, 3), np.uint8)
    grid[1:3, 1:3, :2] = 1
    for name, array in {"mask.nii": grid, "run3.nii": _series(rng), "run4.nii.gz": _series(rng)}.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), root / name)
    (root / "events.tsv").write_text("onset\tduration\ttrial_type\tstim_file\n0\t8\tface\tn/a\n12\t6\thouse\tn/a\n")
    (root / "attributes.txt").write_text("\n".join(["face 0"] * 4 + ["house 1"] * 4) + "\n")
    (root / "f.png").write_bytes(encode_png(_pixels(rng, 20)))
    rows = [
        {"file": "run1.npy", "subject": "s1", "run": "1", "events": "events.tsv", "tr_s": "2"},
        {"file": "run2.npz", "key": "bold", "subject": "s1", "run": "2", "attributes": "attributes.txt"},
        {"file": "run3.nii", "mask": "mask.nii", "subject": "s2", "run": "1", "image": "f.png"},
        {"file": "run4.nii.gz", "mask": "mask.nii", "subject": "s2", "run": "2", "split": "test"},
    ]
    with open(root / "study.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def _series(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(100, 5, (4, 4, 3, 8)).astype(np.float32)


def write_images(root: Path) -> None:
    """Ten pictures, PNG and JPEG and one that says it is, with their labels."""
    from PIL import Image

    rng = np.random.default_rng(4)
    root.mkdir()
    names = [f"{number}.{'png' if number % 2 else 'jpg'}" for number in range(10)]
    for name in names:
        Image.fromarray(_pixels(rng, 20)).save(root / name, "BMP" if name == "8.jpg" else None)
    (root / "labels.csv").write_text("file,class_name\n" + "".join(f"{name},c{name[0]}\n" for name in names))


WRITERS = {
    "bold5000": write_bold5000,
    "hcp": write_hcp,
    "table": write_table,
    "images": write_images,
    "things": build_things,
}
