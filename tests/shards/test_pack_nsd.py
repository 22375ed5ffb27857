"""NSD: pairing of trials, pictures and voxels, statistics of training trials alone, splits by picture, averages."""

import json

import h5py
import numpy as np
import pytest
from nsd_world import BETAS, numbers, percent, sessions_of, shown

from cadiff.errors import DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.nsd import pack_nsd
from cadiff.shards.nsd_files import STIMULI, read_design, stimulus_id
from cadiff.shards.nsd_subject import pooled_stats
from cadiff.shards.splits import held_out
from cadiff.shards.verify import verify
from cadiff.shards.voxels import voxel_stats


def test_splits_share_no_stimulus_and_the_shared_pictures_are_tested(nsd_files, nsd_set):
    assert nsd_set.subjects == ["subj01", "subj02"] and verify(nsd_set.folder) == [] and nsd_set.classes == []
    of = {split: set(numbers(nsd_set, nsd_set.ids(split)).tolist()) for split in ("train", "val", "test")}
    design = read_design(nsd_files)[0]
    others = [stimulus_id(number) for number in design.pictures.tolist() if number not in design.shared]
    assert of["val"] == {n for n in of["train"] | of["val"] if stimulus_id(n) in held_out(others, 0.1, 0)}
    assert of["test"] == set(design.shared) and len(of["test"]) == 8
    assert len(of["train"]) + len(of["val"]) == 80 and of["val"]
    assert not of["train"] & of["val"] and not of["train"] & of["test"] and not of["val"] & of["test"]
    assert nsd_set.sessions == ["ses-01", "ses-02", "ses-03"]


def test_each_trial_is_paired_with_the_picture_it_showed(nsd_files, nsd_set):
    for subject in nsd_set.subjects:
        samples = np.concatenate([sessions_of(nsd_set, subject, session) for session in (1, 2, 3)])
        pictures = shown(nsd_files, subject).tolist()
        assert numbers(nsd_set, samples).tolist() == pictures
        before = [pictures[:trial].count(number) for trial, number in enumerate(pictures)]
        assert nsd_set.table.repeat[samples].tolist() == before


def test_pictures_are_the_rows_of_imgbrick(nsd_files, nsd_set):
    with h5py.File(nsd_files / STIMULI) as handle:
        bricks = handle["imgBrick"][:]
    stimuli = np.arange(len(nsd_set.stimuli))
    ids = [int(name.removeprefix("nsd-")) for name in nsd_set.stimuli]
    assert len(ids) == 88 and nsd_set.has_picture.all()
    pictures = nsd_set.images(stimuli, 24).transpose(0, 2, 3, 1).astype(int)
    assert np.abs(pictures - bricks[ids]).mean() < 3  # JPEG of hard edges
    wrong = np.abs(pictures - bricks[np.roll(ids, 1)]).mean()
    assert wrong > 30


def test_a_session_is_z_scored_with_its_own_training_trials(nsd_files, nsd_set):
    xyz = nsd_set.array("subj02", "xyz").astype(int)
    for session in (1, 3):
        samples = sessions_of(nsd_set, "subj02", session)
        values = percent(nsd_files, "subj02", session, xyz)
        train = nsd_set.table.split[samples] == 0
        mean, std = values[train].mean(0), values[train].std(0)
        np.testing.assert_allclose(nsd_set.signals(samples, 60), (values - mean) / std, atol=4e-3)
        np.testing.assert_allclose(nsd_set.array("subj02", "session_mean", f"ses-{session:02d}"), mean, rtol=1e-4)
    assert nsd_set.stats("subj02") is None  # there is not one set of statistics


def test_voxels_are_numbered_in_the_volume_s_c_order(nsd_set):
    ids, xyz, grid = (nsd_set.array("subj01", role) for role in ("ids", "xyz", "grid"))
    assert grid.tolist() == [7, 6, 5] and len(ids) == nsd_set.voxels == 60
    np.testing.assert_array_equal(np.ravel_multi_index(xyz.astype(int).T, grid), ids)
    assert (np.diff(ids) > 0).all()


def test_voxels_without_data_in_a_session_are_zeros_there_and_are_reported(nsd_set):
    assert nsd_set.manifest["notes"]["voxels_zeroed"] == {"subj01": {"ses-02": 1}, "subj02": {"ses-02": 1}}
    last = {session: nsd_set.signals(sessions_of(nsd_set, "subj01", session), 60)[:, -1] for session in (1, 2, 3)}
    assert not last[2].any() and last[1].std() > 0.5 and last[3].std() > 0.5


