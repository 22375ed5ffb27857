"""THINGS-fMRI: averaged test stimuli, train-only statistics, and what is kept of trials, voxels and pictures."""

import hashlib
import shutil

import numpy as np
import pytest
from things_world import TRIALS, read

from cadiff.errors import ConfigError
from cadiff.shards import pandas_hdf
from cadiff.shards.dataset import Dataset
from cadiff.shards.synthetic.things_files import write_fixed, write_table
from cadiff.shards.things import pack_things
from cadiff.shards.verify import verify


def in_visual(voxels):
    return np.array([any(row[name] == "1" for name in row if not name.startswith(("glasser", "voxel", "subject", "nc_",
                     "split", "prf-"))) for row in voxels])  # fmt: skip


def test_statistics_come_from_training_trials_and_tests_are_means_over_repeats(things_files, things_set):
    assert verify(things_set.folder) == []
    table, voxels = (read(things_files[0] / f"betas_csv/sub-02_{name}Metadata.csv") for name in ("Stimulus", "Voxel"))
    betas = things_files[1]["sub-02"][in_visual(voxels)].T
    held = {things_set.stimuli[i] for i in things_set.table.stimulus[things_set.ids("val")]}
    learnt = [row["trial_type"] == "train" and row["stimulus"] not in held for row in table]
    assert len(held) == 4 and sum(learnt) == 14
    scaled = (betas - betas[learnt].mean(0)) / betas[learnt].std(0)
    train = things_set.ids("train", ["sub-02"])
    np.testing.assert_allclose(things_set.signals(train, betas.shape[1]), scaled[learnt], atol=4e-3)
    test = things_set.ids("test", ["sub-02"])
    means = test[things_set.table.repeat[test] == -1]
    assert len(means) == 3 and len(test) == 12
    for sample in means:
        rows = [row["stimulus"] == things_set.stimuli[things_set.table.stimulus[sample]] for row in table]
        assert sum(rows) == 3
        signal = things_set.signals(np.array([sample]), betas.shape[1])[0]
        np.testing.assert_allclose(signal, scaled[rows].mean(0), atol=4e-3)
    np.testing.assert_allclose(things_set.stats("sub-02").mean, betas[learnt].mean(0), rtol=1e-4, atol=1e-6)


def test_runs_keep_their_trials_in_order_with_names_and_repeats(things_files, things_set):
    table = read(things_files[0] / "betas_csv/sub-01_StimulusMetadata.csv")
    trials = np.flatnonzero((things_set.table.subject == 0) & (things_set.table.repeat >= 0))
    assert [things_set.stimuli[i] for i in things_set.table.stimulus[trials]] == [row["stimulus"] for row in table]
    assert [things_set.classes[i] for i in things_set.table.label[trials]] == [row["concept"] for row in table]
    wanted = [f"ses-{int(row['session']):02d}_run-{int(row['run']):02d}" for row in table]
    assert [things_set.runs[i] for i in things_set.table.run[trials]] == wanted and "ses-03_run-02" in wanted
    assert [things_set.sessions[i] for i in things_set.table.session[trials]] == [name[:6] for name in wanted]
    name = next(row["stimulus"] for row in table if row["trial_type"] == "test")
    shown = trials[things_set.table.stimulus[trials] == things_set.stimuli.index(name)]
    assert things_set.table.repeat[shown].tolist() == [0, 1, 2]
    for block in set(things_set.block_of.tolist()):
        assert len({things_set.table.run[i] for i in np.flatnonzero(things_set.block_of == block)}) == 1


def test_splits_share_no_stimulus_and_every_stimulus_has_its_picture(things_set):
    of = {split: set(things_set.table.stimulus[things_set.ids(split)].tolist()) for split in ("train", "val", "test")}
    assert of["val"] and not of["train"] & of["val"] and not (of["train"] | of["val"]) & of["test"]
    assert len(things_set.stimuli) == 21 and things_set.has_picture.all()
    assert "thing0_04s.jpg" in things_set.stimuli and sorted(things_set.classes) == [f"thing{i}" for i in range(6)]


def test_voxels_are_known_by_id_place_ceiling_and_region(things_files, things_set):
    voxels = read(things_files[0] / "betas_csv/sub-01_VoxelMetadata.csv")
    ids = things_set.array("sub-01", "ids")
    assert ids.tolist() == np.flatnonzero(in_visual(voxels)).tolist()
    assert things_set.array("sub-01", "xyz")[-1].tolist() == [float(voxels[ids[-1]][f"voxel_{axis}"]) for axis in "xyz"]
    ceiling = [float(voxels[ids[5]][name]) for name in ("nc_singletrial", "nc_testset")]
    np.testing.assert_allclose(things_set.array("sub-01", "noise_ceiling")[5], ceiling, rtol=1e-5)
    rois = things_set.rois["sub-01"]
    columns = [name for name in rois if name in voxels[0]]
    assert {"lLOC", "rLOC"} <= set(columns)
    for name in columns:
        assert rois[name].tolist() == [place for place, i in enumerate(ids) if voxels[i][name] == "1"]
    both = [voxels[i]["lLOC"] == "1" or voxels[i]["rLOC"] == "1" for i in ids]
    assert any(both) and rois["LOC"].tolist() == np.flatnonzero(both).tolist()


def count(things_files, tmp_path, **options):
    """Voxels of subject 1 that are packed."""
    summary = pack_things(things_files[0], tmp_path / "out", subjects=["sub-01"], **options)
    shutil.rmtree(tmp_path / "out")
    return summary["voxels"]


