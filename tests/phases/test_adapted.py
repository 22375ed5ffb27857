"""Voxel adapters in phase 2: trained with the network or alone, taken over by a new subject, begun by ridge."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_pairs import FMRI, batch, phase1_job, phase2_job, reached, trained, value

from cadiff.adapting import _own_signals, network_signals, start_by_ridge
from cadiff.beginning import RIDGE, begin_by_ridge, ridge_of
from cadiff.distributed import Place
from cadiff.errors import ConfigError
from cadiff.exports import save_export
from cadiff.files import sha256, write_json
from cadiff.fitting import subject_voxels
from cadiff.frozen import load_encoder
from cadiff.layers import nothing_hidden
from cadiff.phases import Space
from cadiff.phases.crosstune import CrossTune
from cadiff.phases.pretrain import Pretrain
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import Chosen
from cadiff.shards.stream import Stream

PAIR = Space(voxels=24, classes=3, subjects={"A": (24,), "B": (21,)})
LINEAR = {"kind": "linear"}


def phase(space=PAIR, **sections):
    torch.manual_seed(0)
    sections = {"adapter": LINEAR, **sections}
    return CrossTune(phase2_job(**sections), space)


def export(tiny, folder, space=PAIR, name="phase2"):
    """What ``finish`` leaves of a phase."""
    states = {key: part.state_dict() for key, part in tiny.parts().items()}
    card = {"phase": name, "job": tiny.job.model_dump(), "space": {"voxels": space.voxels, "classes": space.classes}}
    return save_export(folder, states, {**card, "architecture": tiny.architecture, "lineage": {"data": []}})


@pytest.fixture
def tuned(tmp_path):
    """A phase 2 of subjects A and B that has learned something everywhere."""
    tiny = phase()
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return export(tiny, tmp_path / "tuned")


@pytest.fixture
def dataset(tiny_set):
    return Dataset(tiny_set)


def test_fresh_maps_change_no_loss():
    plain, tensors = phase(adapter={}), batch()
    tensors["signal"][1::2, 21:] = tensors["signal"][1::2, :3]  # B's own 21 voxels, wrapped
    assert plain.adapters is None and "adapters" not in plain.parts()
    assert value(phase()(tensors)) == value(plain(tensors))


def test_both_terms_train_the_maps():
    for loss in ({"fmri": 0.0}, {"image": 0.0}):
        tiny = phase(loss=loss)
        sum(tiny(batch()).values()).backward()
        assert {name for name, _ in tiny.adapters.named_parameters(prefix="adapters")} <= reached(tiny)
        assert all(p.grad.abs().sum() > 0 for p in tiny.adapters.parameters())


def test_the_fmri_target_carries_no_gradient():
    """With every token's influence gone the prediction is a constant, and the maps could only pull the target to it."""
    tiny = phase(loss={"image": 0.0})
    torch.nn.init.zeros_(tiny.fmri.decoder_pred.weight)
    tiny(batch())["fmri"].backward()
    assert all(p.grad.abs().sum() == 0 for p in tiny.adapters.parameters())


def test_the_adapted_signal_does_not_collapse():
    tiny, tensors = phase(loss={"image": 0.0}), batch()
    scale = tiny.adapters(tensors["signal"], tensors["subject"]).std().item()
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=3e-3, weight_decay=0.05)
    for epoch in range(200):
        loss = sum(tiny(tensors | {"epoch": torch.full((6,), epoch)}).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = tiny.adapters(tensors["signal"], tensors["subject"])
    assert (learned - tensors["signal"]).abs().max() > 0.05  # the maps did learn
    assert learned.std().item() > 0.7 * scale


def test_only_the_maps_are_trained_if_asked(tuned):
    tiny = phase(adapter={**LINEAR, "only": True}, init={"tuned": str(tuned)}, image={"train_encoder": True})
    assert trained(tiny) == {name for name, _ in tiny.adapters.named_parameters(prefix="adapters")}
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tiny.parameters() if p.requires_grad], lr=1e-2)
    sum(tiny(batch()).values()).backward()
    optimizer.step()
    moved = {name.split(".")[0] for name, value in tiny.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"adapters"} and reached(tiny) == trained(tiny)


