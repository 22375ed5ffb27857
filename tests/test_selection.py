"""Phase 2 exports its best validation: the planted one, the same after a resume, whatever the number of ranks."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tuned_world import ALL_SPLIT, TINY_PAIR, train_alone, write_vit

from cadiff.checkpoint import committed
from cadiff.config import JOBS, load_job
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part, read_card
from cadiff.files import write_json
from cadiff.phases import Space, build_phase
from cadiff.phases.crosstune_rows import hidden_correlation
from cadiff.selection import Best, check_selection, chosen_by
from cadiff.session import job_hash
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream
from cadiff.tracking import read_metrics

FREE = "image.train_encoder=true"
OFTEN = ["train.val_every=2", "train.select=retrieval_two_way"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_job):
    return tiny_job(tmp_path_factory.mktemp("selection") / "job.toml", "phase2", TINY_PAIR)


@pytest.fixture(scope="module")
def train(config, warm):
    def run(folder, *overrides):
        train_alone(warm, config, folder, FREE, *overrides)
        return folder

    return run


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    """Twelve steps with a validation after every two and a checkpoint after every four."""
    return train(tmp_path_factory.mktemp("reference") / "run", *OFTEN)


def judged(run, name="val/retrieval_two_way"):
    return {line["step"]: line[name] for line in read_metrics(run) if name in line}


def best(tmp_path, figure="retrieval_two_way", ema=0.0):
    job = SimpleNamespace(phase="phase1", train=SimpleNamespace(select=figure, ema=ema))
    return Best(tmp_path, job, writes=True)


def keep(chooser, step, value):
    """Offer a validation as training does."""
    values = {chooser._name: value}
    if chooser.improves(values):
        state = {"fmri": {"weight": torch.full((2,), float(step))}}
        chooser.keep(chooser.told(step, values), state, {"phase": "phase2"}, {"signal": np.zeros(3)})


def kept(tmp_path):
    return sorted(int(folder.name[5:]) for folder in (tmp_path / "best").glob("*"))


def write_checkpoint(tmp_path, step, found):
    folder = tmp_path / "checkpoints" / f"step-{step:06d}"
    write_json(folder / "state.json", {"step": step, "best": found})
    (folder / "COMMITTED").touch()


def test_the_planted_best_is_chosen_and_of_equal_ones_the_first(tmp_path):
    chooser = best(tmp_path)
    for step, value in enumerate([0.5, float("nan"), 0.7, 0.7, float("inf"), 0.6], start=1):
        keep(chooser, step, value)
    assert chooser.found == {"figure": "retrieval_two_way", "step": 3, "value": 0.7}
    assert chooser.weights()["fmri"]["weight"].tolist() == [3, 3] and chooser.preview()["signal"].shape == (3,)
    assert kept(tmp_path) == [3]  # nothing would go back to the others


def test_a_loss_is_better_when_it_is_lower_and_the_running_mean_has_its_own(tmp_path):
    chooser = best(tmp_path, "loss", ema=0.9)
    for step, value in enumerate([0.5, 0.4, 0.45], start=1):
        keep(chooser, step, value)
    assert chooser.found["step"] == 2
    assert not best(tmp_path, "last").improves({"val/loss": 0.0})
    assert not chooser.improves({"val/loss": 0.0, "val_ema/loss": 0.45})


def test_going_back_forgets_a_best_of_the_abandoned_future(tmp_path):
    chooser = best(tmp_path)
    keep(chooser, 2, 0.5)
    write_checkpoint(tmp_path, 4, chooser.found)
    keep(chooser, 6, 0.9)
    assert kept(tmp_path) == [2, 6]  # the checkpoint may be gone back to
    for again in (chooser, best(tmp_path)):  # a bad step, and a new start
        again.restore({"figure": "retrieval_two_way", "step": 2, "value": 0.5})
        assert kept(tmp_path) == [2] and again.weights()["fmri"]["weight"].tolist() == [2, 2]
        keep(again, 6, 0.4)
        assert again.found["step"] == 2
        keep(again, 6, 0.9)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(DataError, match="names it as the best so far"):
        best(tmp_path).restore({"figure": "retrieval_two_way", "step": 2, "value": 0.5})


def test_what_cannot_be_followed_is_refused_before_the_first_step(config, train, tmp_path):
    job = load_job(config)
    with pytest.raises(ConfigError, match=r"no validation samples.*train\.select=last"):
        check_selection(job, [], 0, 1)
    with pytest.raises(ConfigError, match=r"3 validation samples, fewer than 4 ranks: use fewer.*larger val_fraction"):
        check_selection(job, [], 3, 4)
    with pytest.raises(ConfigError, match=r"no validation of this phase2 job.*two stimuli.*last, loss, a_figure"):
        check_selection(load_job(config, ["train.select=retrieval_top1"]), ["a_figure"], 4, 4)
    check_selection(load_job(config, ["train.select=last"]), [], 0, 1)
    with pytest.raises(ConfigError, match=r"train\.select = 'best'"):
        load_job(config, ["train.select=best"])
    with pytest.raises(ConfigError, match=r"Choose one of last, loss, fmri_correlation, retrieval_top1"):
        train(tmp_path / "run", "loss.image=0", "train.select=image_correlation")
    assert not (tmp_path / "run" / "identity.json").exists()


LINEAR = "adapter.kind=linear"


@pytest.mark.parametrize(("words", "figure"), [
    ([], "loss"),
    ([LINEAR], "image_correlation"),
    ([LINEAR, "loss.image=0"], "fmri_correlation"),
    ([LINEAR, "loss.fmri=0"], "loss"),
    ([LINEAR, "train.select=retrieval_top1"], "retrieval_top1"),
    ([LINEAR, "train.select=last"], "last"),
])  # fmt: skip
def test_adapters_move_the_losses_target_so_a_correlation_chooses(config, tmp_path, words, figure):
    job = load_job(config, words)
    assert chosen_by(job) == Best(tmp_path, job, writes=False).figure == figure
    check_selection(job, [figure], 1, 1)
    assert job_hash(job) == job_hash(load_job(config, [*words, f"train.select={figure}"]))


def test_a_loss_whose_target_moves_is_refused_with_the_remedy(config, train, tmp_path):
    with pytest.raises(ConfigError, match=r"whose scale changes.*train\.select=image_correlation"):
        train(tmp_path / "run", LINEAR, "train.select=loss")
    assert not (tmp_path / "run" / "identity.json").exists()
    assert chosen_by(load_job(config, [LINEAR, "loss.fmri=0", "train.select=loss"])) == "loss"


def test_the_export_is_the_best_validation_and_everything_says_so(reference):
    values, summary = judged(reference), json.loads((reference / "summary.json").read_text())
    assert list(values) == [2, 4, 6, 8, 10, 12]
    chosen = max(values, key=values.get)
    expected = {"figure": "retrieval_two_way", "step": chosen, "value": values[chosen]}
    assert summary["selected"] == read_card(reference)["selected"] == expected
    assert summary["val_loss"] == judged(reference, "val/loss")[chosen]
    for part in ("fmri", "image"):
        one, other = (reference / folder / f"{part}.safetensors" for folder in ("export", f"best/step-{chosen:06d}"))
        assert one.read_bytes() == other.read_bytes()
    line = next(line for line in read_metrics(reference) if line["step"] == chosen and "val/loss" in line)
    assert line["val/retrieval_top1_chance"] == 1 / 8 and line["val/retrieval_two_way_chance"] == 0.5
    assert line["perf/val_s"] > 0 and -1 <= line["val/image_correlation"] <= 1


def test_the_exported_weights_are_those_the_job_had_at_that_step(reference, train, tmp_path):
    chosen = read_card(reference)["selected"]["step"]
    long = ["optim.schedule_steps=12", "train.select=last"]
    run = train(tmp_path / "short", f"train.steps={chosen}", *long)
    assert read_card(run)["selected"] == {"figure": "last", "step": chosen} and not (run / "best").exists()
    for part in ("fmri", "image"):
        mine, theirs = load_part(run, part), load_part(reference, part)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("checkpoint", [0, 1])
def test_a_job_cut_short_chooses_the_same_step_and_writes_the_same_bytes(reference, train, tmp_path, checkpoint):
    cut = tmp_path / "run"
    shutil.copytree(reference, cut)
    for leftover in ("export", "summary.json", "preview.npz"):  # as a kill before the end leaves it
        path = cut / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for later in committed(cut)[checkpoint + 1 :]:
        shutil.rmtree(later)
    train(cut, *OFTEN)
    assert f"resuming tiny at step {4 * checkpoint + 4} of 12" in (cut / "log.txt").read_text()
    for name in ("card.json", "fmri.safetensors", "image.safetensors"):
        assert (cut / "export" / name).read_bytes() == (reference / "export" / name).read_bytes()
    assert (cut / "preview.npz").read_bytes() == (reference / "preview.npz").read_bytes()
    assert judged(cut) == judged(reference)


def test_a_run_that_is_judged_otherwise_is_another_experiment(reference, train):
    with pytest.raises(ConfigError, match="job_hash"):
        train(reference, *OFTEN, "train.val_every=3")


STILL = [
    "train.steps=2",
    "train.val_every=1",
    "train.batch=12",
    "train.micro_batch=6",
    "train.select=image_correlation",
]


@pytest.mark.multiprocess
@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_judge_and_choose_as_one(train, config, warm, tmp_path, zero):
    """Chunks of 6, 6 and 4 of 16 samples, so that one rank has nothing of its own in the last round."""
    alone, pair = train(tmp_path / "alone", *STILL), tmp_path / "pair"
    words = [FREE, *STILL, f"engine.zero={zero}", *(ALL_SPLIT if zero == 3 else [])]
    warm.train(config, words, pair, phase="phase2", ranks=2, say=lambda line: None)
    names = [name for name in read_metrics(alone)[-1] if name.startswith("val/") and "_" in name]
    assert len(names) == 6
    for name in names:
        assert list(judged(pair, name).values()) == pytest.approx(list(judged(alone, name).values()), abs=1e-4)
    one, two = (read_card(run)["selected"] for run in (alone, pair))
    assert two["step"] == one["step"] and two["value"] == pytest.approx(one["value"], abs=1e-4)
    mine, theirs = load_part(pair, "fmri"), load_part(alone, "fmri")
    for name in theirs:
        if not name.endswith(("qkv.bias", "key.bias")):  # a key bias has no true gradient: Adam steps along rounding
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=0)


def test_correlation_is_numpys_over_hidden_patches():
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(5, 6, 4, generator=draw)
    prediction = 3 + target + torch.randn(5, 6, 4, generator=draw)
    hidden = (torch.rand(5, 6, generator=draw) < 0.6).float()
    hidden[:, 0] = 1
    found = hidden_correlation(prediction, target, hidden)
    for row in range(5):
        own = hidden[row].bool()
        pair = np.corrcoef(prediction[row][own].flatten().numpy(), target[row][own].flatten().numpy())
        assert found[row].item() == pytest.approx(pair[0, 1], abs=1e-6)
    assert hidden_correlation(torch.ones_like(target), target, hidden).tolist() == [0] * 5
    assert hidden_correlation(prediction, target, torch.zeros_like(hidden)).tolist() == [0] * 5


@pytest.fixture(scope="module")
def frozen(train, tmp_path_factory):
    """A job on a frozen pre-trained image encoder, and that encoder's folder."""
    folder = tmp_path_factory.mktemp("frozen")
    vit = write_vit(folder / "vit")
    words = [f"init.image={vit}", "image.train_encoder=false", "train.ema=0.5"]
    return train(folder / "run", *words), vit


