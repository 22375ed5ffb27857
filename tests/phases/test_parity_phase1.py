"""Phase 1 gives the numbers of the paper's code: losses, predictions, gradients, and a dozen steps of training."""

import pytest
import torch
from golden_reader import (
    LOSS,
    Case,
    adamw,
    assert_close,
    assert_gradients,
    cases,
    fmri_model,
    key_bias_free,
    learning_rate,
    load_all,
    phase1_jobs,
)
from golden_writer import Sizes, Terms, save, write_case, write_training
from safetensors.torch import save_file

from cadiff.kernels.mask import Masking
from cadiff.losses import rebuild_loss
from cadiff.models.fmri_mae import FmriMae
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain

pytestmark = pytest.mark.parity


class Ours:
    """One network with a case's weights, and the phases on it whose terms add up to the case's loss."""

    def __init__(self, case):
        voxels = case.meta["config"].get("patch_size", 16) * (case["sd.pos_embed"].shape[1] - 1)
        self.network, self.parts = FmriMae(fmri_model(case.meta["config"]), voxels), []
        load_all(self.network, case.under("sd."))
        for job, views in phase1_jobs(case.meta):
            phase = Pretrain(job, Space(voxels, classes=0))
            phase.fmri = self.network
            assert phase.views == len(views)
            self.parts.append((phase, views))

    def terms(self, signal_BV, masking_of):
        """For each phase: its weighted terms, the weights, and the views it looked at."""
        for phase, views in self.parts:
            yield phase.terms(signal_BV, [masking_of(view) for view in views]), phase, views


def agree_on_losses_and_gradients(case):
    ours, batch = Ours(case), len(case["in.fmri"])
    total = contrast = torch.zeros(())
    for terms, phase, views in ours.terms(case["in.fmri"].flatten(1), case.masking):
        total = total + sum(terms.values())
        contrast = contrast + sum(term for name, term in terms.items() if name != "rebuild")
        raw = {name: term / phase.weights[name] for name, term in terms.items()}
        compared_with_input = views if phase.self_on_both else views[:1]
        stored = [f"out.{SELF_RAW[view]}" for view in compared_with_input]
        if "self" in raw:  # the paper's code leaves it out for a single sample
            wanted = 0.0 if batch == 1 else sum(case[name].item() for name in stored)
            assert abs(raw["self"].item() - wanted) < LOSS
        if "cross" in raw:
            assert abs(raw["cross"].item() - case["out.cross_contrast_raw"].item()) < LOSS
        if "rebuild" in raw:
            assert abs(raw["rebuild"].item() - case["out.view0.recon_raw"].item()) < LOSS
    assert abs(total.item() - case["out.loss"].item()) < LOSS
    scale = next((phase.job.loss.scale for phase, _ in ours.parts), 1.0)
    assert abs(contrast.item() - scale * case["out.contrast_loss"].item()) < LOSS
    if case.under("grad."):
        total.backward()
        assert assert_gradients(ours.network, case.tensors, "grad.") == len(case.under("grad."))


SELF_RAW = {"view0": "self_contrast_raw", "view1": "self_contrast_view1_raw"}


def agree_on_latents_and_predictions(case):
    network, signal_BV = Ours(case).network, case["in.fmri"].flatten(1)
    views = [view for view in ("view0", "view1") if f"out.{view}.pred" in case]
    assert views
    for view in views:
        masking = case.masking(view)
        with torch.no_grad():
            latent, prediction = network.encode(signal_BV, masking), network(signal_BV, masking)
        assert_close(latent, case[f"out.{view}.latent"], "latent")
        assert_close(prediction, case[f"out.{view}.pred"], "prediction")
        rebuilt = rebuild_loss(prediction, signal_BV.view(prediction.shape), masking.hidden_BL)
        assert abs(rebuilt.item() - case[f"out.{view}.recon_raw"].item()) < LOSS


