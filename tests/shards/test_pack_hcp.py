"""HCP runs become windows: the paper's steps, splits by family, any storage type, and the same bytes however made."""

import shutil

import numpy as np
import pytest
from hcp_world import CLEAN, V1, frames_of

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.hcp import pack_hcp
from cadiff.shards.hcp_runs import find_runs
from cadiff.shards.verify import verify
from cadiff.shards.zarr_store import open_scans


def z(frames_TV):
    with np.errstate(invalid="ignore"):
        scaled_TV = (frames_TV - frames_TV.mean(0)) / frames_TV.std(0)
    return np.nan_to_num(scaled_TV)


def test_windows_follow_the_papers_steps(release, packed):
    _, ds = packed
    windows = []
    for run in find_runs(release, ["100002"]).runs:
        scaled = z(frames_of(run, V1))
        count = len(scaled) // 10
        windows.append(scaled[: count * 10].reshape(count, 10, -1).mean(1))
    windows = np.concatenate(windows)
    windows = (windows - windows.mean()) / windows.std()
    ids = np.flatnonzero(ds.table.subject == ds.subjects.index("100002"))
    np.testing.assert_allclose(ds.signals(ids, len(V1)), windows, atol=3e-3)
    assert ds.stats("100002").std.shape == (1,)


def test_subjects_are_split_never_shared(packed):
    summary, ds = packed
    assert summary["samples"] == {"train": 14, "val": 7, "test": 0} and ds.manifest["split_by"] == "subject"
    train, val = (set(ds.table.subject[ds.ids(split)].tolist()) for split in ("train", "val"))
    assert len(train) == 2 and len(val) == 1 and not train & val
    assert ds.runs == ["rfMRI_REST1_LR", "tfMRI_WM_RL"] and (ds.table.stimulus == -1).all()
    assert ds.voxels == 1618 and len(ds.rois["*"]["V1"]) == 1618
    np.testing.assert_array_equal(ds.array("100003", "ids"), V1)


def test_a_run_is_reported_with_what_is_in_it(packed):
    summary, ds = packed
    told = dict(summary["notes"]["runs"]["100001/rfMRI_REST1_LR"])
    assert told.pop("tr_s") == pytest.approx(0.72)
    assert told == {
        "frames": 45,
        "frames_left_over": 5,
        "windows": 4,
        "flat": 1,
        "not_finite": 0,
        "version": CLEAN,
    }
    assert summary["notes"]["versions"] == {CLEAN: 6}
    assert ds.array("100001", "flat", "rfMRI_REST1_LR").tolist() == [3]
    told = ds.describe(5)
    assert (told["session"], told["run"], told["start"], told["frames"]) == ("3T", "tfMRI_WM_RL", 10, 10)
    assert ds.describe(0)["session"] == "REST1"


def test_the_archive_keeps_whole_runs_and_what_they_were_scaled_with(release, packed):
    _, ds = packed
    group = open_scans(ds.folder)
    scan = group["100003/tfMRI_WM_RL"]
    assert scan.shape == (31, 1618) and scan.dtype == np.float16 and scan.attrs["tr_s"] == pytest.approx(0.72)
    assert len(scan.attrs["source_sha256"]) == 64 and len(scan.attrs["columns_sha256"]) == 64
    mean, std = group["100003/tfMRI_WM_RL.mean"][:], group["100003/tfMRI_WM_RL.std"][:]
    assert mean.dtype == np.float32 and mean[3] == 9000 and std[3] == 0
    run = find_runs(release, ["100003"], "tfMRI*").runs[0]
    np.testing.assert_allclose(scan[:].astype(np.float32) * std + mean, frames_of(run, V1), atol=0.2)
    assert verify(ds.folder) == []


def test_a_long_run_is_archived_in_chunks_that_zarr_reads(tmp_path):
    from cadiff.shards.zarr_store import SCANS, ScanWriter

    frames = np.random.default_rng(0).normal(size=(520, 3)).astype(np.float32)
    writer = ScanWriter(tmp_path / SCANS)
    writer.add("s.1", "r", frames, {"note": "x"})
    np.testing.assert_array_equal(open_scans(tmp_path)["s-1/r"][:], frames.astype(np.float16))
    assert open_scans(tmp_path)["s-1/r"].attrs["subject"] == "s.1" and writer.describe()["arrays"] == 1


def test_verify_notices_a_changed_archive(packed, tmp_path):
    copy = shutil.copytree(packed[1].folder, tmp_path / "copy")
    chunk = next(path for path in (copy / "scans.zarr").rglob("0") if path.is_file())
    chunk.write_bytes(b"x")
    assert any("scans.zarr" in problem for problem in verify(copy))
    shutil.rmtree(copy / "scans.zarr")
    with pytest.raises(DataError, match="no readable scan archive"):
        open_scans(copy)


