"""The probe: read-outs fitted on training rows only, features of whole signals, and what an encoder had seen."""

import numpy as np
import pytest
import torch

from cadiff.config import FmriModel
from cadiff.errors import ConfigError, DataError
from cadiff.exports import save_export
from cadiff.frozen import load_encoder, runs_trained_on, untrained_encoder
from cadiff.logistic import PENALTIES, Components, Standard, centroid_decode, fits, logistic_decode
from cadiff.models.fmri_mae import FmriMae
from cadiff.probe import probe
from cadiff.shards.dataset import Dataset
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent

MODEL = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Pack two people's five runs of three classes, 18 rows a run; the last run is the test split, run 3 validation."""

    def pack(name="set", voxels=(24, 24), seed=0):
        rng = np.random.default_rng(seed)
        folder = tmp_path_factory.mktemp("probe") / name

        def fill(pack):
            pack.split_by = "run"
            pack.declare("label", ["face", "house", "cat"])
            for who, size in zip("AB", voxels):
                pattern = rng.standard_normal((3, size))
                for run, split in enumerate(["train"] * 3 + ["val", "test"]):
                    labels = [("face", "house", "cat", None)[i % 4] for i in range(24)]
                    shown = np.array([pattern[i % 4] if i % 4 < 3 else np.zeros(size) for i in range(24)])
                    signals = (shown + 0.6 * rng.standard_normal((24, size))).astype(np.float32)
                    pack.add(make_records(who, f"run{run}", signals, split, None, labels))

        pack_folder(folder, "table", {"seed": seed}, {}, fill, silent)
        return Dataset(folder)

    return pack


@pytest.fixture(scope="module")
def dataset(study):
    return study()


def export_of(folder, dataset, *, phase="phase1", data=None, model=MODEL, voxels=24, hashes=None):
    """An export as phase 1 leaves it, of an untrained network whose patch weights are large enough to be heard."""
    torch.manual_seed(0)
    network = FmriMae(FmriModel.model_validate(model), voxels)
    torch.nn.init.normal_(network.patch_embed.proj.weight, std=1.0)
    job = {"model": model, "data": {"shards": [str(dataset.folder)], "subjects": [], **(data or {})}}
    lineage = {"data": [dataset.hash] if hashes is None else hashes}
    card = {"phase": phase, "job": job, "space": {"voxels": voxels, "classes": 3}, "steps": 7, "lineage": lineage}
    save_export(folder / "export", {"fmri": network.state_dict()}, card)
    return folder


def blobs(seed=0, rows=90, features=12, spread=1.0):
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    centre = np.random.default_rng(99).standard_normal((3, features))
    return (centre[label] + spread * rng.standard_normal((rows, features))), label, np.arange(rows) // 30


@pytest.mark.parametrize("features", [12, 200])
def test_the_solution_is_the_minimum_of_the_stated_loss(features):
    rows, label, _ = blobs(features=features)
    z, wanted = Standard.of(rows)(rows), np.eye(3)[label]
    *_, basis = np.linalg.svd(z, full_matrices=False)
    z = z @ basis.T
    for weights, penalty in zip(fits(z, wanted, PENALTIES), PENALTIES, strict=True):
        free = torch.tensor(weights, requires_grad=True)
        odds = torch.tensor(z) @ free[:-1] + free[-1]
        loss = torch.nn.functional.cross_entropy(odds, torch.tensor(label)) + penalty / 2 * free[:-1].square().sum()
        loss.backward()
        # In a strongly convex loss the gap to the minimum is at most |gradient|^2 / (2 * curvature).
        assert free.grad[:-1].square().sum() / (2 * penalty) < 5e-3 * loss.item()
        assert free.grad[-1].abs().max() < 5e-3


