"""Tiny raw files for the packers, and the real ones when they lie beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real public files; tests that need it are skipped where it is not."""
    if not (SHARED / "realdata").is_dir():
        pytest.skip("needs ../shared/realdata")
    return SHARED / "realdata"


@pytest.fixture(scope="session")
def golden():
    """Read stored outputs of the paper's code: name -> arrays."""

    def read(name: str) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        path = SHARED / "golden" / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"needs ../shared/golden/{name}.safetensors")
        return load_file(path)

    return read


@pytest.fixture(scope="session")
def write_dtseries():
    """Write a cortical dense time series of HCP's 59,412 vertices: (path, frames (T, 59412), tr_s) -> path."""
    import nibabel as nib
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis

    from cadiff.shards.mmp import parcellation

    table = parcellation()
    left = BrainModelAxis.from_surface(table.vertex_C[: table.left], 32492, "CortexLeft")
    right = BrainModelAxis.from_surface(table.vertex_C[table.left :], 32492, "CortexRight")

    def write(path: Path, frames: np.ndarray, tr_s: float = 0.72, axis=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        axes = (SeriesAxis(0, tr_s, len(frames)), left + right if axis is None else axis)
        image = nib.Cifti2Image(frames.astype(np.float32), header=axes)
        image.update_headers()
        nib.save(image, path)
        return path

    write.left, write.right = left, right
    return write


@pytest.fixture(scope="session")
def release(tmp_path_factory, write_dtseries) -> Path:
    """HCP's layout: three subjects, two runs of 45 and 31 frames each; 100001's first run comes in two versions."""
    from cadiff.shards.mmp import roi_columns

    root, rng, v1 = tmp_path_factory.mktemp("hcp"), np.random.default_rng(0), roi_columns("V1")
    for subject in ("100001", "100002", "100003"):
        for run, frames in (("rfMRI_REST1_LR", 45), ("tfMRI_WM_RL", 31)):
            values = np.zeros((frames, 59412), np.float32)
            values[:, v1] = 1e4 + rng.normal(size=(frames, 1)) * 50 + rng.normal(size=(frames, len(v1))) * 50
            values[:, v1[3]] = 9000
            folder = root / subject / "MNINonLinear" / "Results" / run
            write_dtseries(folder / f"{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii", values)
    folder = root / "100001/MNINonLinear/Results/rfMRI_REST1_LR"
    (folder / "rfMRI_REST1_LR_Atlas.dtseries.nii").write_bytes(b"an unclean version that must not be read")
    return root


@pytest.fixture(scope="session")
def god_files(tmp_path_factory) -> Path:
    """Two subjects, 12 training rows (6 pictures twice), 4 test pictures shown 5 times, masks VC, V1 and LOC."""
    folder, rng = tmp_path_factory.mktemp("god") / "npz", np.random.default_rng(0)
    folder.mkdir()
    train = ["1518878.010042", "1518878.012028", "1621127.019020", "1621127.000007", "2129165.000100", "2129165.000200"]
    test = ["1443537.022563", "1943899.024131", "1976957.013223", "2071294.046212"]
    for half, ids in (("training", train), ("testing", test)):
        lines = [f'{i},"n{int(i.split(".")[0]):08d}_x.JPEG"' for i in ids]
        (folder / f"imagenet_{half}_label.csv").write_text("\n".join(lines) + "\n")
    wnids = sorted({f"n{int(i.split('.')[0]):08d}" for i in train + test})
    classes = {str(n): [wnid, f"class {n}"] for n, wnid in enumerate(wnids)}
    (folder / "imagenet_class_index.json").write_text(json.dumps(classes))
    pictures = rng.integers(0, 256, (10, 24, 24, 3)).astype(np.uint8)
    np.savez(folder / "images_256.npz", train_images=pictures[:6], test_images=pictures[6:] / np.float32(255))
    for number, voxels in ((1, 60), (2, 50)):
        masks = {name: np.zeros(voxels, bool) for name in ("VC", "V1", "LOC")}
        masks["VC"][4 : 40 - number], masks["V1"][:10], masks["LOC"][45:] = True, True, True
        shown = rng.permutation(np.repeat(np.arange(6), 2))
        trial = rng.permutation(np.repeat(np.arange(4), 5))
        response = rng.normal(30, 4, (10, voxels))
        trials = response[6:][trial] + rng.normal(size=(20, voxels))
        arrays = {
            "arr_0": response[shown] + rng.normal(size=(12, voxels)),
            "arr_1": trials,
            "arr_2": np.stack([trials[trial == i].mean(0) for i in range(4)]),
            "arr_3": shown,
            "arr_4": trial,
        }
        np.savez(folder / f"sbj_{number}.npz", **arrays, **masks)
    return folder


@pytest.fixture(scope="session")
def nsd_files(tmp_path_factory) -> Path:
    """NSD's layout: two subjects, three sessions of 750 trials, 8 shared pictures, 40 of each one's own, 60 voxels."""
    from cadiff.shards.synthetic.nsd_files import NsdPlan, write_nsd

    root = tmp_path_factory.mktemp("nsd")
    write_nsd(root, NsdPlan())
    return root
