"""Voxel adapters through whole jobs: ZeRO-3 on two ranks and one process agree; phase 3 and samples take them over."""

import numpy as np
import pytest
import torch
from diffusion_world import FMRI as SMALL
from diffusion_world import tiny_batch, tiny_job
from tiny_pairs import FMRI, IMAGE, phase2_job
from tuned_world import ALL_SPLIT

from cadiff.adapting import network_signals, start_by_ridge
from cadiff.config import dump_toml
from cadiff.errors import DataError
from cadiff.exports import load_part, read_card, save_export
from cadiff.models.adapter import stored_adapters
from cadiff.models.reconstructor import load_reconstructor
from cadiff.phases import Space, build_phase
from cadiff.phases.crosstune import CrossTune
from cadiff.sample import SampleOptions, sample_images, write_samples
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

SPACE = Space(32, 3, {"A": (30,), "B": (27,)})


def job_of(shards, name, adapter, init=None, **data):
    return phase2_job(
        name=name, seed=3, model=FMRI, image={**IMAGE, "train_encoder": True}, init=init or {},
        adapter={"kind": "linear", **adapter}, data={"shards": [str(shards)], "image_size": 16, **data},
        train={"steps": 4, "batch": 8, "log_every": 1, "save_every": 100, "val_every": 100, "val_batches": 1},
        optim={"lr": 1e-2, "weight_decay": 0.0, "schedule": "constant"},
        engine={"zero": 3, "precision": "fp32"}, track={"wandb": "off"},
    )  # fmt: skip


def tuned_on_a(tiny_set, folder):
    torch.manual_seed(0)
    job = job_of(tiny_set, "tuned", {}, subjects=["A"])
    tiny = CrossTune(job, SPACE)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    card = {"phase": "phase2", "job": job.model_dump(), "space": {"voxels": 32, "classes": 3}}
    states = {name: part.state_dict() for name, part in tiny.parts().items()}
    return save_export(folder, states, {**card, "architecture": tiny.architecture, "lineage": {"data": []}})


