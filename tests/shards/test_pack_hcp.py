"""HCP runs become windows: the paper's steps, subject-disjoint splits, an archive of whole scans."""

import shutil

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.hcp import find_runs, pack_hcp
from cadiff.shards.mmp import roi_columns
from cadiff.shards.verify import verify
from cadiff.shards.zarr_store import open_scans

V1 = roi_columns("V1")


@pytest.fixture(scope="module")
def release(tmp_path_factory, write_dtseries):
    """Three subjects in HCP's layout, two runs of 45 and 31 frames each; 100001's first run comes in two versions."""
    root, rng = tmp_path_factory.mktemp("hcp"), np.random.default_rng(0)
    for subject in ("100001", "100002", "100003"):
        for run, frames in (("rfMRI_REST1_LR", 45), ("tfMRI_WM_RL", 31)):
            values = np.zeros((frames, 59412), np.float32)
            values[:, V1] = 1e4 + rng.normal(size=(frames, 1)) * 50 + rng.normal(size=(frames, len(V1))) * 50
            values[:, V1[3]] = 9000
            folder = root / subject / "MNINonLinear" / "Results" / run
            write_dtseries(folder / f"{run}_Atlas_MSMAll_hp2000_clean.dtseries.nii", values)
    folder = root / "100001/MNINonLinear/Results/rfMRI_REST1_LR"
    (folder / "rfMRI_REST1_LR_Atlas.dtseries.nii").write_bytes(b"an unclean version that must not be read")
    return root


