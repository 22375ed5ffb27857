"""Phase 2: tune the fMRI autoencoder together with an image autoencoder, each guided by the other (paper section 3.2).

One joint step: hidden fMRI patches are rebuilt with the whole image at hand, hidden image patches with the whole
signal at hand. The second term also trains the fMRI encoder, through the support it gives.

Legend: B records, V voxels, S pixels per side, L patches, P values per patch, M tokens of the other branch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import Phase2Job
from cadiff.errors import ConfigError
from cadiff.exports import load_into, load_part
from cadiff.kernels.mask import Masking, random_mask
from cadiff.losses import normalised_patches, patch_moments, rebuild_loss
from cadiff.models.cross_mae import FmriCrossMae, ImageCrossMae
from cadiff.models.image_mae import image_from_patches, image_patches, normalise_image, restore_image
from cadiff.models.vit_weights import load_vit
from cadiff.phases import Space
from cadiff.phases.pretrain import PREVIEWED, fmri_preview

GREY = 128  # what stands for a hidden image patch in a preview
POSITIONS = {"pos_embed", "decoder_pos_embed"}


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
        if not (job.init.image or job.image.train_encoder):
            raise ConfigError(
                "init.image is empty, so the image encoder starts fresh, yet image.train_encoder = false keeps it "
                "frozen. Name a folder with a ViT-MAE in init.image, or set image.train_encoder = true."
            )
        checkpoint = job.engine.checkpoint_activations
        self.job, self.init_report = job, {}
        self.fmri = FmriCrossMae(job.model, space.voxels, job.cross, job.image, checkpoint=checkpoint)
        self.image = ImageCrossMae(job.image, job.data.image_size, job.cross, job.model.width, checkpoint=checkpoint)
        if job.init.fmri:
            self.init_report["fmri"] = load_fmri(self.fmri, job.init.fmri)
        if job.init.image:
            self.init_report["image"] = load_vit(self.image, job.init.image, job.image, job.data.image_size)
        if not job.image.train_encoder:
            self.image.freeze_encoder()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms of ``signal`` float32 (B, V) and ``image`` uint8 (B, 3, S, S), masks keyed by sample."""
        return self.terms(batch["signal"], normalise_image(batch["image"]), *self.masks(batch))

    def terms(
        self, signal_BV: Tensor, pixels_BCSS: Tensor, fmri_masking: Masking, image_masking: Masking
    ) -> dict[str, Tensor]:
        """The same for normalised pixels and given masks."""
        terms = {}
        if "fmri" in self.weights:
            prediction_BLP = self._rebuild_fmri(signal_BV, pixels_BCSS, fmri_masking)
            target_BLP = signal_BV.unflatten(1, (-1, self.fmri.patch))
            terms["fmri"] = rebuild_loss(prediction_BLP, target_BLP, fmri_masking.hidden_BL)
        if "image" in self.weights:
            prediction_BLP = self._rebuild_image(signal_BV, pixels_BCSS, image_masking)
            target_BLP = image_patches(pixels_BCSS, self.image.patch)
            if self.job.loss.norm_pix:
                target_BLP = normalised_patches(target_BLP)
            terms["image"] = rebuild_loss(prediction_BLP, target_BLP, image_masking.hidden_BL)
        return {name: self.weights[name] * term for name, term in terms.items()}

    def _rebuild_fmri(self, signal_BV: Tensor, pixels_BCSS: Tensor, masking: Masking) -> Tensor:
        return self.fmri(signal_BV, masking, self.image.vit(pixels_BCSS))

    def _rebuild_image(self, signal_BV: Tensor, pixels_BCSS: Tensor, masking: Masking) -> Tensor:
        # Not detached: this is how the image teaches the fMRI encoder.
        return self.image(pixels_BCSS, masking, self.fmri.encode(signal_BV))

    def masks(self, batch: dict[str, Tensor]) -> tuple[Masking, Masking]:
        """The fMRI mask and the image mask of a batch."""
        seed, keys, loss = self.job.seed, (batch["epoch"], batch["sample_id"]), self.job.loss
        return (
            random_mask(seed, "phase2/fmri", *keys, self.fmri.length, loss.fmri_mask),
            random_mask(seed, "phase2/image", *keys, self.image.length, loss.image_mask),
        )

    def parts(self) -> dict[str, nn.Module]:
        return {"fmri": self.fmri, "image": self.image}

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first few records: what phase 1 shows, and the same of the images.

        Those are ``image``, ``image_visible`` (hidden patches grey) and ``image_prediction``, uint8 (n, 3, S, S).
        """
        few = {name: batch[name][:PREVIEWED] for name in ("signal", "image", "epoch", "sample_id")}
        fmri_masking, image_masking = self.masks(few)
        pixels_BCSS = normalise_image(few["image"])
        drawn = fmri_preview(few["signal"], self._rebuild_fmri(few["signal"], pixels_BCSS, fmri_masking), fmri_masking)
        patches_BLP = self._rebuild_image(few["signal"], pixels_BCSS, image_masking).float()
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