def agree_on_training(case):
    ours, meta = Ours(case), case.meta
    optimizer = adamw(list(ours.network.named_parameters()), meta)
    batches = [value.flatten(1) for _, value in sorted(case.under("in.batch").items(), key=lambda entry: int(entry[0]))]
    for step, noise in enumerate(case["rng.noise"]):
        rate = learning_rate(meta, step / len(batches))
        assert rate == pytest.approx(case["traj.lr"][step].item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        masks = {f"view{view}": Masking.from_noise(rows, meta["mask_ratio"]) for view, rows in enumerate(noise)}
        done = [terms for terms, _, _ in ours.terms(batches[step % len(batches)], masks.__getitem__)]
        loss = sum(sum(terms.values()) for terms in done)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(ours.network.parameters(), meta["clip_grad"])
        optimizer.step()
        # As far as the paper's code in float32 is from itself in float64, and some more.
        assert loss.item() == pytest.approx(case["traj.loss"][step].item(), abs=1e-5)
        assert norm.item() == pytest.approx(case["traj.norm"][step].item(), rel=1e-5)
    for name, value in ours.network.state_dict().items():
        expected = key_bias_free(name, case[f"final.{name}"])
        assert_close(key_bias_free(name, value), expected, f"final {name}", rest=1e-4)


@pytest.mark.parametrize("path", cases("phase1"))
def test_losses_and_gradients_are_the_papers(path):
    agree_on_losses_and_gradients(Case(path))


@pytest.mark.parametrize("path", cases("phase1"))
def test_latents_and_predictions_are_the_papers(path):
    agree_on_latents_and_predictions(Case(path))


@pytest.mark.parametrize("path", cases("phase1", "phase1_train"))
def test_position_tables_are_the_papers(path):
    case = Case(path)
    network = Ours(case).network
    fresh = FmriMae(fmri_model(case.meta["config"]), network.length * network.patch)
    # The paper's code takes frequencies in float32, which moves the table of 262 patches by up to 3e-5.
    off = max(3e-5, 1.2e-7 * network.length)
    torch.testing.assert_close(fresh.pos_embed, case["sd.pos_embed"], rtol=0, atol=off)
    torch.testing.assert_close(fresh.decoder_pos_embed, case["sd.decoder_pos_embed"], rtol=0, atol=off)


@pytest.mark.parametrize("path", cases("phase1_train"))
def test_training_goes_the_papers_way(path):
    agree_on_training(Case(path))


ALL = Terms(True, True, True)
WRITTEN = {  # what could be stored and is not, or not by the paper's code: computed by the plain baseline
    "paired": (Terms(True, True, True, negative_mode="paired"), {}),
    "paired_self_only": (Terms(do_self_contrast=True, negative_mode="paired", self_contrast_loss_weight=1.0), {}),
    "cross_only": (Terms(do_cross_contrast=True, contrastive_loss_weight=1.0), {}),
    "sep_without_self": (Terms(True, False, True, sep_loss=True, self_contrast_loss_weight=0.7), {}),
    "sep_with_self": (Terms(False, True, True, sep_loss=True, mask_loss_weight=2.0), {}),
    "sep_paired": (Terms(True, True, True, sep_loss=True, negative_mode="paired"), {}),
    "sep_without_cross": (Terms(True, True, False, sep_loss=True), {}),
    "wider": (ALL, {"sizes": Sizes(480, 8, 48, 3, 6, 24, 2, 3, 2.5), "batch": 3, "ratio": 0.75}),
    "one_sample_cross_only": (Terms(do_cross_contrast=True), {"batch": 1}),
    "one_sample": (Terms(True, True, True, sep_loss=True, negative_mode="paired"), {"batch": 1}),
    "nothing_hidden": (ALL, {"ratio": 0.0}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_cases_that_are_not_stored_agree_too(name, tmp_path):
    terms, rest = WRITTEN[name]
    case = Case(write_case(tmp_path / f"{name}.safetensors", terms, **rest))
    agree_on_losses_and_gradients(case)
    agree_on_latents_and_predictions(case)


@pytest.mark.parametrize("terms", [Terms(do_mask_loss=True), Terms(True, True, True, sep_loss=True)], ids=str)
def test_trainings_that_are_not_stored_agree_too(terms, tmp_path):
    agree_on_training(Case(write_training(tmp_path / "t.safetensors", terms)))


@pytest.mark.parametrize(
    "weight", ["mask_loss_weight", "contrastive_loss_weight", "self_contrast_loss_weight", "cross_contrast_loss_weight"]
)
def test_another_weight_is_noticed(weight, tmp_path):
    case = Case(write_case(tmp_path / "c.safetensors", ALL))
    case.meta["effective"][weight] *= 1.001
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize(
    "change",
    [{"negative_mode": "paired"}, {"sep_loss": True}, {"do_mask_loss": False}, {"do_self_contrast": False}],
    ids=str,
)
def test_another_loss_is_noticed(change, tmp_path):
    case = Case(write_case(tmp_path / "c.safetensors", ALL))
    case.tensors["out.self_contrast_view1_raw"] = case["out.self_contrast_raw"]
    case.meta["effective"] |= change
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize(
    "name",
    [
        "in.fmri",
        "sd.blocks.1.attn.qkv.weight",
        "grad.decoder_blocks.0.mlp.fc2.bias",
        "grad.cls_token",
        "rng.view1.ids_keep",
    ],
)
def test_another_tensor_is_noticed(name, tmp_path):
    case = Case(write_case(tmp_path / "c.safetensors", ALL))
    case.tensors[name] = case[name].flip(0) if case[name].dtype == torch.int64 else case[name] * 1.001
    with pytest.raises(AssertionError):
        agree_on_losses_and_gradients(case)


@pytest.mark.parametrize("name", ["out.view0.latent", "out.view1.pred", "out.view0.recon_raw"])
def test_another_output_is_noticed(name, tmp_path):
    case = Case(write_case(tmp_path / "c.safetensors", ALL))
    case.tensors[name] = case[name] + 1e-3
    with pytest.raises(AssertionError):
        agree_on_latents_and_predictions(case)


@pytest.mark.parametrize("name", ["traj.loss", "traj.norm", "traj.lr", "final.blocks.0.norm1.weight", "rng.noise"])
def test_another_training_is_noticed(name, tmp_path):
    case = Case(write_training(tmp_path / "t.safetensors", ALL))
    case.tensors[name] = case[name].flip(0) if name == "rng.noise" else case[name] * 1.001
    with pytest.raises(AssertionError):
        agree_on_training(case)


def test_files_are_chosen_by_what_they_say(tmp_path, monkeypatch):
    write_case(tmp_path / "anything at all.safetensors", ALL)
    write_training(tmp_path / "p1_named_like_the_other.safetensors", ALL)
    save(tmp_path / "p1_of_tomorrow.safetensors", {"kind": "phase9"}, {"x": torch.ones(1)})
    save_file({"x": torch.ones(1)}, tmp_path / "p1_says_nothing.safetensors")
    (tmp_path / "p1_no_file_of_ours.safetensors").write_text("{}")
    monkeypatch.setattr("shared_files.GOLDEN", tmp_path)
    assert [case.id for case in cases("phase1")] == ["anything at all"]
    assert [case.id for case in cases("phase1_train")] == ["p1_named_like_the_other"]
    (absent,) = cases("phase7")
    assert absent.id == "absent" and "CADIFF_GOLDEN_DIR" in absent.marks[0].kwargs["reason"]
