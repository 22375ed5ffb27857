"""Read the stored outputs of the paper's code: one safetensors file per case, its configuration in the metadata."""

import math

import pytest
import torch
from shared_files import GOLDEN, golden_files, read_golden

from cadiff.config import FmriModel, Phase1Job
from cadiff.kernels.mask import Masking

LOSS = 1e-5  # absolute, on losses
REST = 1e-5  # relative to a tensor's largest entry
TRAIN = {"train": {"steps": 1, "batch": 1}, "data": {"shards": ["unused"]}, "name": "parity"}


def cases(*kinds):
    """Every file of the folder that is of these kinds, as pytest parameters; one that skips aloud if there is none."""
    found = golden_files(*kinds)
    if not found:
        reason = f"no case of kind {', '.join(kinds)} in {GOLDEN}: set CADIFF_GOLDEN_DIR"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(path, id=path.stem) for path in found]


class Case:
    """One file: ``meta`` is its configuration, ``case[name]`` a tensor."""

    def __init__(self, path):
        self.meta, self.tensors = read_golden(path, "pt")

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def under(self, prefix):
        """All tensors whose name begins with ``prefix``, without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def masking(self, view):
        """The mask that was used, from the stored indices (equal noise makes the order ambiguous)."""
        stored = self.under(f"rng.{view}.")
        return Masking(stored["ids_keep"], stored["ids_restore"], stored["mask"])


def fmri_model(config):
    """Our section for a stored constructor call; what it leaves out has the paper code's default, which is ours."""
    names = {
        "patch": "patch_size",
        "width": "embed_dim",
        "depth": "depth",
        "heads": "num_heads",
        "decoder_width": "decoder_embed_dim",
        "decoder_depth": "decoder_depth",
        "decoder_heads": "decoder_num_heads",
    }
    sizes = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    return FmriModel(**sizes, mlp_ratio=float(config.get("mlp_ratio", 1.0)))


# What the constructor of the paper's code takes where its caller says nothing.
PHASE1_DEFAULTS = {
    "do_mask_loss": False,
    "do_self_contrast": False,
    "do_cross_contrast": False,
    "mask_loss_weight": 0.5,
    "contrastive_loss_weight": 0.5,
    "self_contrast_loss_weight": 0.5,
    "cross_contrast_loss_weight": 0.5,
    "sep_loss": False,
    "negative_mode": "unpaired",
}


def phase1_jobs(meta):
    """Our jobs for a stored case, whose terms add up to its loss: pairs of a job and the stored views it looks at.

    One job says all but this: with ``sep_loss`` the paper's code contrasts the second view with the input inside its
    cross-contrast, so it does without a self-contrast too, and never with "paired" negatives. That is a second job.
    """
    used = {**PHASE1_DEFAULTS, **meta["config"], **meta.get("effective", {})}
    assert used["negative_mode"] in ("paired", "unpaired")
    scale, of_self = float(used["contrastive_loss_weight"]), float(used["self_contrast_loss_weight"])
    paired, second = used["negative_mode"] == "paired", bool(used["sep_loss"] and used["do_cross_contrast"])
    one_job = second and used["do_self_contrast"] and not paired
    loss = {
        "rebuild": float(used["mask_loss_weight"] * used["do_mask_loss"]),
        "self_contrast": of_self * used["do_self_contrast"],
        "cross_contrast": float(used["cross_contrast_loss_weight"] * used["do_cross_contrast"]),
        "scale": scale,
        "self_on_both_views": one_job,
        "negatives": "predictions" if paired else "micro",
    }
    jobs = []
    if loss["rebuild"] or scale * (loss["self_contrast"] + loss["cross_contrast"]):
        two_views = scale * (loss["cross_contrast"] + one_job * of_self) > 0
        jobs.append((_phase1_job(meta, loss), ("view0", "view1") if two_views else ("view0",)))
    if second and not one_job and scale * of_self:
        alone = {"rebuild": 0.0, "self_contrast": of_self, "cross_contrast": 0.0, "scale": scale, "negatives": "micro"}
        jobs.append((_phase1_job(meta, alone), ("view1",)))
    return jobs


def _phase1_job(meta, loss):
    return Phase1Job.model_validate({**TRAIN, "phase": "phase1", "model": fmri_model(meta["config"]), "loss": loss})


def load_all(module, state):
    """Load by name; nothing may be missing or left over."""
    module.load_state_dict(state, strict=True)


def key_bias_free(name, value):
    """Cut out the bias of attention keys: its true gradient is zero, so what is stored is rounding noise."""
    if name.endswith("attn.qkv.bias"):
        query, _, rest = value.chunk(3)
        return torch.cat([query, rest])
    return None if name.endswith("attention.key.bias") else value


def assert_close(found, expected, what, rest=REST, floor=1e-12):
    """Largest difference against the largest entry of the stored tensor, or ``floor`` if that is larger."""
    assert found.shape == expected.shape, what
    largest = expected.abs().max().clamp(min=floor)
    difference = ((found - expected).abs().max() / largest).item()
    assert difference <= rest, f"{what}: differs by {difference:.2e} of its largest entry"


def assert_gradients(module, stored, prefix, rest=REST):
    """Compare every stored gradient with the module's.

    Gradients a million times smaller than the network's largest are held to that floor: they are differences of large
    numbers, and the paper's code in float32 is as far from itself in float64.
    """
    largest = max((value.abs().max().item() for name, value in stored.items() if name.startswith(prefix)), default=0.0)
    floor = 1e-6 * largest or 1e-3  # a single sample has no negatives, and perhaps no gradient at all
    parameters = dict(module.named_parameters())
    compared = 0
    for name, expected in stored.items():
        if not name.startswith(prefix):
            continue
        name = name[len(prefix) :]
        expected = key_bias_free(name, expected)
        if expected is None or name not in parameters:
            continue
        found = parameters[name].grad
        assert found is not None, f"no gradient reached {name}"
        assert_close(key_bias_free(name, found), expected, f"gradient of {name}", rest, floor)
        compared += 1
    return compared


def learning_rate(meta, epoch):
    """The paper code's schedule: linear over the warm-up epochs, then a cosine to ``min_lr``."""
    warmup, last = meta["warmup_epochs"], meta["num_epoch"]
    if epoch < warmup:
        return meta["lr"] * epoch / warmup
    cosine = (1 + math.cos(math.pi * (epoch - warmup) / (last - warmup))) / 2
    return meta["min_lr"] + (meta["lr"] - meta["min_lr"]) * cosine


def adamw(named, meta):
    """AdamW with the paper code's two groups, checked against the stored lists of names."""
    plain = {name for name, p in named if p.ndim <= 1 or name.endswith(".bias")}
    assert plain == set(meta["no_decay"])
    assert {name for name, _ in named} - plain == set(meta["decay"])
    groups = [
        {"params": [p for name, p in named if name in plain], "weight_decay": 0.0},
        {"params": [p for name, p in named if name not in plain], "weight_decay": meta["weight_decay"]},
    ]
    return torch.optim.AdamW(groups, lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta.get("eps", 1e-8))
