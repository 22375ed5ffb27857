"""Phase 2: tune the fMRI autoencoder together with an image autoencoder, each guided by the other (paper section 3.2).

One joint step: hidden fMRI patches are rebuilt with the whole image at hand, hidden image patches with the whole
signal at hand. The second term also trains the fMRI encoder, through the support it gives.

Legend: B records, V voxels, S pixels per side, L patches, P values per patch, M tokens of the other branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import Phase2Job
from cadiff.errors import ConfigError
from cadiff.exports import load_into, load_part
from cadiff.kernels.mask import Masking, random_mask
from cadiff.losses import normalised_patches, patch_moments, rebuild_loss
from cadiff.masking import picture_mask
from cadiff.models.adapter import PART
from cadiff.models.cross_mae import FmriCrossMae, ImageCrossMae
from cadiff.models.image_mae import image_from_patches, image_patches, normalise_image, restore_image
from cadiff.models.vit_weights import load_vit
from cadiff.phases import Space
from cadiff.phases.adapted import adapted, phase2_adapters
from cadiff.phases.crosstune_rows import hidden_correlation, pooled
from cadiff.phases.pretrain import PREVIEWED, fmri_preview
from cadiff.phases.tuned import load_tuned

GREY = 128  # what stands for a hidden image patch in a preview
POSITIONS = {"pos_embed", "decoder_pos_embed"}
PREVIEW_KEYS = ("signal", "image", "epoch", "sample_id")
PICTURE_KEYS = ("picture", "image_mask", "image_whole", "image_visible")  # where the stream gives them
NOTHING_KEPT: Mapping[str, Tensor] = MappingProxyType({})


class CrossTune(nn.Module):
    """A batch of signals with their images becomes the weighted terms "fmri" and "image".

    Raises:
        ConfigError: sizes do not fit the data or the loaded weights, nothing has a weight, or a fresh image encoder
            would stay frozen.
        DataError: an ``init`` file is missing or damaged.
    """

    def __init__(self, job: Phase2Job, space: Space) -> None:
        super().__init__()
        weights = {"fmri": job.loss.fmri, "image": job.loss.image}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise ConfigError("Both terms of phase 2 have weight 0. Set loss.fmri or loss.image.")
        if not (job.init.image or job.init.tuned or job.image.train_encoder):
            raise ConfigError(
                "init.image is empty, so the image encoder starts fresh, yet image.train_encoder = false keeps it "
                "frozen. Name a folder with a ViT-MAE in init.image, or set image.train_encoder = true."
            )
        checkpoint = job.engine.checkpoint_activations
        self.job = job
        self.adapters, self.init_report = phase2_adapters(job, space)
        voxels = space.voxels if self.adapters is None else self.adapters.width
        self.architecture = {} if self.adapters is None else {"adapter": self.adapters.describe()}
        self.fmri = FmriCrossMae(job.model, voxels, job.cross, job.image, checkpoint=checkpoint)
        self.image = ImageCrossMae(job.image, job.data.image_size, job.cross, job.model.width, checkpoint=checkpoint)
        if job.init.fmri:
            self.init_report["fmri"] = load_fmri(self.fmri, job.init.fmri)
        if job.init.image:
            self.init_report["image"] = load_vit(self.image, job.init.image, job.image, job.data.image_size)
        if job.init.tuned:
            self.init_report |= load_tuned(self.fmri, self.image, job.init.tuned)
        if not job.image.train_encoder:
            self.image.freeze_encoder()
        if job.adapter.only:
            self.fmri.requires_grad_(False)
            self.image.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms of ``signal`` float32 (B, V) and ``image`` uint8 (B, 3, S, S), masks keyed by sample."""
        pixels_BCSS, masks = normalise_image(batch["image"]), self.masks(batch)
        return self.terms(adapted(self.adapters, batch), pixels_BCSS, *masks, frozen_tokens(batch))

    def terms(
        self,
        signal_BV: Tensor,
        pixels_BCSS: Tensor,
        fmri_masking: Masking,
        image_masking: Masking,
        frozen: Mapping[str, Tensor] = NOTHING_KEPT,
    ) -> dict[str, Tensor]:
        """The same for normalised pixels and given masks. ``frozen``: see ``frozen_tokens``."""
        rebuilt = self.rebuilt(signal_BV, pixels_BCSS, fmri_masking, image_masking, frozen)
        return {name: self.weights[name] * rebuild_loss(*part) for name, part in rebuilt.items()}

    def rebuilt(
        self,
        signal_BV: Tensor,
        pixels_BCSS: Tensor,
        fmri_masking: Masking,
        image_masking: Masking,
        frozen: Mapping[str, Tensor],
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Predicted patches (B, L, P), their targets, and which are hidden (B, L), of each term that has a weight."""
        found = {}
        if "fmri" in self.weights:
            prediction_BLP = self._rebuild_fmri(signal_BV, pixels_BCSS, fmri_masking, frozen)
            target_BLP = signal_BV.detach().unflatten(1, (-1, self.fmri.patch))  # why detached: phases/adapted.py
            found["fmri"] = prediction_BLP, target_BLP, fmri_masking.hidden_BL
        if "image" in self.weights:
            prediction_BLP = self._rebuild_image(signal_BV, pixels_BCSS, image_masking, frozen)
            target_BLP = image_patches(pixels_BCSS, self.image.patch)
            if self.job.loss.norm_pix:
                target_BLP = normalised_patches(target_BLP)
            found["image"] = prediction_BLP, target_BLP, image_masking.hidden_BL
        return found

    @torch.no_grad()
    def figures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How far each sample's predictions of hidden patches go with the truth, float32 (B,) for each term."""
        pixels_BCSS, masks = normalise_image(batch["image"]), self.masks(batch)
        rebuilt = self.rebuilt(adapted(self.adapters, batch), pixels_BCSS, *masks, frozen_tokens(batch))
        return {f"{name}_correlation": hidden_correlation(*part) for name, part in rebuilt.items()}

    @torch.no_grad()
    def fmri_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What retrieval reads of whole signals: ``fmri``, float32 (B, 2D)."""
        return {"fmri": pooled(self.fmri.encode(adapted(self.adapters, batch)))}

    @torch.no_grad()
    def image_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What retrieval finds of whole pictures: ``image``, float32 (B, 2I)."""
        kept_BMI = frozen_tokens(batch).get("image_whole")
        return {"image": pooled(self.image.vit(normalise_image(batch["image"])) if kept_BMI is None else kept_BMI)}

    def _rebuild_fmri(
        self, signal_BV: Tensor, pixels_BCSS: Tensor, masking: Masking, frozen: Mapping[str, Tensor]
    ) -> Tensor:
        kept_BMI = frozen.get("image_whole")
        return self.fmri(signal_BV, masking, self.image.vit(pixels_BCSS) if kept_BMI is None else kept_BMI)

    def _rebuild_image(
        self, signal_BV: Tensor, pixels_BCSS: Tensor, masking: Masking, frozen: Mapping[str, Tensor]
    ) -> Tensor:
        support_BMD = self.fmri.encode(signal_BV)  # not detached: this is how the image teaches the fMRI encoder
        if "image_visible" in frozen:
            return self.image.rebuild_from(frozen["image_visible"], masking, support_BMD)
        return self.image(pixels_BCSS, masking, support_BMD)

    def masks(self, batch: dict[str, Tensor]) -> tuple[Masking, Masking]:
        """The fMRI mask and the image mask of a batch."""
        seed, keys, loss = self.job.seed, (batch["epoch"], batch["sample_id"]), self.job.loss
        fmri_masking = random_mask(seed, "phase2/fmri", *keys, self.fmri.length, loss.fmri_mask)
        if loss.image_masks:
            chosen = (batch["picture"], batch["image_mask"])
            return fmri_masking, picture_mask(seed, *chosen, self.image.length, loss.image_mask)
        return fmri_masking, random_mask(seed, "phase2/image", *keys, self.image.length, loss.image_mask)

    def parts(self) -> dict[str, nn.Module]:
        return {"fmri": self.fmri, "image": self.image} | ({PART: self.adapters} if self.adapters else {})

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first few records: what phase 1 shows, and the same of the images.

        Those are ``image``, ``image_visible`` (hidden patches grey) and ``image_prediction``, uint8 (n, 3, S, S).
        """
        batch = batch | {"signal": adapted(self.adapters, batch)}
        few = {name: batch[name][:PREVIEWED] for name in (*PREVIEW_KEYS, *PICTURE_KEYS) if name in batch}
        fmri_masking, image_masking = self.masks(few)
        pixels_BCSS, frozen = normalise_image(few["image"]), frozen_tokens(few)
        rebuilt_BLP = self._rebuild_fmri(few["signal"], pixels_BCSS, fmri_masking, frozen)
        drawn = fmri_preview(few["signal"], rebuilt_BLP, fmri_masking)
        patches_BLP = self._rebuild_image(few["signal"], pixels_BCSS, image_masking, frozen).float()
        if self.job.loss.norm_pix:
            mean, spread = patch_moments(image_patches(pixels_BCSS, self.image.patch))
            patches_BLP = patches_BLP * spread + mean
        hidden_BL1 = image_masking.hidden_BL.bool()[:, :, None]
        visible_BLP = image_patches(few["image"], self.image.patch).masked_fill(hidden_BL1, GREY)
        return drawn | {
            "image": few["image"],
            "image_visible": image_from_patches(visible_BLP, self.image.patch),
            "image_prediction": restore_image(image_from_patches(patches_BLP, self.image.patch)),
        }


def frozen_tokens(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a cache gives of the frozen image encoder, float32: "image_whole" (B, 1 + L, I), its tokens of the whole
    picture, and "image_visible" (B, 1 + K, I), those before the cross layers of what the image mask leaves."""
    return {name: batch[name].float() for name in ("image_whole", "image_visible") if name in batch}


def load_fmri(fmri: FmriCrossMae, folder: str) -> dict[str, list[str]]:
    """Load phase 1's network by name: cross parts stay fresh, decoder blocks beyond the own depth are left out.

    Position tables of another length are not loaded; the model has computed its own.

    Returns:
        The report of ``load_into``.

    Raises:
        ConfigError: the export's sizes differ from this model's.
        DataError: the export is missing or damaged.
    """
    report: dict[str, Any] = load_into(fmri, load_part(folder, "fmri"), what=f"init.fmri {folder}")
    wrong = [name for name in report["resized"] if name not in POSITIONS]
    wrong += [name for name in report["missing"] if not name.startswith("cross_")]
    wrong += [name for name in report["unused"] if not name.startswith("decoder_blocks.")]
    if wrong:
        raise ConfigError(
            f"init.fmri {folder}: {wrong[0]} and {len(wrong) - 1} more tensors differ in shape or exist on one side. "
            "Give [model] the sizes that the export was trained with; only decoder_depth may be smaller."
        )
    return report