def test_a_probe_reads_what_is_there_and_chance_from_noise():
    train, label, group = blobs(0, spread=0.7)
    test, truth, _ = blobs(1, spread=0.7)
    found, penalty = logistic_decode(train, label, group, test)
    assert (found == truth).mean() > 0.9 and penalty in PENALTIES
    noise = np.random.default_rng(5).standard_normal((600, 5))
    found, _ = logistic_decode(noise[:300], np.arange(300) % 3, np.arange(300) // 100, noise[300:])
    assert (found == np.arange(300) % 3).mean() == pytest.approx(1 / 3, abs=0.1)


def test_class_numbers_with_gaps_and_constant_features_are_no_obstacle():
    train, label, group = blobs(0)
    train = np.concatenate([train, np.full((90, 1), 3.0)], 1)
    found, _ = logistic_decode(train, label * 5 + 2, group, train)
    assert set(found) <= {2, 7, 12} and (found == label * 5 + 2).mean() > 0.9


def test_the_penalty_is_chosen_by_leaving_groups_out():
    # The class can be read from a trait that every run has anew: only left-out runs show that this is no use.
    rng = np.random.default_rng(0)
    label, group = np.arange(120) % 2, np.arange(120) // 20
    runs = 3 * rng.standard_normal((6, 2, 40))[group, label]
    shared = 0.3 * np.where(label, 1.0, -1.0)[:, None] * np.ones((1, 4)) + 0.5 * rng.standard_normal((120, 4))
    rows = np.concatenate([runs, shared], 1)
    _, blind = logistic_decode(rows, label, np.arange(120) % 6, rows)
    _, aware = logistic_decode(rows, label, group, rows)
    assert blind < aware


def test_test_rows_change_nothing_that_was_fitted():
    train, label, group = blobs(0)
    one, _ = logistic_decode(train, label, group, train[:1])
    many, _ = logistic_decode(train, label, group, np.concatenate([train[:1], 1e6 * np.ones((50, 12))]))
    assert one[0] == many[0]


def test_components_are_those_of_a_singular_value_decomposition():
    for shape in ((30, 12), (12, 30)):
        rows = np.random.default_rng(0).standard_normal(shape)
        found = Components.of(rows, 5)(rows)
        left, value, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(found), np.abs(left[:, :5] * value[:5]), atol=1e-8)
    assert Components.of(rows, 100)(rows).shape == (12, 11)


def test_nearest_class_means_go_by_correlation():
    rows, label, _ = blobs(0, spread=0.3)
    assert (centroid_decode(rows, label, 7 * rows + 100) == label).all()


def test_what_cannot_be_fitted_is_said():
    rows, label, group = blobs(0)
    with pytest.raises(ConfigError, match="at least 2 training runs"):
        logistic_decode(rows, label, np.zeros(90), rows)
    with pytest.raises(ConfigError, match="89 labels"):
        logistic_decode(rows, label[:89], group, rows)


