"""Widths, wrap padding, windows and z-scores, and their parity with stored outputs of the paper's code."""

import numpy as np
import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.shards.splits import held_out, held_tail
from cadiff.shards.voxels import (
    padded_width,
    scalar_stats,
    voxel_stats,
    window_average,
    wrap_pad,
    zscore_run,
)


def test_the_papers_width_is_4192():
    assert padded_width(4183, 16) == 4192
    assert padded_width(4192, 16) == 4192
    assert padded_width(4192, 16, legacy_pad=True) == 4208
    assert padded_width(32, 16, legacy_pad=True) == 48
    with pytest.raises(ConfigError):
        padded_width(10, 0)


def test_padding_repeats_the_signal_as_often_as_needed():
    signals = np.arange(6).reshape(2, 3)
    assert wrap_pad(signals, 8).tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [3, 4, 5, 3, 4, 5, 3, 4]]
    with pytest.raises(ConfigError, match="at least 3"):
        wrap_pad(signals, 2)


def test_frames_left_after_the_last_window_are_dropped():
    frames = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert window_average(frames, 3).tolist() == [[2, 3], [8, 9]]
    with pytest.raises(DataError, match="fewer than one window"):
        window_average(frames, 8)
    with pytest.raises(ConfigError):
        window_average(frames, 0)


def test_a_voxel_without_variance_or_with_nan_becomes_zeros():
    rng = np.random.default_rng(0)
    frames = rng.normal(100, 5, (50, 4)).astype(np.float32)
    frames[:, 1] = 7.3
    frames[3, 2] = np.nan
    scaled, flat = zscore_run(frames)
    assert flat.tolist() == [1, 2]
    assert not scaled[:, [1, 2]].any()
    np.testing.assert_allclose(scaled[:, [0, 3]].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, [0, 3]].std(0), 1, atol=1e-5)


def test_a_rounded_constant_does_not_blow_up():
    frames = np.full((40, 3), 10000.1, np.float32) + np.float32(1e-3) * np.arange(40, dtype=np.float32)[:, None] * [
        0,
        0,
        1,
    ]
    scaled, flat = zscore_run(frames.astype(np.float32))
    assert flat.tolist()[:2] == [0, 1] and np.abs(scaled).max() < 10


def test_scalar_statistics_use_one_number_for_all_voxels():
    signals = np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)
    stats = scalar_stats(signals)
    assert stats.mean.tolist() == [4.0]
    np.testing.assert_allclose(stats.apply(signals).std(), 1, rtol=1e-6)
    with pytest.raises(DataError, match="constant"):
        scalar_stats(np.ones((3, 3)))
    np.testing.assert_allclose(voxel_stats(signals).mean, [3, 5])


def test_holding_out_depends_on_names_not_on_their_order():
    names = [f"s{i}" for i in range(40)]
    assert held_out(names, 0.1, 0) == held_out(reversed(names), 0.1, 0)
    assert len(held_out(names, 0.1, 0)) == 4
    assert held_out(names, 0.1, 0) != held_out(names, 0.1, 1)
    assert len(held_out(["a", "b"], 0.01, 0)) == 1 and held_out(["a"], 0.5, 0) == set()
    assert len(held_out(["a", "b"], 0.99, 0)) == 1 and held_out(names, 0, 0) == set()
    assert (held_tail(10, 0.25), held_tail(10, 0), held_tail(1, 0.5), held_tail(4, 0.01)) == (2, 0, 0, 1)
    with pytest.raises(ConfigError):
        held_out(names, 1.0, 0)


@pytest.mark.parity
def test_windows_padding_and_scalar_z_score_are_the_papers(dataprep, dataprep_widths):
    meta, arrays = dataprep
    subjects = meta["hcp"]["subject_order_used"]
    expected = arrays["hcp.data"][:, 0].reshape(len(subjects), -1, arrays["hcp.data"].shape[-1])
    for place, subject in enumerate(subjects):
        regions = [arrays[f"hcp.{subject}.V{i}"] for i in (1, 2, 3, 4)]
        windows = window_average(np.concatenate(regions, axis=1), 10)
        # The paper's code adds a whole patch when aligned, and takes its statistics over the padding too.
        padded = wrap_pad(windows, padded_width(windows.shape[1], 16, legacy_pad=True))
        np.testing.assert_allclose(scalar_stats(padded).apply(padded), expected[place], atol=2e-6)
    assert dataprep_widths
    for width in dataprep_widths:
        signals = arrays[f"voxts.{width}.in"]
        padded = wrap_pad(signals, padded_width(width, 16, legacy_pad=True))
        np.testing.assert_array_equal(padded, arrays[f"pad.{width}.out"])