def test_a_frozen_image_encoder_is_bit_identical_after_training(frozen):
    run, vit = frozen
    before, after = load_file(vit / "model.safetensors"), load_part(run, "image")
    encoder = [name for name in before if name.startswith("vit.")]
    assert len(encoder) > 30 and all(torch.equal(after[name], before[name]) for name in encoder)
    assert not torch.equal(after["decoder.decoder_pred.weight"], before["decoder.decoder_pred.weight"])


def test_the_card_says_what_was_taken_over_and_from_what(frozen):
    run, _ = frozen
    card = read_card(run)
    told = card["init"]["image"]
    assert told["matched"]["count"] > 30 and len(told["matched"]["names"]) == 12
    assert told["unused"] == told["resized"] == {"count": 0, "names": []}
    assert told["missing"]["count"] > 0 and all("cross" in name for name in told["missing"]["names"])
    assert card["lineage"]["parents"].keys() == {"image"} and len(card["lineage"]["parents"]["image"]) == 64
    values = judged(run, "val_ema/loss")
    assert card["selected"]["step"] == min(values, key=values.get)
    assert "val_ema/retrieval_two_way" in read_metrics(run)[-1]  # what would be exported is what is judged


def test_both_networks_come_back_with_the_losses_they_were_chosen_for(reference):
    card = read_card(reference)
    job = JOBS["phase2"].model_validate(card["job"])
    phase = build_phase(job, Space(**card["space"])).eval()
    for name, part in phase.parts().items():
        part.load_state_dict(load_part(reference, name))
    stream = Stream(
        [Dataset(job.data.shards[0])], split="val", batch=8, micro_batch=8, width=32, image_size=16, seed=job.seed
    )
    with torch.no_grad():
        terms = [phase(stream.micro(step, 0)) for step in range(2)]
    for name in ("fmri", "image"):
        expected = judged(reference, f"val/{name}")[card["selected"]["step"]]
        assert np.mean([term[name].item() for term in terms]) == pytest.approx(expected, rel=1e-5)
