"""Tiny raw files for the packers, and the real ones when they lie beside the checkout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from phases.golden_reader import cases
from remote_world import served
from shared_files import SHARED, read_golden


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real public files; tests that need it are skipped where it is not."""
    if not (SHARED / "realdata").is_dir():
        pytest.skip("needs ../shared/realdata")
    return SHARED / "realdata"


@pytest.fixture(scope="session", params=cases("dataprep"))
def dataprep(request):
    """Stored outputs of the paper's code that prepares data: what the file says of itself, and its arrays."""
    return read_golden(request.param, "np")


@pytest.fixture(scope="session")
def dataprep_widths(dataprep):
    """Voxels of the scans that are stored with what became of them, ascending."""
    return sorted(int(name.split(".")[1]) for name in dataprep[1] if name.startswith("voxts.") and name.endswith(".in"))


@pytest.fixture(scope="session")
def four(write_dtseries, tmp_path_factory):
    """Make copies of a file of four frames of zeros: describing 59,412 places takes nibabel a while."""
    original = write_dtseries(tmp_path_factory.mktemp("cifti") / "four.dtseries.nii", np.zeros((4, 59412)))

    def copy(folder):
        return Path(shutil.copy(original, folder / "d.dtseries.nii"))

    return copy


@pytest.fixture(scope="session")
def release(tmp_path_factory, write_dtseries) -> Path:
    """HCP's layout: three subjects, two runs of 45 and 31 frames each; 100001's first run comes in two versions."""
    from hcp_world import CLEAN, V1

    root, rng = tmp_path_factory.mktemp("hcp"), np.random.default_rng(0)
    for subject in ("100001", "100002", "100003"):
        for run, frames in (("rfMRI_REST1_LR", 45), ("tfMRI_WM_RL", 31)):
            values = np.zeros((frames, 59412), np.float32)
            values[:, V1] = 1e4 + rng.normal(size=(frames, 1)) * 50 + rng.normal(size=(frames, len(V1))) * 50
            values[:, V1[3]] = 9000
            folder = root / subject / "MNINonLinear" / "Results" / run
            write_dtseries(folder / f"{run}{CLEAN}.dtseries.nii", values)
    folder = root / "100001/MNINonLinear/Results/rfMRI_REST1_LR"
    (folder / "rfMRI_REST1_LR_Atlas.dtseries.nii").write_bytes(b"an unclean version that must not be read")
    return root


@pytest.fixture(scope="session")
def packed(release, tmp_path_factory):
    """V1 of that release with one subject in three held out: the summary, and the set."""
    from cadiff.shards.dataset import Dataset
    from cadiff.shards.hcp import pack_hcp

    out, heard = tmp_path_factory.mktemp("out") / "hcp", []
    summary = pack_hcp(release, out, roi="V1", val_fraction=0.3, progress=lambda *a: heard.append(a))
    assert ("packing", 1, 1) in heard
    return summary, Dataset(out)


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


@pytest.fixture(scope="session")
def nsd_set(nsd_files, tmp_path_factory):
    """That NSD packed, with every test trial and a tenth of the other pictures held out."""
    from cadiff.shards.dataset import Dataset
    from cadiff.shards.nsd import pack_nsd

    out = tmp_path_factory.mktemp("packed") / "nsd"
    pack_nsd(nsd_files, out, test="averaged+trials", val_fraction=0.1)
    return Dataset(out)


@pytest.fixture
def nsd_copy(nsd_files, tmp_path) -> Path:
    """A copy of that NSD, to be spoilt."""
    return shutil.copytree(nsd_files, tmp_path / "raw")


@pytest.fixture(scope="session")
def things_files(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """THINGS-fMRI in figshare's layout with its pictures: the folder, and each subject's responses."""
    from things_world import build

    root = tmp_path_factory.mktemp("things")
    return root, build(root)


@pytest.fixture(scope="session")
def things_set(things_files, tmp_path_factory):
    """That THINGS-fMRI packed with its pictures and every test trial, a fifth of the training stimuli held out."""
    from cadiff.shards.dataset import Dataset
    from cadiff.shards.things import pack_things

    root, out = things_files[0], tmp_path_factory.mktemp("packed") / "things"
    pack_things(root, out, images=root / "object_images", val_fraction=0.2, test="averaged+trials")
    return Dataset(out)


@pytest.fixture
def things_copy(things_files, tmp_path) -> Path:
    """The first subject's files alone, to be spoilt."""
    for path in (things_files[0] / "betas_csv").glob("sub-01_*"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.fixture
def site(monkeypatch):
    """A web server that holds a.tar and commits faults."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served() as site:
        yield site
