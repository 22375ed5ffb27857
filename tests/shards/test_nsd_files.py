"""NSD's files: both forms of betas, tables of all trials, ROI volumes, both trial tables; damage is named."""

import shutil

import h5py
import numpy as np
import pytest
from nsd_world import BETAS, ROI, percent, sessions_of

from cadiff.errors import CadiffError, ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.nsd import pack_nsd
from cadiff.shards.nsd_betas import VolumeBetas
from cadiff.shards.nsd_files import DESIGN, STIMULI, TABLE, read_design
from cadiff.shards.nsd_rois import Rois, Voxels
from cadiff.shards.synthetic.nsd_files import NsdPlan, write_nsd


def test_nifti_betas_give_the_same_numbers_as_hdf5(nsd_files, nsd_set, tmp_path):
    write_nsd(tmp_path / "raw", NsdPlan(subjects=1, form="nii.gz"))
    pack_nsd(tmp_path / "raw", tmp_path / "out", test="averaged+trials", val_fraction=0.1)
    nifti = Dataset(tmp_path / "out")
    samples = np.arange(len(nifti))
    np.testing.assert_array_equal(nifti.signals(samples, 60), nsd_set.signals(samples, 60))


def test_hdf5_of_any_chunks_reads_the_same(nsd_files, tmp_path):
    voxels = Voxels((7, 6, 5), np.array([3, 44, 45, 100, 209]))
    with h5py.File(nsd_files / BETAS.format("subj01", 1)) as handle:
        values = handle["betas"][:]
    expected = np.float32(values.transpose(0, 3, 2, 1).reshape(750, -1)[:, voxels.ids]) / np.float32(300)
    for chunks in (None, (1, 5, 6, 7), (100, 2, 3, 4), (750, 1, 1, 1)):
        with h5py.File(tmp_path / "b.hdf5", "w") as handle:
            handle.create_dataset("betas", data=values, chunks=chunks)
        np.testing.assert_array_equal(VolumeBetas({1: tmp_path / "b.hdf5"}, voxels).read(1), expected)


def test_a_subject_s_own_table_names_the_labels(nsd_copy):
    table = nsd_copy / "nsddata/freesurfer/subj01/label/floc-faces.mgz.ctab"
    table.parent.mkdir(parents=True)
    table.write_text("0 Unknown\n1 here\n2 there 0 0 0\n")
    rois = Rois(nsd_copy, "subj01")
    assert rois.labels("floc-faces") == {1: "here", 2: "there"} and table in rois.sources
    assert rois.choose(["floc-faces:there"]).sum() == 12
    with pytest.raises(ConfigError, match="no label 'OFA'; there are 1 here, 2 there"):
        rois.choose(["floc-faces:OFA"])
    table.write_text("one\ntwo three\n")
    with pytest.raises(DataError, match="number name"):
        rois.labels("floc-faces")


@pytest.mark.parametrize("file", ["betas_all_{subject}_fp32_renorm.hdf5", "{subject}_nsdgeneral.hdf5", "{subject}.npy"])
def test_tables_of_all_trials_pack_like_the_volumes(nsd_copy, nsd_set, tmp_path, file):
    xyz = nsd_set.array("subj01", "xyz").astype(int)
    table = np.concatenate([percent(nsd_copy, "subj01", session, xyz) for session in (1, 2, 3)]).astype(np.float32)
    path = nsd_copy / file.replace("{subject}", "subj01")
    if file.endswith(".npy"):
        np.save(path, table)
    else:
        with h5py.File(path, "w") as handle:
            handle["betas" if "renorm" in file else "voxels"] = table
    pack_nsd(nsd_copy, tmp_path / "t", betas=file, test="averaged+trials", val_fraction=0.1)
    packed = Dataset(tmp_path / "t")
    samples = np.arange(len(packed))
    np.testing.assert_allclose(packed.signals(samples, 60), nsd_set.signals(samples, 60), atol=4e-3)
    np.testing.assert_array_equal(packed.rois["subj01"]["V1"], nsd_set.rois["subj01"]["V1"])
    pack_nsd(nsd_copy, tmp_path / "v1", betas=file, roi="prf-visualrois:V1v")
    np.testing.assert_array_equal(Dataset(tmp_path / "v1").array("subj01", "xyz")[:, 0], np.full(12, 1))
    shutil.rmtree(nsd_copy / "nsddata/ppdata")
    told = pack_nsd(nsd_copy, tmp_path / "u", betas=file)
    assert told["notes"]["voxel_places_unknown"] == ["subj01"] and told["voxels"] == 60
    with pytest.raises(ConfigError, match="only roi = 'nsdgeneral'"):
        pack_nsd(nsd_copy, tmp_path / "w", betas=file, roi="streams")