def test_regions_are_columns_areas_of_both_sides_or_everything(things_files, tmp_path):
    voxels = read(things_files[0] / "betas_csv/sub-01_VoxelMetadata.csv")

    def holding(*names):
        return sum(any(row[name] == "1" for name in names) for row in voxels)

    assert count(things_files, tmp_path, roi="V1") == holding("V1") > 0
    assert count(things_files, tmp_path, roi="LOC") == holding("lLOC", "rLOC") > 0
    assert count(things_files, tmp_path, roi=["V1", "glasser-V2"]) == holding("V1", "glasser-V2") > holding("V1")
    assert count(things_files, tmp_path, roi="all") == 90
    assert count(things_files, tmp_path) == in_visual(voxels).sum() < 90
    with pytest.raises(ConfigError, match=r"no region 'glaser-V1'. Did you mean 'glasser-V1'"):
        pack_things(things_files[0], tmp_path / "out", roi="glaser-V1")


def test_voxels_below_a_noise_ceiling_are_left_out_and_reported(things_files, tmp_path):
    voxels = read(things_files[0] / "betas_csv/sub-01_VoxelMetadata.csv")
    kept = sum(float(row["nc_singletrial"]) >= 8 for row in voxels)
    summary = pack_things(things_files[0], tmp_path / "out", subjects=["sub-01"], roi="all", min_noise_ceiling=8.0)
    assert 0 < kept < 90 and summary["voxels"] == kept
    told = {"what": f"sub-01: {90 - kept} voxels", "why": "nc_singletrial below 8.0 per cent"}
    assert summary["dropped"] == [told]
    with pytest.raises(ConfigError, match="has no voxels"):
        pack_things(things_files[0], tmp_path / "none", min_noise_ceiling=99.0)


def test_one_mean_and_deviation_serve_all_voxels_if_wanted(things_files, tmp_path, monkeypatch):
    monkeypatch.setattr(pandas_hdf, "SLAB_BYTES", 7 * TRIALS * 8)
    pack_things(things_files[0], tmp_path / "out", subjects=["sub-01"], roi="all", val_fraction=0, normalise="scalar")
    ds, table = Dataset(tmp_path / "out"), read(things_files[0] / "betas_csv/sub-01_StimulusMetadata.csv")
    learnt = things_files[1]["sub-01"].T[[row["trial_type"] == "train" for row in table]]
    np.testing.assert_allclose(ds.stats("sub-01").mean, [learnt.mean()], rtol=1e-5)
    np.testing.assert_allclose(ds.stats("sub-01").std, [learnt.std()], rtol=1e-6)
    wanted = (learnt - learnt.mean()) / learnt.std()
    np.testing.assert_allclose(ds.signals(ds.ids("train"), 90), wanted, atol=4e-3)


def shards(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_packing_is_repeatable_and_slabs_do_not_show(things_files, tmp_path, monkeypatch):
    first = pack_things(things_files[0], tmp_path / "a")
    assert pack_things(things_files[0], tmp_path / "a")["already"]
    monkeypatch.setattr(pandas_hdf, "SLAB_BYTES", 1)
    assert pack_things(things_files[0], tmp_path / "b")["hash"] == first["hash"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_other_layouts_hold_the_same_numbers(things_files, things_copy):
    pack_things(things_copy, things_copy / "released")
    path, betas = things_copy / "sub-01_ResponseData.h5", things_files[1]["sub-01"]
    write_fixed(path, betas, [str(i) for i in range(TRIALS)])
    pack_things(things_copy, things_copy / "text")
    write_table(path, betas)
    pack_things(things_copy, things_copy / "table")
    write_fixed(path, betas.astype(np.float32))
    pack_things(things_copy, things_copy / "single")
    place = things_copy / "ds004192/derivatives/ICA-betas/sub-01/voxel-metadata"
    place.mkdir(parents=True)
    shutil.copy(path, place / "sub-01_task-things_voxel-wise-responses.h5")
    for old, new in (("Stimulus", "stimulus"), ("Voxel", "voxel")):
        text = (things_copy / f"sub-01_{old}Metadata.csv").read_text().replace(",", "\t" if new == "voxel" else ",")
        (place / f"sub-01_task-things_{new}-metadata.tsv").write_text(text)
    pack_things(things_copy / "ds004192", things_copy / "openneuro")
    wanted = shards(things_copy / "released")
    assert wanted and all(shards(things_copy / name) == wanted for name in ("text", "table", "single", "openneuro"))


def test_an_older_table_without_concepts_names_them_by_the_file(things_copy):
    path = things_copy / "sub-01_StimulusMetadata.csv"
    path.write_text("\n".join(line.rpartition(",")[0] for line in path.read_text().splitlines()) + "\n")
    pack_things(things_copy, things_copy / "out")
    assert sorted(Dataset(things_copy / "out").classes) == [f"thing{i}" for i in range(6)]


def test_a_constant_voxel_becomes_zeros_and_is_counted(things_files, things_copy):
    betas = things_files[1]["sub-01"].copy()
    betas[3] = 0.5
    write_fixed(things_copy / "sub-01_ResponseData.h5", betas)
    assert pack_things(things_copy, things_copy / "out", roi="all")["notes"] == {"flat_voxels": {"sub-01": 1}}
    assert (Dataset(things_copy / "out").signals(np.arange(20), 90)[:, 3] == 0).all()


def test_the_command_packs_and_says_so(things_files, tmp_path, capsys):
    from cadiff.launch.cli import main

    words = [
        "pack",
        "things",
        things_files[0],
        tmp_path / "out",
        "--roi",
        "V1,LOC",
        "--subjects",
        "sub-02",
        "--workers",
        "2",
        "--quiet",
    ]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code
    assert Dataset(tmp_path / "out").subjects == ["sub-02"]
    said = capsys.readouterr().out
    assert all(part in said for part in ("packed in", "17 train", "1 val", "3 test", "1 subjects"))