def test_a_new_subject_joins_a_finished_network(tuned):
    wider = Space(voxels=40, classes=3, subjects={"A": (24,), "new": (37,), "B": (21,)})
    tiny = phase(wider, init={"tuned": str(tuned)}, data={"shards": ["x"], "image_size": 16, "subjects": ["new", "A"]})
    assert tiny.adapters.subjects == {"A": 24, "new": 37} and tiny.adapters.width == 24 == tiny.fmri.length * 4
    stored = load_encoder(tuned)
    assert torch.equal(tiny.adapters.map_of("A").weight, stored.adapters.map_of("A").weight)
    assert torch.equal(tiny.fmri.cls_token, stored.network.cls_token)
    assert {name.split(".")[1] for name in tiny.init_report["adapters"]["missing"]} == {"of_new"}
    tensors = batch() | {"signal": torch.randn(6, 40), "subject": torch.tensor([1, 0, 1, 0, 1, 0])}
    assert all(term.isfinite() for term in tiny(tensors).values())


def test_the_shared_space_is_as_wide_as_told_or_as_the_widest(tmp_path):
    assert phase().adapters.width == 24
    assert phase(adapter={**LINEAR, "width": 32, "rank": 2}).fmri.length == 8
    only_b = phase(data={"shards": ["x"], "image_size": 16, "subjects": ["B"]})
    assert only_b.adapters.subjects == {"B": 21} and only_b.adapters.width == 24
    torch.manual_seed(1)
    pretrain = Pretrain(phase1_job(model=FMRI), Space(voxels=36, classes=0))
    card = {"phase": "phase1", "space": {"voxels": 36, "classes": 0}, "architecture": {}}
    save_export(tmp_path, {"fmri": pretrain.fmri.state_dict()}, card)
    assert phase(init={"fmri": str(tmp_path)}).adapters.width == 36


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"adapter": {}, "init": {"tuned": "TUNED"}}, "adapter.kind=linear"),
        ({"adapter": {"rank": 2}}, "adapter.kind=linear"),
        ({"adapter": {**LINEAR, "only": True}}, "init.tuned"),
        ({"adapter": {**LINEAR, "init": "ridge"}}, "init.tuned"),
        ({"adapter": {**LINEAR, "width": 32}, "init": {"tuned": "TUNED"}}, "lead to 24 voxels"),
        ({"adapter": {**LINEAR, "rank": 2}, "init": {"tuned": "TUNED"}}, "another rank"),
        ({"init": {"tuned": "TUNED", "fmri": "TUNED"}}, "must be empty beside it"),
        ({"init": {"tuned": "TUNED"}, "model": {**FMRI, "depth": 1}}, "part 'fmri' differ"),
        ({"init": {"tuned": "TUNED"}, "cross": {"layers": 1}}, "differ in shape"),
    ],
)
def test_contradictions_are_refused(tuned, sections, word):
    if "init" in sections:
        sections = sections | {"init": {key: str(tuned) for key in sections["init"]}}
    with pytest.raises(ConfigError, match=word):
        phase(**sections)


def test_one_subject_of_two_voxel_counts_is_refused(dataset):
    with pytest.raises(ConfigError, match="subject A has 20 and 24 voxels"):
        phase(Space(24, 3, {"A": (20, 24)}))
    assert subject_voxels([dataset, dataset], ["A", "B"]) == {"A": (30,), "B": (27,)}


def test_a_preview_shows_adapted_signals(tuned):
    tiny, tensors = phase(init={"tuned": str(tuned)}), batch()
    adapted = tiny.adapters(tensors["signal"], tensors["subject"])
    torch.testing.assert_close(tiny.preview(tensors)["signal"], adapted[:4])


