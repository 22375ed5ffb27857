"""Kept features of a frozen image encoder: packed from the command line, and a job with them has the losses without."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import FMRI, IMAGE, phase2_job, value
from tuned_world import write_vit

from cadiff.config import load_job
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part
from cadiff.feature_cache import FROZEN, check_encoder, encoder_hash, features_identity, open_features
from cadiff.feature_pack import FixedMasks, pack_features
from cadiff.fitting import check_pictures
from cadiff.masking import picture_mask
from cadiff.models.image_mae import normalise_image
from cadiff.phases import Space
from cadiff.phases.crosstune import CrossTune
from cadiff.session import job_hash
from cadiff.shards.dataset import Dataset
from cadiff.shards.features import Features
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

SPACE = Space(voxels=32, classes=3)
MASKS = FixedMasks(2, 0.5, 3)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A pre-trained ViT-MAE of the tiny world as Hugging Face saves it."""
    return write_vit(tmp_path_factory.mktemp("world") / "vit")


@pytest.fixture(scope="module")
def packed(vit, tiny_set, tmp_path_factory):
    """Features of the tiny set: two masks each in float32, and the same in float16."""
    out = tmp_path_factory.mktemp("packed")
    for dtype in ("float32", "float16"):
        pack_features([tiny_set], out / dtype, vit, image_size=16, masks=MASKS, dtype=dtype)
    return out


def job_of(vit, features="", image_masks=0, **sections):
    data = {"shards": ["unused"], "image_size": 16, "features": str(features)}
    rest = {"seed": 3, "data": data, "init": {"image": str(vit)}, **sections}
    return phase2_job({"image_masks": image_masks}, {"train_encoder": False}, **rest)


def phase_of(job):
    torch.manual_seed(0)
    return CrossTune(job, SPACE)


def batches(tiny_set, job):
    sizes = {"split": "train", "batch": 8, "micro_batch": 8, "width": 32, "image_size": 16, "seed": 3}
    options = {"image_masks": job.loss.image_masks, "features": open_features(job)}
    stream = Stream([Dataset(tiny_set)], **sizes, **options)
    return [stream.micro(step, 0) for step in (0, 9)]


