"""Sampling: pictures that depend on seed, sample and signal only, and files that say how they were made."""

import json

import numpy as np
import pytest
import torch
from diffusion_world import SPACE
from PIL import Image

from cadiff.comparison import read_samples
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part, read_card, save_export
from cadiff.models.reconstructor import load_reconstructor
from cadiff.sample import (
    SampleOptions,
    decode_latents,
    encode_images,
    held_out,
    sample_images,
    shuffled_rows,
    write_samples,
)
from cadiff.shards.dataset import Dataset

QUICK = SampleOptions(samples=2, steps=3, scheduler="ddim", seed=1, batch=4)


@pytest.fixture(scope="module")
def model(chain):
    return load_reconstructor(chain / "phase3", "cpu")


SIGNAL = np.random.default_rng(0).standard_normal((3, SPACE.voxels)).astype(np.float32)
IDS = np.array([4, 9, 2])


def changed(options: SampleOptions, **values) -> SampleOptions:
    return SampleOptions(**{**options.__dict__, **values})


def test_pictures_do_not_depend_on_the_batch_they_are_made_in(model):
    together = sample_images(model, SIGNAL, IDS, changed(QUICK, batch=6)).astype(int)
    assert together.shape == (3, 2, 3, 16, 16)
    apart = sample_images(model, SIGNAL, IDS, changed(QUICK, batch=1))
    assert np.abs(together - apart).max() <= 1
    alone = sample_images(model, SIGNAL[1:2], IDS[1:2], QUICK)
    assert np.abs(together[1] - alone[0]).max() <= 1


def test_pictures_repeat_and_seed_sample_and_k_change_them(model):
    first = sample_images(model, SIGNAL, IDS, QUICK)
    assert np.array_equal(first, sample_images(model, SIGNAL, IDS, QUICK))
    assert not np.array_equal(first, sample_images(model, SIGNAL, IDS, changed(QUICK, seed=2)))
    assert not np.array_equal(first, sample_images(model, SIGNAL, IDS + 1, QUICK))
    assert not np.array_equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize("scheduler", ["plms", "dpm"])
def test_every_sampler_gives_pictures(model, scheduler):
    pictures = sample_images(model, SIGNAL, IDS, changed(QUICK, scheduler=scheduler, steps=5))
    assert pictures.dtype == np.uint8
    assert pictures.std() > 0


def test_plms_calls_the_network_once_more_than_it_has_steps(model, monkeypatch):
    calls = []
    predict = type(model.diffusion).forward

    def counted(self, noisy, time, *condition):
        calls.append(int(time[0]))
        return predict(self, noisy, time, *condition)

    monkeypatch.setattr(type(model.diffusion), "forward", counted)
    sample_images(model, SIGNAL[:1], IDS[:1], SampleOptions(samples=1, steps=250, seed=1))
    assert len(calls) == 251
    assert sorted(set(calls)) == list(range(1, 998, 4))


def test_guidance_of_one_is_none_and_more_changes_the_picture(model):
    plain = sample_images(model, SIGNAL, IDS, QUICK)
    assert not np.array_equal(plain, sample_images(model, SIGNAL, IDS, changed(QUICK, guidance=3.0)))
    nothing = sample_images(model, SIGNAL, IDS, changed(QUICK, guidance=0.0))
    assert np.array_equal(nothing, sample_images(model, -SIGNAL, IDS, changed(QUICK, guidance=0.0)))


def test_progress_counts_pictures(model):
    seen = []
    sample_images(model, SIGNAL, IDS, QUICK, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]


def test_signals_of_another_width_are_refused(model):
    with pytest.raises(ConfigError, match="31 voxels"):
        sample_images(model, SIGNAL[:, :31], IDS, QUICK)


def test_diverged_weights_are_reported(chain):
    broken = load_reconstructor(chain / "phase3", "cpu")
    with torch.no_grad():
        broken.diffusion.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        sample_images(broken, SIGNAL, IDS, QUICK)


def test_only_phase_3_can_be_sampled(chain):
    with pytest.raises(ConfigError, match="sampling needs phase 3"):
        load_reconstructor(chain / "prior")


def test_latents_go_through_the_exported_first_stage(chain, model):
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    latents = encode_images(chain / "phase3", images, batch=2)
    assert latents.shape == (5, 3, 8, 8) and latents.dtype == np.float32
    assert np.allclose(latents, encode_images(chain / "prior", images), atol=1e-5)
    pictures = decode_latents(chain / "phase3", latents, batch=2)
    assert pictures.shape == images.shape and pictures.dtype == np.uint8


def test_shuffling_takes_another_signal_of_the_same_subject(tiny_set):
    dataset = Dataset(tiny_set)
    ids = dataset.ids(split="test")
    shuffled = shuffled_rows(dataset, ids, seed=1)
    assert not (shuffled == ids).any()
    assert sorted(shuffled) == sorted(ids)
    assert np.array_equal(dataset.table.subject[shuffled], dataset.table.subject[ids])
    assert not np.array_equal(shuffled, shuffled_rows(dataset, ids, seed=2))