def test_a_part_of_the_stimuli_lies_within_a_larger_part(dataset):
    def seen(fraction, seed=3, **options):
        stream = Stream(
            [dataset], split="train", batch=2, micro_batch=2, width=32, seed=seed, stimuli_fraction=fraction, **options
        )
        ids = np.concatenate([stream.sample_ids(step) for step in range(stream.steps_per_epoch)])
        subject_N = dataset.table.subject[ids]
        return [set(dataset.table.stimulus[ids[subject_N == subject]].tolist()) for subject in (0, 1)]

    parts = [seen(fraction) for fraction in (0.1, 0.25, 0.5, 1.0)]
    assert [len(part[0]) for part in parts] == [3, 8, 16, 32]
    for part, larger in pairwise(parts):
        assert part[0] < larger[0] and part[0] == part[1]
    assert seen(0.25, subjects=["B"])[1] == parts[1][0]  # whoever else is there
    assert seen(0.25, seed=4) != parts[1]
    with pytest.raises(ConfigError, match="leaves 6 of 64 samples"):
        Stream([dataset], split="train", batch=8, micro_batch=8, width=32, stimuli_fraction=0.1)


def world_space(dataset):
    return Space(32, 3, subject_voxels([dataset], dataset.subjects))


def test_a_ridge_map_says_of_new_stimuli_what_the_known_subjects_say(tiny_set, dataset, tmp_path):
    one = {"shards": [str(tiny_set)], "image_size": 16, "subjects": ["A"]}
    known = export(phase(world_space(dataset), data=one), tmp_path / "known", world_space(dataset))
    data = {**one, "subjects": ["B"], "stimuli_fraction": 0.5}
    tiny = phase(
        world_space(dataset), data=data, init={"tuned": str(known)}, adapter={**LINEAR, "init": "ridge", "only": True}
    )
    explained = start_by_ridge(tiny.adapters, tiny.job, [dataset])
    assert explained.keys() == {"B"} and explained["B"] > 0.3
    val = [dataset.ids("val", [name]) for name in ("A", "B")]
    truth = network_signals(load_encoder(known).adapters, dataset, val[0], 32)
    with torch.no_grad():
        learned = network_signals(tiny.adapters, dataset, val[1], 32)
    wrapped = dataset.signals(val[1], 32)
    right = [np.corrcoef(truth.ravel(), other.ravel())[0, 1] for other in (learned, wrapped)]
    assert right[0] > 0.7 > 0.3 > right[1]
    assert 0.7 < (learned - learned.mean(0)).std() / (truth - truth.mean(0)).std() < 1.3  # not shrunk


@pytest.fixture
def newcomer(tiny_set, dataset, tmp_path):
    """A job that starts B's map by ridge regression on A's, as a function of what its data section says more."""
    one = {"shards": [str(tiny_set)], "image_size": 16, "subjects": ["A"]}
    known = export(phase(world_space(dataset), data=one), tmp_path / "known", world_space(dataset))

    def build(rank=0, **data):
        return phase(
            world_space(dataset), data={**one, "subjects": ["B"], **data}, init={"tuned": str(known)},
            adapter={**LINEAR, "init": "ridge", "rank": rank},
        )  # fmt: skip

    return build


