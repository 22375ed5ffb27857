"""Simulated HCP runs: the files' geometry and layout, and what V1 to V4 carry in them."""

import nibabel
import numpy as np
import pytest

from cadiff.shards.synthetic.grayordinates import AFFINE, SHAPE, brain_axis, visual_columns
from cadiff.shards.synthetic.hcp_files import brain_noise, save_dtseries

REST = "hcp/990001/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"
MOVIE = "hcp/990001/MNINonLinear/Results/tfMRI_MOVIE1_7T_AP/tfMRI_MOVIE1_7T_AP_Atlas_MSMAll_hp2000_clean.dtseries.nii"
TRUTH = "truth/hcp/990001/simulator_truth.npz"

# Grayordinates of each structure in HCP's 2 mm files, in their order.
COUNTS = {
    "CORTEX_LEFT": 29696,
    "CORTEX_RIGHT": 29716,
    "ACCUMBENS_LEFT": 135,
    "ACCUMBENS_RIGHT": 140,
    "AMYGDALA_LEFT": 315,
    "AMYGDALA_RIGHT": 332,
    "BRAIN_STEM": 3472,
    "CAUDATE_LEFT": 728,
    "CAUDATE_RIGHT": 755,
    "CEREBELLUM_LEFT": 8709,
    "CEREBELLUM_RIGHT": 9144,
    "DIENCEPHALON_VENTRAL_LEFT": 706,
    "DIENCEPHALON_VENTRAL_RIGHT": 712,
    "HIPPOCAMPUS_LEFT": 764,
    "HIPPOCAMPUS_RIGHT": 795,
    "PALLIDUM_LEFT": 297,
    "PALLIDUM_RIGHT": 260,
    "PUTAMEN_LEFT": 1060,
    "PUTAMEN_RIGHT": 1010,
    "THALAMUS_LEFT": 1288,
    "THALAMUS_RIGHT": 1248,
}


def load(path):
    image = nibabel.load(path)
    return image, np.asarray(image.dataobj)


def test_structures_are_hcps_in_number_and_order(study):
    axis = nibabel.load(study / REST).header.get_axis(1)
    found = {name.removeprefix("CIFTI_STRUCTURE_"): len(part) for name, _, part in axis.iter_structures()}
    assert list(found.items()) == list(COUNTS.items())
    assert set(axis.nvertices.values()) == {32_492}
    assert axis.volume_shape == SHAPE
    assert np.array_equal(axis.affine, AFFINE)


def test_voxels_are_distinct_and_inside_the_grid():
    voxels = brain_axis().voxel[59_412:]
    assert len(np.unique(voxels, axis=0)) == len(voxels)
    assert voxels.min() >= 0
    assert (voxels < SHAPE).all()


def test_vertices_and_header_are_those_of_a_real_file(realdata, study):
    real = nibabel.load(realdata / "cifti/geometry91282_random_values.dtseries.nii")
    ours = nibabel.load(study / REST)
    assert np.array_equal(real.header.get_axis(1).vertex, ours.header.get_axis(1).vertex)
    assert np.array_equal(real.header.get_axis(1).name, ours.header.get_axis(1).name)
    for key in ("magic", "datatype", "intent_code", "intent_name", "qform_code", "sform_code", "sizeof_hdr"):
        assert real.nifti_header[key] == ours.nifti_header[key], key
    assert ours.nifti_header.endianness == "<"


@pytest.mark.parametrize(("path", "tr_s"), [(REST, 0.72), (MOVIE, 1.0)])
def test_runs_have_hcps_repetition_time_and_level(study, path, tr_s):
    image, frames = load(study / path)
    time = image.header.get_axis(0)
    assert (time.start, time.step, time.unit) == (0, tr_s, "SECOND")
    assert frames.shape == (24, 91_282)
    assert frames.dtype == np.float32
    alive = frames.std(axis=0) > 0
    assert (~alive).sum() == 12
    assert frames[:, alive].mean() == pytest.approx(10_000, rel=0.02)
    assert 50 < frames[:, alive].std(axis=0).mean() < 300
    visual = np.concatenate([half for halves in visual_columns().values() for half in halves])
    assert 1 <= (~alive[visual]).sum() <= 4


def test_bytes_are_those_nibabel_would_write(tmp_path):
    series = np.random.default_rng(0).standard_normal((91_282, 2)).astype(np.float32)
    save_dtseries(tmp_path / "ours.dtseries.nii", series, 0.72)
    axes = (nibabel.cifti2.SeriesAxis(0, 0.72, 2), brain_axis())
    image = nibabel.cifti2.Cifti2Image(series.T, axes)
    image.nifti_header.set_intent("ConnDenseSeries", name="ConnDenseSeries")
    image.to_filename(tmp_path / "theirs.dtseries.nii")
    assert (tmp_path / "ours.dtseries.nii").read_bytes() == (tmp_path / "theirs.dtseries.nii").read_bytes()
    # Time is fastest on disk: the file ends with the series of the last grayordinate.
    assert (tmp_path / "ours.dtseries.nii").read_bytes().endswith(series[-1].tobytes())


def test_visual_areas_have_the_papers_number_of_grayordinates():
    sizes = {area: (len(left), len(right)) for area, (left, right) in visual_columns().items()}
    assert sizes == {"V1": (831, 787), "V2": (619, 601), "V3": (337, 347), "V4": (361, 300)}


def test_the_film_drives_visual_cortex_and_nothing_else(study):
    from cadiff.shards.synthetic.hemodynamics import scene_courses

    _, frames = load(study / MOVIE)
    with np.load(study / TRUTH) as truth:
        expected = scene_courses(6, 4.0, 24, 1.0) @ truth["tfMRI_MOVIE1_7T_AP_responses"] * truth["ncsnr"]
        visual = truth["columns"]
    seen = frames[:, visual]
    level = np.sqrt((expected**2).mean())
    assert 0.5 < level < 1.2
    agreement = correlation(seen, expected)
    assert np.nanmean(agreement) > 0.3
    other = correlation(frames[:, :4183], expected)
    outside = ~np.isin(np.arange(4183), visual)
    assert abs(np.nanmean(other[outside])) < 0.1


def correlation(one, two):
    """Correlation over time of matching columns; not a number where nothing varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        one, two = ((part - part.mean(axis=0)) / part.std(axis=0) for part in (one.astype(float), two.astype(float)))
    return (one * two).mean(axis=0)


def test_neighbours_share_noise_and_noise_is_autocorrelated():
    noise = brain_noise(0, "s", "run", 60)
    assert noise.shape == (91_282, 60)
    assert noise.var() == pytest.approx(1, abs=0.05)
    neighbours = np.mean([np.corrcoef(noise[i], noise[i + 1])[0, 1] for i in range(1000, 1200)])
    distant = np.mean([np.corrcoef(noise[i], noise[i + 40_000])[0, 1] for i in range(1000, 1200)])
    assert 0.5 < neighbours < 0.95
    assert abs(distant) < 0.15
    assert np.mean(noise[:, 1:] * noise[:, :-1]) == pytest.approx(0.65 * 0.4 + 0.35 * 0.9, abs=0.05)


def test_runs_and_subjects_differ():
    first = brain_noise(0, "a", "one", 2)
    assert not np.array_equal(first, brain_noise(0, "a", "two", 2))
    assert not np.array_equal(first, brain_noise(0, "b", "one", 2))
    assert np.array_equal(first, brain_noise(0, "a", "one", 2))
