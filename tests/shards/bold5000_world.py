"""A tiny BOLD5000 that the tests of its packer share."""

from pathlib import Path

import numpy as np

TESTED = ["COCO_train2014_000000000001.jpg", "church1.jpg", "never_shown.jpg"]
TRAINED = [f"n0144353{i % 3}_{i}.JPEG" for i in range(9)] + ["attic4.jpg"]


def build(root: Path) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """CSI1: 16 trials in 2 sessions, CSI4: 12; regions of 3 to 12 voxels in both hemispheres.

    Returns the stimuli of each subject's trials, and the pictures.
    """
    rng = np.random.default_rng(0)
    betas, stimuli = root / "BOLD5000_GLMsingle_ROI_betas/py", root / "BOLD5000_Stimuli"
    betas.mkdir(parents=True)
    shown = {"CSI1": TRAINED[:5] + TESTED[:1] + TRAINED[5:] + TESTED[:2] * 2 + TRAINED[:1]}
    shown["CSI4"] = TRAINED[:9] + TESTED[:1] * 3
    for subject, ids in shown.items():
        for session in (0, 1):
            folder = stimuli / "Stimuli_Presentation_Lists" / subject / f"{subject}_sess0{session + 1}"
            folder.mkdir(parents=True)
            part = ids[8 * session : 8 * session + 8] if session == 0 else ids[8:]
            lines = [f"rep_{name}" if name in TESTED else name for name in part]
            (folder / f"{subject}_sess0{session + 1}_run01.txt").write_text("\n".join(lines) + "\n")
        for voxels, roi in enumerate(("EarlyVis", "LOC", "OPA", "PPA", "RSC"), 3):
            for side, count in (("LH", voxels), ("RH", voxels + 1)):
                name = f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{side}{roi}.npy"
                np.save(betas / name, rng.normal(voxels, 2, (len(ids), count + (subject == "CSI4"))))
    pictures = {name: rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for name in TESTED + TRAINED}
    (stimuli / "Scene_Stimuli/Presented_Stimuli").mkdir(parents=True)
    np.save(stimuli / "Scene_Stimuli/Presented_Stimuli/img_dict.npy", pictures, allow_pickle=True)
    (stimuli / "Scene_Stimuli/repeated_stimuli_113_list.txt").write_text("\n".join(TESTED) + "\n")
    return shown, pictures