def test_a_voxel_that_is_not_finite_becomes_zeros_in_that_session(nsd_copy, tmp_path):
    table = np.random.default_rng(0).normal(size=(1500, 60)).astype(np.float32)
    table[800, 7] = np.nan
    np.save(nsd_copy / "subj01.npy", table)
    told = pack_nsd(nsd_copy, tmp_path / "n", betas="{subject}.npy")
    ds = Dataset(tmp_path / "n")
    assert told["notes"]["voxels_zeroed"] == {"subj01": {"ses-02": 1}}
    assert told["notes"]["sessions_missing"] == {"subj01": [3]}
    assert not ds.signals(sessions_of(ds, "subj01", 2), 60)[:, 7].any()
    assert ds.signals(sessions_of(ds, "subj01", 1), 60)[:, 7].any()


@pytest.mark.parametrize("gone", [DESIGN, TABLE])
def test_either_trial_table_is_enough(nsd_files, nsd_copy, tmp_path, gone):
    (nsd_copy / gone).unlink()
    alone, both = read_design(nsd_copy)[0], read_design(nsd_files)[0]
    assert alone.shared == both.shared and (alone.pictures == both.pictures).all()
    assert all((alone.shown[name] == both.shown[name]).all() for name in both.shown)


def test_trial_tables_that_contradict_each_other_are_refused(nsd_copy):
    lines = (nsd_copy / TABLE).read_text().splitlines()
    cells = [line.split(",") for line in lines]
    column = cells[0].index("subject3_rep0")
    rows = [row for row in cells[1:] if row[column] != "0"][:2]
    rows[0][column], rows[1][column] = rows[1][column], rows[0][column]
    (nsd_copy / TABLE).write_text("\n".join(",".join(row) for row in cells))
    with pytest.raises(DataError, match=r"subj03's trial .* according to nsd_expdesign\.mat"):
        read_design(nsd_copy)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def rewrite(path, name, change):
    with h5py.File(path) as handle:
        values = handle[name][:]
    with h5py.File(path, "w") as handle:
        handle[name] = change(values)


def save_mat(root, **changes):
    from scipy.io import loadmat, savemat

    values = {key: value for key, value in loadmat(root / DESIGN).items() if not key.startswith("__")}
    savemat(root / DESIGN, {key: value for key, value in {**values, **changes}.items() if value is not None})
    (root / TABLE).unlink()


def link(root):
    path = root / BETAS.format("subj01", 1)
    path.rename(root / "elsewhere.hdf5")
    with h5py.File(path, "w") as handle:
        handle["betas"] = h5py.ExternalLink(str(root / "elsewhere.hdf5"), "betas")


def lend(root):
    path = root / BETAS.format("subj01", 1)
    path.rename(root / "elsewhere.hdf5")
    layout = h5py.VirtualLayout((750, 5, 6, 7), "i2")
    layout[:] = h5py.VirtualSource(root / "elsewhere.hdf5", "betas", (750, 5, 6, 7))
    with h5py.File(path, "w") as handle:
        handle.create_virtual_dataset("betas", layout)


def leave_outside(root):
    (root / "values.bin").write_bytes(bytes(750 * 210 * 2))
    with h5py.File(root / BETAS.format("subj01", 1), "w") as handle:
        place = [(str(root / "values.bin"), 0, h5py.h5f.UNLIMITED)]
        handle.create_dataset("betas", (750, 5, 6, 7), "i2", external=place)