def plain_curve(job):
    """The losses of a plain loop in one process: no DeepSpeed, no ranks."""
    datasets = [Dataset(job.data.shards[0])]
    options = {"subjects": job.data.subjects, "image_size": 16, "width": 32, "seed": job.seed}
    part = job.data.stimuli_fraction
    stream = Stream(datasets, split="train", batch=8, micro_batch=8, stimuli_fraction=part, **options)
    torch.manual_seed(job.seed)
    phase = CrossTune(job, SPACE)
    if job.adapter.init == "ridge":
        start_by_ridge(phase.adapters, job, datasets)
    trained = [p for p in phase.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.optim.lr, betas=tuple(job.optim.betas), weight_decay=0.0)
    curve = []
    for step in range(job.train.steps):
        loss = sum(phase(stream.micro(step, 0)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.optim.clip)
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.multiprocess
def test_two_ranks_under_zero_3_are_a_plain_loop(warm, tiny_set, tmp_path):
    """With all trained, and with the maps alone from a ridge start."""
    tuned, part = tuned_on_a(tiny_set, tmp_path / "tuned"), {"subjects": ["B"], "stimuli_fraction": 0.5}
    jobs = {
        "all": job_of(tiny_set, "all", {"rank": 3}),
        "only": job_of(tiny_set, "only", {"only": True, "init": "ridge"}, {"tuned": str(tuned)}, **part),
    }
    for stem, job in jobs.items():
        config, run = tmp_path / f"{stem}.toml", tmp_path / stem
        config.write_text(dump_toml(job))
        warm.train(config, ALL_SPLIT, run, phase="phase2", ranks=2, say=lambda line: None)
        curve = [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]
        assert len(curve) == 4 and curve == pytest.approx(plain_curve(job), rel=1e-5)
    only = tmp_path / "only"
    assert read_card(only)["ridge"].keys() == {"B"} and "ridge" not in read_card(tmp_path / "all")
    assert read_card(only)["architecture"]["adapter"] == {"width": 32, "rank": 0, "subjects": {"B": 27}}
    frozen = load_part(tuned, "fmri")
    assert all(torch.equal(value, frozen[name]) for name, value in load_part(only, "fmri").items())
    moved = load_part(only, "adapters")
    assert moved["maps.of_B.keep"] != 0 and moved["maps.of_B.weight"].abs().sum() > 0


@pytest.fixture(scope="module")
def finished(chain, tiny_set, tmp_path_factory):
    """A phase 3 on subject A, from a phase 2 whose maps of A and B lead to 24 voxels."""
    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    tuned = CrossTune(phase2_job(model={**SMALL, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}, adapter={
        "kind": "linear", "width": 24}), SPACE)  # fmt: skip
    for parameter in tuned.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    card = {"phase": "phase2", "job": tuned.job.model_dump(), "space": {"voxels": 32, "classes": 3}}
    states = {name: part.state_dict() for name, part in tuned.parts().items()}
    save_export(folder / "phase2", states, {**card, "architecture": tuned.architecture})
    phase = phase3(chain, folder, tiny_set)
    states = {name: part.state_dict() for name, part in phase.parts().items()}
    job = small_job(chain, folder, tiny_set, ["A"])
    card = {"phase": "phase3", "job": job.model_dump(), "space": {"voxels": 32, "classes": 3}}
    save_export(folder / "phase3", states, {**card, "architecture": phase.architecture})
    return folder, phase


def small_job(chain, folder, tiny_set, subjects):
    init = {"prior": str(chain / "prior"), "fmri": str(folder / "phase2")}
    data = {"shards": [str(tiny_set)], "image_size": 16, "subjects": subjects}
    return tiny_job("phase3", model=SMALL, condition={"tokens": 6}, init=init, data=data)


def phase3(chain, folder, tiny_set, space=SPACE, subjects=("A",)):
    return build_phase(small_job(chain, folder, tiny_set, list(subjects)), space)


def test_phase_3_takes_the_maps_over_and_keeps_them(finished, chain, tiny_set):
    folder, _ = finished
    phase = phase3(chain, folder, tiny_set, subjects=())
    stored = stored_adapters(folder / "phase2")
    assert phase.adapters.subjects == {"A": 30, "B": 27} and phase.conditioner.fmri.length * 4 == 24
    for name, value in phase.adapters.state_dict().items():
        assert torch.equal(value, stored.state_dict()[name])
    tensors = tiny_batch() | {"subject": torch.tensor([0, 1, 0, 1])}
    phase(tensors)["noise"].backward()
    assert all(p.grad is None for p in phase.adapters.parameters())
    assert phase.conditioner.fmri.patch_embed.proj.weight.grad.abs().sum() > 0
    swapped = tensors | {"subject": 1 - tensors["subject"]}
    assert not torch.equal(phase(swapped)["noise"], phase(tensors)["noise"])
    assert torch.equal(phase.preview(tensors)["image"], tensors["image"])


def test_phase_3_keeps_the_maps_of_other_subjects_and_does_not_run_them(finished):
    _, phase = finished
    ran = []
    hooks = [phase.adapters.map_of(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in "AB"]
    batch = tiny_batch() | {"subject": torch.zeros(4, dtype=torch.int64)}
    assert phase(batch)["noise"].isfinite() and ran == ["A"]
    for hook in hooks:
        hook.remove()


def test_phase_3_refuses_a_subject_without_a_map(finished, chain, tiny_set):
    folder, _ = finished
    with pytest.raises(DataError, match="'A' has 31 voxels"):
        phase3(chain, folder, tiny_set, Space(32, 3, {"A": (31,), "B": (27,)}))


def test_samples_see_signals_through_their_subjects_map(finished, tiny_set, tmp_path):
    folder, phase = finished
    model, dataset = load_reconstructor(folder / "phase3", "cpu"), Dataset(tiny_set)
    assert model.voxels == 24
    ids = np.array([0, len(dataset) - 1])
    with torch.no_grad():
        rows = zip("AB", torch.from_numpy(dataset.signals(ids, 32)))
        signal = torch.stack([phase.adapters.map_of(name)(row[None])[0] for name, row in rows]).numpy()
    np.testing.assert_allclose(network_signals(model.adapters, dataset, ids, 24), signal, atol=1e-6)
    quick = SampleOptions(samples=1, steps=2, scheduler="ddim")
    write_samples(tmp_path, folder / "phase3", dataset, quick, subjects=["B"], limit=2)
    with np.load(tmp_path / "samples.npz") as stored:
        ids, pictures = stored["sample_id"], stored["reconstruction"]
    expected = sample_images(model, network_signals(model.adapters, dataset, ids, 24), ids, quick)
    assert np.array_equal(pictures, expected)


def test_samples_of_a_subject_without_a_map_are_refused(finished, tiny_set, tmp_path, chain):
    folder, _ = finished
    torch.manual_seed(0)
    model, dataset = load_reconstructor(folder / "phase3", "cpu"), Dataset(tiny_set)
    dataset.subjects[1] = "stranger"
    with pytest.raises(DataError, match="'stranger' has no voxel adapter in this export, only A, B have"):
        network_signals(model.adapters, dataset, dataset.ids("test"), model.voxels)