@pytest.mark.parametrize("normalise", ["voxel", "scalar"])
def test_other_statistics_pool_the_training_trials_of_all_sessions(nsd_files, tmp_path, normalise):
    pack_nsd(nsd_files, tmp_path / "o", subjects=["subj01"], normalise=normalise, test="averaged+trials")
    ds = Dataset(tmp_path / "o")
    samples = np.concatenate([sessions_of(ds, "subj01", session) for session in (1, 2, 3)])
    xyz = ds.array("subj01", "xyz").astype(int)[:-1]  # the last voxel lacks a session
    values = np.concatenate([percent(nsd_files, "subj01", session, xyz) for session in (1, 2, 3)])
    train = values[ds.table.split[samples] == 0]
    assert not ds.signals(sessions_of(ds, "subj01", 2), 60)[:, -1].any()
    if normalise == "voxel":
        expected = (values - train.mean(0)) / train.std(0)
        np.testing.assert_allclose(ds.signals(samples, 60)[:, :-1], expected, atol=4e-3)
    else:
        assert ds.stats("subj01").mean.shape == (1,)
        packed = ds.signals(samples, 60)[:, :-1]
        slope = np.polyfit(values.ravel(), packed.ravel(), 1)[0]
        np.testing.assert_allclose(packed - packed.mean(), slope * (values - values.mean()), atol=4e-3)
        assert abs(ds.signals(ds.ids("train"), 60).std() - 1) < 0.02


def test_pooled_statistics_are_those_of_all_trials_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(rng.normal(size=5), 2, (n, 5)).astype(np.float32) for n in (7, 30, 12)]
    parts[1][:, 4] = 0  # no data in one session
    pooled = pooled_stats(((voxel_stats(part), len(part)) for part in parts), "voxel", "s")
    everything = np.concatenate(parts)
    np.testing.assert_allclose(pooled.mean[:4], everything.mean(0)[:4], rtol=1e-5)
    np.testing.assert_allclose(pooled.std[:4], everything.std(0)[:4], rtol=1e-5)
    np.testing.assert_allclose(pooled.std[4], np.concatenate([parts[0], parts[2]])[:, 4].std(), rtol=1e-5)
    scalar = pooled_stats(((voxel_stats(part[:, :4]), len(part)) for part in parts), "scalar", "s")
    np.testing.assert_allclose(
        [scalar.mean[0], scalar.std[0]], [everything[:, :4].mean(), everything[:, :4].std()], 1e-5
    )
    with pytest.raises(DataError, match="no voxel has variance"):
        pooled_stats([(voxel_stats(np.zeros((4, 3), np.float32)), 4)], "voxel", "s")


def test_a_test_sample_is_the_mean_over_the_showings_of_its_picture(nsd_set):
    test = nsd_set.ids("test", ["subj01"])
    trials, means = test[nsd_set.table.repeat[test] >= 0], test[nsd_set.table.repeat[test] == -1]
    assert len(means) == 8 and len(trials) == 8 * 47
    single, averaged = nsd_set.signals(trials, 60), nsd_set.signals(means, 60)
    for row, stimulus in enumerate(nsd_set.table.stimulus[means]):
        expected = single[nsd_set.table.stimulus[trials] == stimulus].mean(0)
        np.testing.assert_allclose(averaged[row], expected, atol=2e-3)
    assert nsd_set.manifest["notes"]["test_pictures_by_showings"]["subj01"] == {"47": 8}


def test_training_pictures_can_be_averaged_too(nsd_files, nsd_set, tmp_path):
    pack_nsd(nsd_files, tmp_path / "a", train="averaged", val_fraction=0.1)
    mean = Dataset(tmp_path / "a")
    assert len(mean) == 2 * 48 and set(mean.table.repeat.tolist()) == {-1} and mean.runs == ["training", "test"]
    row = mean.ids("train", ["subj02"])[3]
    name = mean.stimuli[mean.table.stimulus[row]]
    trials = np.flatnonzero((nsd_set.table.subject == 1) & (nsd_set.table.stimulus == nsd_set.stimuli.index(name)))
    np.testing.assert_allclose(mean.signals([row], 60)[0], nsd_set.signals(trials, 60).mean(0), atol=2e-3)