FIRST = BETAS.format("subj01", 1)
FAULTS = {
    "no design": (lambda r: [(r / name).unlink() for name in (DESIGN, TABLE)], "neither .*nsd_expdesign"),
    "no pictures": (lambda r: (r / STIMULI).unlink(), "no nsddata_stimuli/.*Download"),
    "no roi": (
        lambda r: (r / ROI.format("subj01", "nsdgeneral")).unlink(),
        "no ROI 'nsdgeneral'; there are floc-faces",
    ),
    "cut roi": (lambda r: cut(r / ROI.format("subj02", "floc-faces"), 60), "not a readable label volume"),
    "cut betas": (lambda r: cut(r / FIRST, 3000), "not readable as HDF5"),
    "other trials": (lambda r: rewrite(r / FIRST, "betas", lambda v: v[:600]), r"expected \(7, 6, 5, 750\)"),
    "other grid": (lambda r: rewrite(r / FIRST, "betas", lambda v: v[:, 1:]), r"\(7, 6, 4, 750\), expected"),
    "other name": (
        lambda r: (r / FIRST).write_bytes((r / STIMULI).read_bytes()),
        "no dataset betas; it holds imgBrick",
    ),
    "a link": (link, "lies in other files"),
    "virtual betas": (lend, "lies in other files"),
    "external betas": (leave_outside, "lies in other files"),
    "few pictures": (
        lambda r: rewrite(r / STIMULI, "imgBrick", lambda v: v[:90]),
        "90 pictures, but a trial shows nsd-",
    ),
    "grey pictures": (lambda r: rewrite(r / STIMULI, "imgBrick", lambda v: v[..., 0]), "imgBrick is uint8"),
    "short order": (lambda r: save_mat(r, masterordering=np.ones((1, 2000))), "ends with trial 2,250"),
    "wild order": (lambda r: save_mat(r, masterordering=np.full((1, 2250), 99)), "numbers of columns of subjectim"),
    "lost key": (lambda r: save_mat(r, sharedix=None), "cannot be read"),
    "no shared": (lambda r: save_mat(r, sharedix=np.zeros((1, 0))), "no shared pictures"),
    "wrong shared": (lambda r: save_mat(r, sharedix=np.array([[9999]])), "holds the pictures of sharedix"),
    "few subjects": (lambda r: save_mat(r, subjectim=np.ones((2, 48))), r"subjectim is \(2, 48\)"),
    "not a mat": (lambda r: (r / DESIGN).write_bytes(b"MATLAB 7.3"), "cannot be read"),
    "not a csv": (lambda r: (r / TABLE).write_text("a,b\n1,2\n"), "no columns subject1_rep0"),
    "words in csv": (lambda r: (r / TABLE).write_text("nsdId,shared1000,subject1_rep0\nx,True,1\n"), "not a readable"),
    "trial twice": (
        lambda r: (r / TABLE).write_text("nsdId,shared1000,subject1_rep0\n0,True,1\n1,True,1\n"),
        "has two pictures",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_stop_with_one_line_and_leave_nothing(nsd_copy, tmp_path, fault):
    damage, message = FAULTS[fault]
    damage(nsd_copy)
    with pytest.raises(CadiffError, match=message) as caught:
        pack_nsd(nsd_copy, tmp_path / "x")
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_cut_nifti_is_refused(tmp_path):
    write_nsd(tmp_path / "raw", NsdPlan(subjects=1, sessions=1, form="nii.gz"))
    path = tmp_path / "raw" / BETAS.format("subj01", 1).replace("hdf5", "nii.gz")
    cut(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="not readable as NIfTI"):
        pack_nsd(tmp_path / "raw", tmp_path / "x")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"subjects": ["subj08"]}, "no betas of 'subj08'; there are subj01, subj02"),
        ({"betas": "assumehrf"}, "There are fithrf_GLMdenoise_RR"),
        ({"betas": "{subject}.npy"}, "no file {subject}.npy for subj01"),
        ({"roi": "hippocampus"}, "no ROI 'hippocampus'"),
        ({"roi": "floc-faces:V1"}, "no label 'V1'; there are 1 OFA, 2 FFA-1"),
        ({"roi": "prf-visualrois:7"}, "has no voxels"),
        ({"normalise": "max"}, "normalise = 'max': use session or voxel or scalar"),
        ({"train": "all"}, "train = 'all'"),
        ({"test": "trials"}, "test = 'trials'"),
        ({"max_side": 2}, "at least 16"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"root": "/nowhere"}, "neither"),
    ],
)
def test_wrong_options_are_config_errors(nsd_files, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        pack_nsd(**{"root": nsd_files, "out": tmp_path / "x", **options})


def test_tables_of_another_size_are_refused(nsd_copy, tmp_path):
    for shape, message in (
        ((700, 60), "whole sessions of 750"),
        ((750, 59), "its mask has 60"),
        ((750,), "a table of"),
    ):
        np.save(nsd_copy / "subj01.npy", np.zeros(shape, np.float32))
        with pytest.raises(DataError, match=message):
            pack_nsd(nsd_copy, tmp_path / "x", betas="{subject}.npy")