def test_a_short_run_is_named_or_dropped_on_request(release, tmp_path):
    with pytest.raises(DataError, match=r"tfMRI_WM_RL.*31 frames, fewer than one window of 40"):
        pack_hcp(release, tmp_path / "a", roi="V1", window=40)
    assert not list(tmp_path.iterdir())
    summary = pack_hcp(release, tmp_path / "a", roi="V1", window=40, skip_bad=True)
    assert len(summary["dropped"]) == 3 and "fewer than one window" in summary["dropped"][0]["why"]
    again = pack_hcp(release, tmp_path / "a", roi="V1", window=40, skip_bad=True)
    assert again["already"] and again["hash"] == summary["hash"]
    with pytest.raises(ConfigError, match="window = 0"):
        pack_hcp(release, tmp_path / "b", window=0)


def test_a_run_without_any_signal_is_refused(tmp_path, write_dtseries):
    path = write_dtseries(tmp_path / "s_r_Atlas.dtseries.nii", np.ones((12, 59412)))
    with pytest.raises(DataError, match="no grayordinate of the ROI varies"):
        pack_hcp(path, tmp_path / "out", roi="V1")
    with pytest.raises(DataError, match="nothing was packed"):
        pack_hcp(path, tmp_path / "out", roi="V1", skip_bad=True)


def test_values_that_are_not_finite_become_zeros_and_are_counted(tmp_path, write_dtseries):
    values = np.random.default_rng(0).normal(size=(20, 59412)).astype(np.float32)
    values[3, V1[5]], values[7, V1[9]], values[:, V1[2]] = np.nan, np.inf, 4
    path = write_dtseries(tmp_path / "s_r_Atlas.dtseries.nii", values)
    summary = pack_hcp(path, tmp_path / "out", roi="V1", window=1, scans=False)
    told = summary["notes"]["runs"]["s/r"]
    assert (told["flat"], told["not_finite"], told["windows"]) == (1, 2, 20)
    ds = Dataset(tmp_path / "out")
    assert ds.array("s", "flat", "r").tolist() == [2, 5, 9]
    stats = ds.stats("s")  # zero before, what zero becomes by the subject's own mean and deviation after
    columns = ds.signals(np.arange(20), 1618)[:, [2, 5, 9]]
    np.testing.assert_allclose(columns, np.full((20, 3), -stats.mean / stats.std), atol=1e-3)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("int16", 2e-4), ("int8", 0.05)])
def test_signals_are_stored_in_any_type(release, packed, tmp_path, dtype, error):
    summary = pack_hcp(release, tmp_path / "out", roi="V1", val_fraction=0.3, dtype=dtype, scans=False)
    ds, ids = Dataset(tmp_path / "out"), np.arange(21)
    assert ds.manifest["dtype"] == dtype and summary["samples"] == packed[0]["samples"]
    np.testing.assert_allclose(ds.signals(ids, 1618), packed[1].signals(ids, 1618), atol=error + 2e-3)
    assert not (tmp_path / "out" / "scans.zarr").exists()


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
    with pytest.raises(DataError, match="65,890 grayordinates in 18 structures"):
        pack_hcp(realdata / "cifti/sub-MSC01_5frames_65890gray.dtseries.nii", tmp_path / "no", roi="all", window=1)
    for name in ("cifti/parcellated281.ptseries.nii", "parcellation/Glasser2016_MMP1_59412.dlabel.nii"):
        with pytest.raises(DataError, match="hold no grayordinate time series"):
            pack_hcp(realdata / name, tmp_path / "p")


def test_files_that_are_no_dense_time_series_are_reported(release, tmp_path, caplog):
    root = shutil.copytree(release, tmp_path / "raw")
    folder = root / "100001/MNINonLinear/Results/tfMRI_WM_RL"
    for name in ("tfMRI_WM_RL_Atlas.ptseries.nii", "tfMRI_WM_RL_Atlas_b.ptseries.nii", "tfMRI_WM_RL.dtseries.nii.gz"):
        (folder / name).write_bytes(b"")
    summary = pack_hcp(root, tmp_path / "out", roi="V1", window=40, skip_bad=True)
    told = {entry["what"]: entry["why"] for entry in summary["dropped"]}
    assert told["*.ptseries.nii"].startswith("2 files skipped, first 100001/MNINonLinear/Results/tfMRI_WM_RL/")
    assert told["*.dtseries.nii.gz"].startswith("1 files skipped") and len(told) == 5  # and three runs too short
    assert not caplog.records  # what is in the summary is not said twice