@pytest.fixture(scope="module")
def packed(release, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "hcp"
    heard = []
    summary = pack_hcp(release, out, roi="V1", val_fraction=0.3, progress=lambda *a: heard.append(a))
    assert ("packing runs", 6, 6) in heard
    return summary, Dataset(out)


def test_windows_follow_the_papers_steps(release, packed):
    import nibabel as nib

    _, ds = packed
    windows = []
    for run in find_runs(release, ["100002"], None):
        frames = np.asarray(nib.load(run.path).dataobj, np.float64)[:, V1]
        with np.errstate(invalid="ignore"):
            scaled = np.nan_to_num((frames - frames.mean(0)) / frames.std(0))
        scaled[:, 3] = 0
        count = len(frames) // 10
        windows.append(scaled[: count * 10].reshape(count, 10, -1).mean(1))
    windows = np.concatenate(windows)
    windows = (windows - windows.mean()) / windows.std()
    ids = np.flatnonzero(ds.table.subject == ds.subjects.index("100002"))
    np.testing.assert_allclose(ds.signals(ids, len(V1)), windows, atol=3e-3)
    assert ds.stats("100002").std.shape == (1,)


def test_subjects_are_split_never_shared(packed):
    summary, ds = packed
    assert summary["samples"] == {"train": 14, "val": 7, "test": 0}
    train, val = (set(ds.table.subject[ds.ids(split)].tolist()) for split in ("train", "val"))
    assert len(train) == 2 and len(val) == 1 and not train & val
    assert ds.runs == ["rfMRI_REST1_LR", "tfMRI_WM_RL"] and (ds.table.stimulus == -1).all()
    assert ds.voxels == 1618 and len(ds.rois["*"]["V1"]) == 1618
    assert summary["notes"]["flat_grayordinates"]["100001/rfMRI_REST1_LR"] == 1


def test_the_archive_keeps_whole_runs(packed):
    _, ds = packed
    group = open_scans(ds.folder)
    scan = group["100003/tfMRI_WM_RL"]
    assert scan.shape == (31, 1618) and scan.dtype == np.float16 and scan.attrs["tr_s"] == pytest.approx(0.72)
    values = scan[:].astype(np.float32)
    assert np.abs(values.mean(0)).max() < 2e-3 and not values[:, 3].any()
    assert len(scan.attrs["source_sha256"]) == 64 and len(scan.attrs["columns_sha256"]) == 64
    assert verify(ds.folder) == []


def test_verify_notices_a_changed_archive(packed, tmp_path):
    copy = shutil.copytree(packed[1].folder, tmp_path / "copy")
    chunk = next(path for path in (copy / "scans.zarr").rglob("0") if path.is_file())
    chunk.write_bytes(b"x")
    assert any("scans.zarr" in problem for problem in verify(copy))
    shutil.rmtree(copy / "scans.zarr")
    with pytest.raises(DataError, match="no readable scan archive"):
        open_scans(copy)


def test_the_cleaned_version_of_a_run_is_preferred(release):
    names = [run.path.name for run in find_runs(release, ["100001"], "rfMRI*")]
    assert names == ["rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"]


def test_runs_and_subjects_can_be_chosen(release):
    assert len(find_runs(release, None, ["tfMRI*", "rfMRI_REST9*"])) == 3
    with pytest.raises(ConfigError, match="no runs of subject 99"):
        find_runs(release, ["100001", "99"], None)
    with pytest.raises(ConfigError, match="6 runs are there"):
        find_runs(release, None, "nothing*")
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(release / "absent", None, None)


def test_flat_folders_and_bids_names_are_understood(tmp_path):
    for name in (
        "100307_rfMRI_REST1_LR_Atlas_MSMAll",
        "100307_rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean",
        "sub-X_task-a",
    ):
        (tmp_path / f"{name}.dtseries.nii").write_bytes(b"")
    runs = find_runs(tmp_path, None, None)
    assert [(run.subject, run.run) for run in runs] == [("100307", "rfMRI_REST1_LR"), ("sub-X", "task-a")]
    assert runs[0].name == "100307_rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"


def test_a_short_run_is_named_or_dropped_on_request(release, tmp_path):
    with pytest.raises(DataError, match=r"tfMRI_WM_RL.*31 frames, fewer than one window of 40"):
        pack_hcp(release, tmp_path / "a", roi="V1", window=40)
    assert not list(tmp_path.iterdir())
    summary = pack_hcp(release, tmp_path / "a", roi="V1", window=40, skip_bad=True)
    assert len(summary["dropped"]) == 3 and "fewer than one window" in summary["dropped"][0]["why"]
    with pytest.raises(ConfigError, match="window = 0"):
        pack_hcp(release, tmp_path / "b", window=0)


def test_a_run_without_any_signal_is_refused(tmp_path, write_dtseries):
    path = write_dtseries(tmp_path / "s_r_Atlas.dtseries.nii", np.ones((12, 59412)))
    with pytest.raises(DataError, match="no grayordinate of the ROI varies"):
        pack_hcp(path, tmp_path / "out", roi="V1")
    with pytest.raises(DataError, match="nothing was packed"):
        pack_hcp(path, tmp_path / "out", roi="V1", skip_bad=True)


def test_one_subject_is_split_at_the_end_of_each_run(release, tmp_path):
    pack_hcp(release, tmp_path / "out", roi=["V1"], window=5, subjects=["100001"], val_fraction=0.25)
    table = Dataset(tmp_path / "out").table
    assert table.split.tolist() == [0] * 7 + [1] * 2 + [0] * 4 + [1] * 2
    assert table.run.tolist() == [0] * 9 + [1] * 6


def test_a_real_file_of_five_frames_packs(realdata, tmp_path):
    path = realdata / "cifti/sub-MSC01_5frames_65890gray.dtseries.nii"
    summary = pack_hcp(path, tmp_path / "msc", window=1, val_fraction=0.2)
    assert summary["samples"] == {"train": 4, "val": 1, "test": 0} and summary["voxels"] == 4183
    ds = Dataset(tmp_path / "msc")
    assert ds.subjects == ["sub-MSC01"] and len(ds.rois["*"]["V3"]) == 684
    signals = ds.signals(np.arange(5), 4192)
    np.testing.assert_array_equal(signals[:, 4183:], signals[:, :9])
    with pytest.raises(DataError, match="fewer than one window of 10"):
        pack_hcp(path, tmp_path / "other")


def test_the_whole_brain_packs_from_the_hcp_grid(realdata, tmp_path):
    path = realdata / "cifti/geometry91282_random_values.dtseries.nii"
    assert pack_hcp(path, tmp_path / "all", roi="all", window=1)["voxels"] == 91282
    with pytest.raises(DataError, match="ParcelsAxis"):
        pack_hcp(realdata / "cifti/parcellated281.ptseries.nii", tmp_path / "p")