def gradients(phase, batch):
    phase.zero_grad()
    terms = phase(batch)
    sum(terms.values()).backward()
    return value(terms), {name: p.grad.clone() for name, p in phase.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("image_masks", [0, 1, 2])
def test_losses_and_gradients_are_those_without_features(vit, packed, tiny_set, image_masks):
    plain, cached = (job_of(vit, folder, image_masks) for folder in ("", packed / "float32"))
    phase = phase_of(cached)
    calls = []
    phase.image.vit.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    for one, two in zip(batches(tiny_set, plain), batches(tiny_set, cached), strict=True):
        calls.clear()
        (terms, grads), without = gradients(phase, one), len(calls)
        (kept_terms, kept_grads), with_them = gradients(phase, two), len(calls) - without
        assert (without, with_them) == (2, 0 if image_masks else 1)  # the frozen layers are what is not run
        assert kept_terms == pytest.approx(terms, rel=1e-6) and min(terms.values()) > 0.01
        assert kept_grads.keys() == grads.keys() == {n for n, p in phase.named_parameters() if p.requires_grad}
        for name, grad in grads.items():
            assert (kept_grads[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name
    shown, kept = (phase.preview(batches(tiny_set, job)[0]) for job in (plain, cached))
    for key, values in shown.items():
        furthest = (kept[key].float() - values.float()).nan_to_num().abs().max()
        assert furthest <= (1 if values.dtype == torch.uint8 else 1e-4), key


def test_under_bfloat16_and_from_float16_they_agree_within_rounding(vit, packed, tiny_set):
    phase = phase_of(job_of(vit, "", 2))
    one, full, half = (batches(tiny_set, job_of(vit, f, 2))[0] for f in ("", packed / "float32", packed / "float16"))
    assert half["image_whole"].dtype == torch.float16
    exact = value(phase(one))
    assert value(phase(half)) == pytest.approx(exact, rel=1e-3) and value(phase(half)) != value(phase(full))
    with torch.autocast("cpu", torch.bfloat16):
        terms, kept = phase(one), phase(full)
    assert {term.dtype for term in kept.values()} == {torch.float32}
    assert value(kept) == pytest.approx(value(terms), rel=0.02)


def test_recomputing_activations_takes_kept_features_too(vit, packed, tiny_set):
    jobs = [job_of(vit, packed / "float32", 2, engine={"checkpoint_activations": again}) for again in (False, True)]
    (terms, grads), (again, their) = (gradients(phase_of(job), batches(tiny_set, job)[0]) for job in jobs)
    assert terms == pytest.approx(again, rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, their[name])


def test_what_is_kept_is_what_the_encoder_makes_of_training_and_validation_pictures_and_never_of_test(
    vit, packed, tiny_set
):
    ds, features = Dataset(tiny_set), Features(packed / "float32")
    held = features.rows_of(ds.pictures.digest) >= 0
    assert held.tolist() == [True] * 40 + [False] * 8
    encoder = phase_of(job_of(vit)).image.vit
    pixels = normalise_image(torch.from_numpy(ds.images(np.array([4, 33]), 16)))
    digest_B = ds.pictures.digest[[4, 33]]
    whole, visible = torch.empty(2, 17, 16), torch.empty(2, 9, 16)
    features.read_whole(features.rows_of(digest_B), whole)
    features.read_visible(features.rows_of(digest_B), np.array([1, 0]), visible)
    masking = picture_mask(3, torch.from_numpy(digest_B), torch.tensor([1, 0]), 16, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(whole, encoder(pixels), rtol=1e-5, atol=1e-5)
        expected = encoder.encoder(encoder.embeddings(pixels, masking))
    torch.testing.assert_close(visible, expected, rtol=1e-5, atol=1e-5)


def test_an_interrupted_pack_computes_only_what_is_missing(vit, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setattr("cadiff.feature_pack.SHARD_BYTES", 8 * 17 * 16 * 4)
    told = []

    def interrupt(label, done, total):
        told.append((done, total))
        if done == 16:
            raise KeyboardInterrupt

    def pack(out, progress):
        return pack_features([tiny_set], tmp_path / out, vit, image_size=16, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        pack("cut", interrupt)
    assert not (tmp_path / "cut").exists()
    pack("cut", lambda label, done, total: told.append((done, total)))
    assert told[-1] == (32, 32) and (8, 40) in told  # eight were finished, the shard at work was not
    assert not pack("whole", silent)["already"] and pack("whole", silent)["already"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_fixed_masks_belong_to_pictures(vit, tiny_set):
    job = job_of(vit, "", 2)
    phase, batch = phase_of(job), batches(tiny_set, job)[0]
    hidden_BL = phase.masks(batch)[1].hidden_BL
    assert (hidden_BL.sum(1) == 8).all()
    moved = {**batch, "sample_id": batch["sample_id"] + 1000, "epoch": batch["epoch"] + 2}
    assert torch.equal(phase.masks(moved)[1].hidden_BL, hidden_BL)
    assert not torch.equal(phase.masks(moved)[0].hidden_BL, phase.masks(batch)[0].hidden_BL)
    other = phase.masks({**batch, "image_mask": 1 - batch["image_mask"]})[1].hidden_BL
    assert (other != hidden_BL).any(1).all()
    assert (hidden_BL != hidden_BL[0]).any(1)[1:].any()  # one picture's is not another's


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"phase": "phase1"}, "phase1 has no frozen image encoder"),
        ({"image": {**IMAGE, "train_encoder": True}}, "image.train_encoder = true changes it"),
        (
            {"data": {"shards": ["unused"], "image_size": 32}},
            r"data.image_size = 16, this job has 32\. .*--image-size 32",
        ),
        ({"seed": 4}, r"seed = 3, this job has 4\. Pack .*--masks 2 --mask-ratio 0.5 --seed 4"),
        ({"loss": {"image_masks": 3}}, "loss.image_masks = 2, this job has 3"),
        ({"loss": {"image_masks": 2, "image_mask": 0.75}}, "loss.image_mask = 0.5, this job has 0.75"),
    ],
)
def test_features_that_do_not_fit_a_job_are_refused(vit, packed, tiny_job, tmp_path, change, told):
    if change.get("phase") == "phase1":
        job = load_job(tiny_job(tmp_path / "job.toml", "phase1"), [f"data.features={packed / 'float32'}"])
    else:
        tree = job_of(vit, packed / "float32", 2).model_dump()
        for section, values in change.items():
            tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
        job = type(job_of(vit)).model_validate(tree)
    with pytest.raises(ConfigError, match=told):
        open_features(job)


def test_masks_that_a_job_does_not_use_need_not_fit(vit, packed):
    assert open_features(job_of(vit, packed / "float32", 0, seed=9)) is not None
    assert open_features(job_of(vit)) is None


def test_features_of_another_encoder_are_refused(vit, packed):
    features, phase = Features(packed / "float32"), phase_of(job_of(vit))
    check_encoder(features, phase)
    assert features.manifest.encoder == encoder_hash(phase.image.vit)
    with torch.no_grad():
        phase.image.vit.encoder.layer_cross[0].output.dense.weight.add_(1)  # is trained, and no part of what was kept
        check_encoder(features, phase)
        phase.image.vit.encoder.layer[1].output.dense.weight[0, 0] += 1e-6
    with pytest.raises(ConfigError, match="are of another encoder"):
        check_encoder(features, phase)
    check_encoder(None, phase)


def test_tokens_that_the_encoder_does_not_give_are_refused(vit, packed):
    features, phase = Features(packed / "float32"), phase_of(job_of(vit))
    features.manifest = features.manifest.model_copy(update={"whole": 9})
    with pytest.raises(DataError, match="whole is 9, but this encoder gives 17"):
        check_encoder(features, phase)


def test_a_config_that_is_no_vits_is_one_error(vit, tiny_set, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 768.5}))
    with pytest.raises(DataError, match=r"config.json: width = 768.5"):
        pack_features([tiny_set], tmp_path / "out", tmp_path, image_size=16, masks=FixedMasks(0, 0.5, 3))


def test_features_that_are_not_quite_what_a_job_would_compute_make_another_experiment(vit, packed):
    exact, rounded = Features(packed / "float32"), Features(packed / "float16")
    assert features_identity(None, "bf16") is None and features_identity(exact, "fp32") is None
    assert features_identity(exact, "bf16") == "float32 in bf16" and features_identity(rounded, "fp32") == "float16"
    assert job_hash(job_of(vit, packed / "float32")) == job_hash(job_of(vit))
    assert job_hash(job_of(vit, "", 2)) != job_hash(job_of(vit))
    assert Features(packed / "float32").rounding is None and Features(packed / "float16").rounding == "float16"


def grey_set(folder, level):
    """A set whose 9 pictures hold values of 0 to ``level``."""
    draw = np.random.default_rng(0)

    def fill(pack):
        names = [f"p{i}" for i in range(9)]
        pack.split_by = "stimulus"
        pack.add(make_records("A", "r", draw.normal(size=(9, 30)), ["train"] * 6 + ["val"] * 3, names))
        for name in names:
            pack.picture(name, encode_png(draw.integers(0, level, (16, 16, 3), dtype=np.uint8)), "png")

    pack_folder(folder, "table", {}, {}, fill, silent)
    return folder


def test_pictures_that_were_scaled_twice_are_refused(vit, tmp_path):
    bad, good = grey_set(tmp_path / "bad", 3), grey_set(tmp_path / "good", 255)
    with pytest.raises(DataError, match=r"scaled twice, .* or are all one colour"):
        pack_features([bad], tmp_path / "f", vit, image_size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]
    sizes = {"split": "train", "batch": 6, "micro_batch": 6, "width": 32, "image_size": 16}
    check_pictures(job_of(vit), Stream([Dataset(good)], **sizes))
    with pytest.raises(DataError, match=f"{bad}: the colours of 6 normalised pictures"):
        check_pictures(job_of(vit), Stream([Dataset(bad)], **sizes))


def test_pictures_of_another_layout_are_refused():
    for shape in ((2, 16, 16, 3), (3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 8)):
        with pytest.raises(ValueError, match=r"expected images \(B, 3, S, S\), colours before rows, found"):
            normalise_image(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8"):
        normalise_image(torch.zeros(2, 3, 16, 16))


def test_the_command_tells_what_it_made(cadiff, vit, tiny_set, tmp_path):
    words = ("pack", "features", tiny_set, tmp_path / "f", "--vit", vit, "--image-size", 16)
    code, out, _ = cadiff(*words, "--json")
    told = json.loads(out)
    assert code == 0 and (told["pictures"], told["whole"], told["visible"]) == (40, [17, 16], [])
    assert told["bytes"] == 40 * 17 * 16 * 4 == (tmp_path / "f/features-00000.bin").stat().st_size
    code, out, _ = cadiff(*words)
    assert code == 0 and out == f"{tmp_path}/f: already packed: 40 pictures of 17 x 16 values, 0.0 MB\n"
    code, _, err = cadiff(*words, "--masks", 1)
    assert code == 2 and "mask_ratio was 0.0, now 0.5; masks was 0, now 1;" in err
    code, _, err = cadiff("pack", "features", tmp_path / "f", "--vit", vit)
    assert code == 2 and "only one folder was given" in err
    code, _, err = cadiff(*words[:3], tmp_path / "g", "--vit", vit)
    assert code == 2 and "image_size is 16, but data.image_size is 224" in err


TINY = f"""
[model]
{chr(10).join(f"{key} = {value}" for key, value in FMRI.items())}
[image]
{chr(10).join(f"{key} = {value}" for key, value in IMAGE.items())}
[cross]
layers = 2
"""


@pytest.mark.multiprocess
def test_a_job_trains_the_same_weights_with_features_and_leaves_the_encoder_as_it_was(
    warm, vit, packed, tiny_job, tmp_path
):
    config = tiny_job(tmp_path / "job.toml", "phase2", TINY)
    runs = {
        "plain": ["data.features="],
        "kept": [f"data.features={packed / 'float32'}"],
        "sharded": [f"data.features={packed / 'float32'}", "engine.zero=3"],
    }
    for name, overrides in runs.items():
        _train(warm, config, vit, tmp_path / name, *overrides)
    curves = {
        name: [line[key] for line in read_metrics(tmp_path / name) for key in ("train/loss", "val/loss") if key in line]
        for name in runs
    }
    assert len(curves["plain"]) > 3
    start = load_file(vit / "model.safetensors")
    for name in ("kept", "sharded"):
        assert curves[name] == pytest.approx(curves["plain"], rel=1e-5)
        for part in ("fmri", "image"):
            one, other = load_part(tmp_path / "plain", part), load_part(tmp_path / name, part)
            assert one.keys() == other.keys()
            # Attention does not depend on its keys' bias: the gradient is rounding, which Adam makes steps of.
            told = [key for key in one if not key.endswith(("qkv.bias", "key.bias"))]
            assert max(float((one[key] - other[key]).abs().max()) for key in told) < 1e-5
        frozen = [key for key in start if key.removeprefix("vit.").startswith(FROZEN) and key.startswith("vit.")]
        assert len(frozen) == 38 and all(torch.equal(other[key], start[key]) for key in frozen)
    assert any("nothing to do" in line for line in _train(warm, config, vit, tmp_path / "kept"))
    with pytest.raises(ConfigError, match="differs in features"):
        _train(warm, config, vit, tmp_path / "kept", f"data.features={packed / 'float16'}")


def _train(warm, config, vit, run, *overrides):
    """Two ranks of a job with two masks for each picture; what they say."""
    said = []
    words = [
        f"init.image={vit}",
        "loss.image_masks=2",
        "train.steps=8",
        "train.val_every=8",
        "train.save_every=8",
        *overrides,
    ]
    warm.train(config, words, run, phase="phase2", ranks=2, say=said.append)
    return said
