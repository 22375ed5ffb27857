"""Whether a job may read what a frozen image encoder made of its pictures, instead of computing it every step."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from cadiff.config import Job
from cadiff.errors import ConfigError, DataError
from cadiff.kernels.mask import kept_patches
from cadiff.models.image_mae import Vit
from cadiff.shards.features import Features

FROZEN = ("embeddings.", "encoder.layer.", "layernorm.")  # the tensors of a Vit that ``freeze_encoder`` freezes


def encoder_hash(vit: Vit) -> str:
    """What identifies a frozen encoder wherever its weights came from: its tensors, and how many heads share them."""
    state = {name: value for name, value in vit.state_dict().items() if name.startswith(FROZEN)}
    hashed = hashlib.sha256(json.dumps({"heads": vit.encoder.layer[0].attention.attention.heads}).encode())
    for name, value in sorted(state.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().numpy())
    return hashed.hexdigest()


def open_features(job: Job) -> Features | None:
    """The features that a job names, once its settings agree with them; None where it names none.

    Raises:
        ConfigError: another phase, an encoder that is trained, or another image size or choice of masks.
        DataError: not a sound folder of features.
    """
    folder = job.data.features
    if not folder:
        return None
    if job.phase != "phase2":
        raise ConfigError(f"data.features = '{folder}': {job.phase} has no frozen image encoder. Set data.features=''.")
    if job.image.train_encoder:
        raise ConfigError(
            f"data.features = '{folder}' are of a frozen encoder, but image.train_encoder = true changes it. "
            "Set image.train_encoder=false, or data.features=''."
        )
    features = Features(folder)
    about, wanted = features.manifest, job.loss.image_masks
    pairs = {"data.image_size": (job.data.image_size, about.image_size)}
    if wanted:  # a picture's masks do not depend on how many others it has
        pairs["loss.image_masks"] = (wanted, min(wanted, about.masks))
        pairs |= {"loss.image_mask": (job.loss.image_mask, about.mask_ratio), "seed": (job.seed, about.seed)}
    for key, (asked, found) in pairs.items():
        if asked != found:
            options = f" --masks {wanted} --mask-ratio {job.loss.image_mask} --seed {job.seed}" if wanted else ""
            raise ConfigError(
                f"data.features = '{folder}' were packed for {key} = {found}, this job has {asked}. Pack others with "
                f"`cadiff pack features ... --image-size {job.data.image_size}{options}`, or set data.features=''."
            )
    return features


def features_identity(features: Features | None, precision: str) -> str | None:
    """What makes training with kept features another experiment than computing them; None where nothing does.

    Args:
        precision: of the job. The encoder of a cache ran in float32, that of a bf16 job would not.
    """
    if features is None or (features.rounding is None and precision == "fp32"):
        return None
    return features.rounding or f"float32 in {precision}"


def check_encoder(features: Features | None, phase: nn.Module) -> None:
    """Raise ConfigError unless the features are of just the encoder that this phase 2 holds.

    Raises:
        ConfigError: another encoder's. DataError: features.json tells of other tokens than that encoder gives.
    """
    if features is None:
        return
    if features.manifest.encoder != encoder_hash(phase.image.vit):
        raise ConfigError(
            f"data.features: {features.folder} are of another encoder than the one this job starts from. Pack them "
            "again with `cadiff pack features ... --vit` and the folder that init.image names, or set data.features=''."
        )
    about, length = features.manifest, phase.image.length
    visible = 1 + kept_patches(length, about.mask_ratio) if about.masks else 0
    wanted = {"whole": 1 + length, "visible": visible, "width": phase.image.vit.layernorm.normalized_shape[0]}
    for name, value in wanted.items():
        if getattr(about, name) != value:
            raise DataError(
                f"{features.folder}/features.json: {name} is {getattr(about, name)}, but this encoder gives {value}. "
                "Remove the folder and run `cadiff pack features` again."
            )