def test_a_job_that_goes_on_or_is_over_fits_no_map_again(newcomer, dataset, tmp_path):
    tiny, runs = newcomer(), {name: tmp_path / name for name in ("fresh", "cut", "damaged", "over")}
    for name in ("cut", "damaged"):
        folder = runs[name] / "checkpoints" / "step-000004"
        write_json(folder / "MANIFEST.json", {})
        (folder / "COMMITTED").write_text(sha256(folder / "MANIFEST.json"))
    (runs["damaged"] / "checkpoints" / "step-000004" / "MANIFEST.json").write_text("{ }")
    for path in ("summary.json", "export/card.json"):
        write_json(runs["over"] / path, {})
    fitted = {name: begin_by_ridge(tiny, tiny.job, run, Place(), [dataset]) for name, run in runs.items()}
    assert fitted["cut"] == fitted["over"] == {} and fitted["fresh"] == fitted["damaged"] and fitted["fresh"]["B"] > 0.3
    assert not runs["fresh"].exists() and ridge_of(runs["fresh"]) == {}
    assert begin_by_ridge(phase(), phase().job, runs["fresh"], Place(), [dataset]) == {}  # where nobody asks for it
    write_json(runs["fresh"] / RIDGE, fitted["fresh"])
    assert ridge_of(runs["fresh"]) == {"ridge": fitted["fresh"]}


def test_damaged_samples_of_known_and_new_subjects_are_left_out_of_a_ridge_start(newcomer, dataset, caplog):
    """Each subject's block is halved here, and one half of each is damaged."""
    half = np.arange(len(dataset)) % 32 >= 24
    dataset.block_of = 2 * dataset.block_of + half
    lost = np.unique(dataset.block_of[half])
    dataset.checks.damaged = lambda blocks: np.intersect1d(blocks, lost)
    asked = []
    signals = dataset.signals
    dataset.signals = lambda ids, width: asked.extend(ids.tolist()) or signals(ids, width)
    dataset.checks.require = lambda blocks: None
    tiny = newcomer(on_damage="quarantine")
    assert start_by_ridge(tiny.adapters, tiny.job, [dataset])["B"] > 0.2
    assert asked and not half[asked].any()
    assert caplog.text.count("are damaged and left out") == 2


def test_a_set_without_a_subjects_samples_may_have_another_width(dataset):
    ids = dataset.ids("train", ["B"])[:3]
    narrow = SimpleNamespace(voxels=20, signals=lambda ids, width: np.zeros((len(ids), width), np.float32))
    found = _own_signals([narrow, dataset], Chosen(np.ones(3, np.int64), ids), 27)
    assert np.array_equal(found, dataset.signals(ids, 30)[:, :27])


def test_large_maps_are_warned_of_by_the_key_that_makes_them_small(monkeypatch, caplog):
    monkeypatch.setattr("cadiff.phases.adapted.MANY", 1000)  # two maps of 24 voxels have 1,130 weights
    phase()
    assert caplog.text.count("adapter.rank") == 1
    caplog.clear()
    phase(adapter={**LINEAR, "rank": 2})
    assert "adapter.rank" not in caplog.text


def test_a_ridge_start_needs_both_the_known_and_the_new(tiny_set, dataset, tmp_path):
    data = {"shards": [str(tiny_set)], "image_size": 16}
    known = export(phase(world_space(dataset), data=data), tmp_path / "known", world_space(dataset))
    tiny = phase(world_space(dataset), data=data, init={"tuned": str(known)}, adapter={**LINEAR, "init": "ridge"})
    with pytest.raises(ConfigError, match=r"ridge.*: 0 of"):
        start_by_ridge(tiny.adapters, tiny.job, [dataset])


def test_the_probe_reads_signals_through_their_maps(dataset, tmp_path):
    tiny = phase(world_space(dataset), adapter={**LINEAR, "width": 40})
    for parameter in tiny.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    encoder = load_encoder(export(tiny, tmp_path, world_space(dataset)))
    ids = np.array([0, len(dataset) - 1, 3])
    signal = torch.from_numpy(dataset.signals(ids, 32))
    with torch.no_grad():
        adapted = tiny.adapters(signal, torch.from_numpy(dataset.table.subject[ids].astype(np.int64)))
        expected = tiny.fmri.encode(adapted, nothing_hidden(3, 10, torch.device("cpu")))[:, 0]
    np.testing.assert_allclose(encoder.features(dataset, ids)["cls"], expected, atol=1e-5)