def test_held_out_samples_can_be_limited_and_averages_are_preferred(tiny_set):
    dataset = Dataset(tiny_set)
    assert len(held_out(dataset)) == 16
    assert len(held_out(dataset, ["A"])) == 8
    assert len(held_out(dataset, limit=5)) == 5
    every = held_out(dataset)
    dataset.table.repeat = dataset.table.repeat.copy()
    dataset.table.repeat[:] = 0
    dataset.table.repeat[every[3:6]] = -1
    assert np.array_equal(held_out(dataset), every[3:6])


def test_a_set_without_pictures_held_out_is_refused(tiny_set):
    dataset = Dataset(tiny_set)
    dataset.table.stimulus = np.full_like(dataset.table.stimulus, -1)
    with pytest.raises(ConfigError, match="no test samples"):
        held_out(dataset)


def test_the_written_folder_holds_truth_pictures_and_their_origin(tiny_set, chain, tmp_path):
    dataset = Dataset(tiny_set)
    said = write_samples(tmp_path / "real", chain / "phase3", dataset, QUICK, limit=3)
    with np.load(tmp_path / "real" / "samples.npz") as held:
        content = dict(held)
    assert content["reconstruction"].shape == (3, 2, 3, 16, 16)
    assert np.array_equal(content["truth"], dataset.images(content["stimulus"], 16))
    assert np.array_equal(content["label"], dataset.table.label[content["sample_id"]])
    first = Image.open(tmp_path / "real" / str(content["sample_id"][0]) / "1.png")
    assert np.array_equal(np.asarray(first).transpose(2, 0, 1), content["reconstruction"][0, 1])
    assert json.loads((tmp_path / "real" / "samples.json").read_text()) == said
    assert said["scheduler"] == "ddim" and said["dataset"] == dataset.hash and said["shuffle_seed"] is None
    write_samples(tmp_path / "control", chain / "phase3", dataset, QUICK, limit=3, shuffle_seed=0)
    with np.load(tmp_path / "control" / "samples.npz") as control:
        assert np.array_equal(control["truth"], content["truth"])
        assert not np.array_equal(control["reconstruction"], content["reconstruction"])


def test_subjects_are_those_phase_3_was_trained_on_and_strangers_are_told(tiny_set, chain, tmp_path, caplog):
    card = read_card(chain / "phase3")
    parts = {name: load_part(chain / "phase3", name) for name in card["parts"]}
    card["job"]["data"]["subjects"] = ["B"]
    save_export(tmp_path / "of_b", parts, card)
    dataset = Dataset(tiny_set)

    def decoded(**asked):
        write_samples(tmp_path / "out", tmp_path / "of_b", dataset, QUICK, **asked)
        with np.load(tmp_path / "out" / "samples.npz") as held:
            return {dataset.subjects[number] for number in dataset.table.subject[held["sample_id"]]}

    assert decoded() == {"B"}
    assert "only on B" not in caplog.text
    assert "not trained on this packed set" in caplog.text
    assert decoded(subjects=["A"]) == {"A"}
    assert "phase 3 was not trained on A, only on B" in caplog.text
    assert not (tmp_path / "out" / str(dataset.ids(split="test", subjects=["B"])[0]) / "0.png").exists()


def test_pictures_that_no_call_listed_are_left_alone(tiny_set, chain, tmp_path):
    mine = tmp_path / "out" / "1" / "1.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"holiday")
    dataset = Dataset(tiny_set)
    for limit in (4, 2):
        write_samples(tmp_path / "out", chain / "phase3", dataset, QUICK, limit=limit)
    assert mine.read_bytes() == b"holiday"
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 2 * QUICK.samples + 1


def test_a_test_stimulus_without_a_picture_is_left_out_before_sampling(tiny_set, monkeypatch):
    dataset = Dataset(tiny_set)
    without = dataset.table.stimulus[dataset.ids(split="test")[0]]
    has = dataset.has_picture.copy()
    has[without] = False
    monkeypatch.setattr(Dataset, "has_picture", property(lambda self: has))
    assert without not in dataset.table.stimulus[held_out(dataset)]
    assert len(held_out(dataset)) == 14


def test_a_damaged_archive_of_samples_is_named(tiny_set, chain, tmp_path):
    write_samples(tmp_path / "cut", chain / "phase3", Dataset(tiny_set), QUICK, limit=2)
    path = tmp_path / "cut" / "samples.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"samples.npz: not readable"):
        read_samples(tmp_path / "cut")


def test_a_part_that_does_not_fit_its_card_is_refused(chain, tmp_path):
    card = read_card(chain / "phase3")
    parts = {name: load_part(chain / "phase3", name) for name in card["parts"]}
    parts["unet"].pop("conv_out.bias")
    save_export(tmp_path / "cut", parts, card)
    with pytest.raises(DataError, match="'unet' does not fit"):
        load_reconstructor(tmp_path / "cut")