def test_the_same_inputs_give_the_same_bytes_and_packing_again_does_nothing(nsd_files, nsd_set, tmp_path):
    told = pack_nsd(nsd_files, tmp_path / "x", test="averaged+trials", val_fraction=0.1)
    assert told["hash"] == nsd_set.hash and not told["already"]
    assert pack_nsd(nsd_files, tmp_path / "x", test="averaged+trials", val_fraction=0.1)["already"]


def test_a_picture_s_split_does_not_depend_on_the_subjects_packed(nsd_files, nsd_set, tmp_path):
    pack_nsd(nsd_files, tmp_path / "one", subjects=["subj02"], val_fraction=0.1)
    one = Dataset(tmp_path / "one")
    assert set(numbers(one, one.ids("val")).tolist()) == set(numbers(nsd_set, nsd_set.ids("val", ["subj02"])).tolist())


def test_regions_are_columns_of_the_packed_signal(nsd_files, nsd_set, tmp_path):
    x = nsd_set.array("subj01", "xyz")[:, 0]
    rois = nsd_set.rois["subj01"]
    np.testing.assert_array_equal(rois["V1"], np.flatnonzero((x == 1) | (x == 2)))
    np.testing.assert_array_equal(rois["floc-faces:OFA"], np.flatnonzero(x == 4))
    assert len(rois["nsdgeneral"]) == 60 and "nsdgeneral:1" not in rois and "hV4" not in rois
    pack_nsd(nsd_files, tmp_path / "v", subjects=["subj01"], roi=["prf-visualrois:V1v,2", "floc-faces:FFA-1"])
    some = Dataset(tmp_path / "v")
    assert set(some.array("subj01", "xyz")[:, 0].tolist()) == {1, 2, 5} and some.voxels == 36
    assert set(some.rois["subj01"]) == {
        *("nsdgeneral", "V1", "prf-visualrois", "prf-visualrois:V1v", "prf-visualrois:V1d", "prf-visualrois:V2v", "V2"),
        *("floc-faces", "floc-faces:FFA-1"),
    }


def test_missing_sessions_are_told_and_do_not_matter(nsd_copy, tmp_path):
    (nsd_copy / BETAS.format("subj02", 2)).unlink()
    told = pack_nsd(nsd_copy, tmp_path / "m", test="averaged+trials")
    ds = Dataset(tmp_path / "m")
    assert told["notes"]["sessions_missing"] == {"subj02": [2]}
    later = sessions_of(ds, "subj02", 3)
    np.testing.assert_array_equal(numbers(ds, later), shown(nsd_copy, "subj02")[1500:])
    means = [i for i in ds.ids("test", ["subj02"]) if ds.table.repeat[i] == -1]
    assert len(means) == 8 and sum(told["notes"]["test_pictures_by_showings"]["subj02"].values()) == 8


def test_two_numbers_of_one_picture_are_kept_on_one_side(nsd_copy, tmp_path):
    before = pack_nsd(nsd_copy, tmp_path / "a", val_fraction=0.2)
    ds = Dataset(tmp_path / "a")
    train, val = numbers(ds, ds.ids("train")), numbers(ds, ds.ids("val"))
    test = numbers(ds, ds.ids("test"))
    with h5py.File(nsd_copy / STIMULI, "r+") as handle:
        bricks = handle["imgBrick"]
        bricks[train[0]], bricks[train[1]] = bricks[test[0]], bricks[val[0]]
    told = pack_nsd(nsd_copy, tmp_path / "b", val_fraction=0.2)
    ds = Dataset(tmp_path / "b")
    assert [entry["what"] for entry in told["dropped"]] == [f"nsd-{train[0]:05d}"]
    assert train[0] not in numbers(ds, np.arange(len(ds))) and train[1] in numbers(ds, ds.ids("val"))
    assert told["samples"]["test"] == before["samples"]["test"]


def test_the_command_packs_and_reports(nsd_files, tmp_path):
    from typer.testing import CliRunner

    from cadiff.launch.cli import app

    call = ["pack", "nsd", str(nsd_files), str(tmp_path / "c"), "--subjects", "subj02", "--roi", "prf-visualrois:1,V1d"]
    done = CliRunner().invoke(
        app, [*call, "--roi", "floc-faces:OFA", "--train", "averaged", "--workers", "2", "--json"]
    )
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["voxels"] == 36 and told["samples"]["test"] == 8