def test_features_are_the_encoders_tokens_with_nothing_hidden(dataset, tmp_path):
    encoder = load_encoder(export_of(tmp_path, dataset))
    found = encoder.features(dataset, np.array([5, 0]))
    with torch.no_grad():
        tokens = encoder.network(torch.from_numpy(dataset.signals(np.array([5, 0]), 24))).numpy()
    assert tokens.shape == (2, 7, 16)
    np.testing.assert_allclose(found["cls"], tokens[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["mean"], tokens[:, 1:].mean(1), atol=1e-6)
    np.testing.assert_allclose(found["patches"], tokens[:, 1:].reshape(2, -1), atol=1e-6)


def test_packed_encoders_see_each_subjects_own_patches(study, tmp_path):
    uneven = study("uneven", voxels=(24, 15))
    ids = np.array([0, len(uneven) - 1])
    packed = load_encoder(export_of(tmp_path / "p", uneven, data={"pad": "packed"})).features(uneven, ids)
    wrapped = load_encoder(export_of(tmp_path / "w", uneven)).features(uneven, ids)
    assert set(packed) == {"mean", "cls"} and set(wrapped) == {"mean", "cls", "patches"}
    np.testing.assert_allclose(packed["mean"][0], wrapped["mean"][0], atol=1e-6)
    assert np.abs(packed["mean"][1] - wrapped["mean"][1]).max() > 1e-3


def test_an_untrained_encoder_has_the_size_but_not_the_weights(dataset, tmp_path):
    run = export_of(tmp_path, dataset)
    blank, again = (untrained_encoder(run, 3).network.state_dict() for _ in range(2))
    assert all(torch.equal(blank[name], again[name]) for name in blank)
    assert not torch.equal(blank["cls_token"], load_encoder(run).network.cls_token)


def test_exports_that_a_probe_cannot_read_are_refused(dataset, tmp_path):
    with pytest.raises(ConfigError, match="reads phase 1"):
        load_encoder(export_of(tmp_path / "a", dataset, phase="prior"))
    with pytest.raises(ConfigError, match="clips of 4 frames"):
        load_encoder(export_of(tmp_path / "b", dataset, data={"clip_frames": 4}))
    with pytest.raises(DataError, match="no finished export"):
        load_encoder(tmp_path / "nowhere")


def test_what_an_encoder_was_trained_on_is_looked_up_in_its_sets(dataset, study, tmp_path):
    other = study("other", seed=1)
    seen = {(who, f"run{run}") for who in "AB" for run in range(3)}
    assert runs_trained_on(export_of(tmp_path / "a", dataset), dataset) == seen
    assert runs_trained_on(export_of(tmp_path / "b", other), dataset) == seen  # the same names, in another folder
    one = export_of(tmp_path / "c", dataset, data={"subjects": ["B"]})
    assert runs_trained_on(one, dataset) == {("B", f"run{run}") for run in range(3)}
    moved = export_of(tmp_path / "d", dataset, data={"shards": ["/gone"]})
    assert runs_trained_on(moved, dataset) == seen  # known by its hash
    assert runs_trained_on(export_of(tmp_path / "e", other, data={"shards": ["/gone"]}), dataset) is None
    changed = export_of(tmp_path / "f", other, hashes=["0" * 64])
    assert runs_trained_on(changed, dataset) is None
    assert runs_trained_on(export_of(tmp_path / "g", dataset, hashes=[]), dataset) is None


@pytest.fixture(scope="module")
def told(dataset, tmp_path_factory):
    return probe(export_of(tmp_path_factory.mktemp("run"), dataset), dataset, seed=1)


def test_a_record_holds_every_method_fold_and_difference(told):
    assert told["samples"] == 180 and told["chance"] == pytest.approx(1 / 3) and told["components"] == 16
    pools = ("mean", "cls", "patches")
    names = [f"{kind} {pool}" for kind in ("frozen", "untrained") for pool in pools]
    assert list(told["methods"]) == [*names, "voxels", "pca", "centroid"]
    for entry in told["methods"].values():
        assert len(entry["folds"]) == 5
        assert entry["accuracy"] == pytest.approx(np.mean(entry["folds"]))
        assert entry["low"] <= entry["accuracy"] <= entry["high"]
    assert told["methods"]["voxels"]["accuracy"] > 0.6 > told["chance"]
    assert told["methods"]["voxels"]["minus_voxels"] == [0, 0, 0]


def test_folds_say_what_the_encoder_had_seen_and_the_record_warns(told):
    assert [fold["name"] for fold in told["folds"]] == [f"run{i}" for i in range(5)]
    assert [fold["seen"] for fold in told["folds"]] == [1, 1, 1, 0, 0]
    assert len(told["unseen"]["voxels"]["folds"]) == 2
    assert told["unseen"]["voxels"]["folds"] == told["methods"]["voxels"]["folds"][3:]
    (warning,) = told["warnings"]
    assert "3 of the 5 held-out runs" in warning and "unseen" in warning


def test_subjects_can_be_held_out_and_unknown_training_is_a_warning(study, tmp_path):
    rng = np.random.default_rng(0)

    def fill(pack):
        pack.split_by = "subject"
        pattern = rng.standard_normal((2, 24))
        for who, split in zip("ABC", ("train", "val", "test")):
            labels = [("face", "house")[i % 2] for i in range(20)]
            signals = pattern[np.arange(20) % 2] + 0.5 * rng.standard_normal((20, 24))
            pack.add(make_records(who, "run0", signals.astype(np.float32), split, None, labels))

    pack_folder(tmp_path / "set", "table", {}, {}, fill, silent)
    dataset = Dataset(tmp_path / "set")
    run = export_of(tmp_path / "run", dataset, data={"shards": ["/gone"]}, hashes=["0" * 64])
    told = probe(run, dataset, hold_out="subject")
    assert [fold["name"] for fold in told["folds"]] == ["A", "B", "C"]
    assert all(fold["seen"] is None for fold in told["folds"]) and told["unseen"] is None
    assert "cannot be looked up" in told["warnings"][0]
    assert told["methods"]["voxels"]["accuracy"] > 0.9
    with pytest.raises(ConfigError, match="labelled samples of 1 runs"):
        probe(run, dataset, hold_out="run")
