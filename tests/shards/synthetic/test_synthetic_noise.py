"""Noise: its autocorrelation, its variance, and the ceiling it puts on what can be predicted."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cadiff.shards.synthetic.god_files import GodPlan, record
from cadiff.shards.synthetic.noise import REPLAY, SPREAD, ar1, blur_rows, draw_ncsnr, noise_ceiling, trial_noise

TRUTH = "truth/god/sbj_1/simulator_truth.npz"


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.9])
def test_autocorrelation_is_as_stated_from_the_first_frame_on(rho):
    white = np.random.default_rng(0).standard_normal((4000, 200), dtype=np.float32)
    noise = ar1(white, rho)
    assert noise.dtype == np.float32
    assert np.allclose(noise.var(axis=0), 1, atol=0.12)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) == pytest.approx(rho, abs=0.01)
    assert np.mean(noise[:, 2:] * noise[:, :-2]) == pytest.approx(rho**2, abs=0.015)


def test_blurring_makes_neighbours_alike_and_keeps_the_variance():
    noise = blur_rows(np.random.default_rng(0).standard_normal((50, 20_000), dtype=np.float32))
    assert np.allclose(noise.var(axis=1), 1, atol=0.04)
    assert np.corrcoef(noise[20], noise[21])[0, 1] == pytest.approx(2 / 3, abs=0.02)
    assert np.corrcoef(noise[20], noise[24])[0, 1] == pytest.approx(0, abs=0.03)


def test_trial_noise_has_unit_variance_and_points_where_the_signal_points():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(30)
    direction /= np.abs(direction)
    patterns = np.outer(rng.standard_normal(500), direction)
    patterns /= np.sqrt((patterns**2).mean(axis=0))
    noise = trial_noise(rng, np.random.default_rng(1), 20_000, patterns.astype(np.float32))
    assert np.allclose(noise.var(axis=0), 1, atol=0.05)
    along = (noise @ direction / 30).var()
    assert along == pytest.approx(REPLAY + (1 - REPLAY) / 30, rel=0.05)


def test_noise_ceiling_follows_the_published_formula():
    assert noise_ceiling(np.array([1.0]), 1) == pytest.approx([50.0])
    assert noise_ceiling(np.array([0.5]), 4) == pytest.approx([50.0])
    assert noise_ceiling(np.array([0.0]), 3) == [0.0]


def test_the_spread_of_signal_to_noise_is_as_stated():
    ncsnr = draw_ncsnr(np.random.default_rng(0), 20_000, 0.8)
    assert np.median(ncsnr) == pytest.approx(0.8, rel=0.02)
    assert np.log(ncsnr).std() == pytest.approx(SPREAD, rel=0.03)


def test_measured_noise_ceiling_agrees_with_the_stated_one():
    # Signals of exactly unit variance, for which the ceiling is stated.
    plan = GodPlan(seed=1, subjects=1, train_images=300, test_images=500, test_repeats=3, voxels=60, snr=0.8)
    rng = np.random.default_rng(0)
    train, test = (rng.standard_normal((count, 60)) for count in (300, 500))
    train, test = ((part - part.mean(axis=0)) / part.std(axis=0) for part in (train, test))
    arrays, truth = record(plan, "sbj_1", train.astype(np.float32), test.astype(np.float32))
    groups = np.stack([arrays["arr_1"][arrays["arr_4"] == image] for image in range(500)])  # (images, repeats, voxels)
    noise = groups.var(axis=1, ddof=1).mean(axis=0)
    signal = np.maximum(groups.mean(axis=1).var(axis=0) - noise / 3, 0)
    measured = 100 * signal / (signal + noise / 3)
    stated = noise_ceiling(truth["ncsnr"], 3)
    assert np.allclose(arrays["arr_5"], stated)
    assert np.abs(measured - stated)[:60].mean() < 4
    assert np.corrcoef(measured[:60], stated[:60])[0, 1] > 0.8
    assert stated[60:].tolist() == [0, 0, 0]
    assert 0.6 < np.median(truth["ncsnr"][:60]) < 1.0


def test_the_average_of_more_repeats_is_closer_to_the_noiseless_response(study):
    with np.load(study / "god" / "sbj_1.npz") as scan, np.load(study / TRUTH) as truth:
        error = scan["arr_2"] - truth["test_responses"]
        single = scan["arr_1"] - truth["test_responses"][scan["arr_4"]]
    assert single.var() == pytest.approx(1, abs=0.1)
    assert error.var() == pytest.approx(1 / 6, abs=0.03)


def test_products_do_not_depend_on_the_number_of_threads():
    # Plain ``left @ right`` fails this with OpenBLAS.
    code = (
        "import numpy as np, hashlib; from cadiff.shards.synthetic.steady import product;"
        "rng = np.random.default_rng(0); left, right = "
        "(rng.standard_normal(size, np.float32) for size in ((900, 1200), (1200, 700)));"
        "total = product(left, right); assert np.allclose(total, left @ right, atol=1e-3);"
        "print(hashlib.sha256(total.tobytes()).hexdigest())"
    )
    hashes = set()
    for threads in ("1", "2"):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", code]
        hashes.add(subprocess.run(command, env={**os.environ, **limits}, capture_output=True, check=True).stdout)
    assert len(hashes) == 1
