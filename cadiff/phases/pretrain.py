"""Phase 1: pre-train the fMRI autoencoder with a double contrastive loss (paper section 3.1).

Two views of a signal are two masks of it. A prediction shall rebuild what was hidden ("rebuild"), be told apart by its
own input ("self") and by the prediction from the other view ("cross").

Legend: B records, V voxels, L patches, P voxels per patch, 2B both views, first views first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cadiff.config import Phase1Job
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking, focus_weights, random_mask
from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import ANY_PAIRS, info_nce
from cadiff.losses import contrast_among_anchors, rebuild_loss
from cadiff.models.fmri_mae import FmriMae
from cadiff.phases import Space

PREVIEWED = 4  # records drawn in a preview


class Pretrain(nn.Module):
    """A batch of signals becomes the weighted terms "rebuild", "self" and "cross"; a term of weight zero is absent.

    Raises:
        ConfigError: sizes do not fit the data, the focus region is outside it, or no term has a weight.
    """

    def __init__(self, job: Phase1Job, space: Space) -> None:
        super().__init__()
        loss = job.loss
        weights = {
            "rebuild": loss.rebuild,
            "self": loss.scale * loss.self_contrast,
            "cross": loss.scale * loss.cross_contrast,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if not self.weights:
            raise ConfigError(
                "All terms of phase 1 have weight 0, so there is nothing to train on. "
                "Set loss.rebuild, or a contrastive weight together with loss.scale."
            )
        if loss.negatives == "predictions" and loss.negative_subjects != "any":
            raise ConfigError(
                f"loss.negative_subjects = '{loss.negative_subjects}' chooses among targets, and with loss.negatives = "
                "'predictions' the negatives are none. Set one of them to its default."
            )
        self.negative_subjects = loss.negative_subjects
        self.self_on_both = "self" in self.weights and loss.self_on_both_views
        self.views = 2 if "cross" in self.weights or self.self_on_both else 1
        self.job, self.init_report = job, {}
        self.fmri = FmriMae(job.model, space.voxels, checkpoint=job.engine.checkpoint_activations)
        self.focus_L = focus_weights(self.fmri.length, job.model.patch, job.mask.focus_range, job.mask.focus_rate)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms of ``signal`` float32 (B, V), masks keyed by ``epoch`` and ``sample_id``."""
        maskings = [self.mask(batch, view) for view in range(1, self.views + 1)]
        return self.terms(batch["signal"], maskings, Pairs(subject_B=batch["subject"], subjects=self.negative_subjects))

    def terms(self, signal_BV: Tensor, maskings: list[Masking], pairs: Pairs = ANY_PAIRS) -> dict[str, Tensor]:
        """The same for given masks, one per view: both views go through the network as one batch."""
        batch = len(signal_BV)
        patches_XLP = self.fmri(signal_BV.repeat(len(maskings), 1), stacked(maskings))
        first_BLP, second_BLP = patches_XLP[:batch], patches_XLP[batch:]
        terms = {}
        if "rebuild" in self.weights:
            target_BLP = signal_BV.unflatten(1, (-1, self.fmri.patch))
            terms["rebuild"] = rebuild_loss(first_BLP, target_BLP, maskings[0].hidden_BL)
        if "self" in self.weights:
            terms["self"] = self._contrast_to_input(first_BLP.flatten(1), signal_BV, pairs)
            if self.self_on_both:
                terms["self"] = terms["self"] + self._contrast_to_input(second_BLP.flatten(1), signal_BV, pairs)
        if "cross" in self.weights:
            terms["cross"] = self._contrast(first_BLP.flatten(1), second_BLP.flatten(1), pairs)
        return {name: self.weights[name] * term for name, term in terms.items()}

    def mask(self, batch: dict[str, Tensor], view: int) -> Masking:
        """The mask of view 1 or 2."""
        return random_mask(
            self.job.seed,
            f"phase1/view{view}",
            batch["epoch"],
            batch["sample_id"],
            self.fmri.length,
            self.job.mask.ratio,
            self.focus_L,
        )

    def parts(self) -> dict[str, nn.Module]:
        return {"fmri": self.fmri}

    @torch.no_grad()
    def preview(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first few records: ``signal``, ``visible`` (NaN where hidden) and ``prediction``, float32 (n, V) each."""
        few = {name: batch[name][:PREVIEWED] for name in ("signal", "epoch", "sample_id")}
        masking = self.mask(few, 1)
        return fmri_preview(few["signal"], self.fmri(few["signal"], masking), masking)

    def _contrast(self, anchor_BV: Tensor, target_BV: Tensor, pairs: Pairs) -> Tensor:
        loss = self.job.loss
        negatives = "micro" if loss.negatives == "predictions" else loss.negatives
        return info_nce(anchor_BV, target_BV, loss.temperature, negatives=negatives, pairs=pairs)

    def _contrast_to_input(self, prediction_BV: Tensor, signal_BV: Tensor, pairs: Pairs) -> Tensor:
        if self.job.loss.negatives == "predictions":
            return contrast_among_anchors(prediction_BV, signal_BV, self.job.loss.temperature)
        return self._contrast(prediction_BV, signal_BV, pairs)


def stacked(maskings: list[Masking]) -> Masking:
    """Masks of several batches as the mask of one batch, in order."""
    return Masking(
        torch.cat([masking.keep_BK for masking in maskings]),
        torch.cat([masking.restore_BL for masking in maskings]),
        torch.cat([masking.hidden_BL for masking in maskings]),
    )


def fmri_preview(signal_BV: Tensor, prediction_BLP: Tensor, masking: Masking) -> dict[str, Any]:
    """Arrays worth drawing, float32 (B, V): the signal, what was visible of it (else NaN), and the prediction."""
    hidden_BV = masking.hidden_BL.bool().repeat_interleave(prediction_BLP.shape[2], dim=1)
    return {
        "signal": signal_BV.float(),
        "visible": signal_BV.float().masked_fill(hidden_BV, float("nan")),
        "prediction": prediction_BLP.flatten(1).float(),
    }
