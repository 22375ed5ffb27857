"""Phase 1: pre-train the fMRI autoencoder with a double contrastive loss (paper section 3.1).

Two views of a signal are two masks of it. A prediction shall rebuild what was hidden ("rebuild"), be told apart by its
own input ("self") and by the prediction from the other view ("cross").

Inside, a batch is a list of stretches, samples of one width each: one as a rule, several where samples of different
widths are packed. Predictions and targets are patches, in the network's order.

Legend: B records, V voxels, L patches, P values per patch, W values of a whole sample, the widest one's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadiff.config import Phase1Job, Phase1Loss
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.kernels.pairs import Pairs
from cadiff.kernels.similarity import info_nce
from cadiff.losses import contrast_among_anchors, rebuild_loss
from cadiff.models.fmri_mae import FmriMae, clip_patches
from cadiff.models.fmri_packed import FmriPackedMae
from cadiff.phases import Space
from cadiff.phases.pretrain_views import Batch, Views, plain_batches, stacked

PREVIEWED = 4  # records drawn in a preview
COLDEST = 0.01  # the lowest learned temperature (Radford et al., 2021, section 2.5)


class Pretrain(nn.Module):
    """A batch of signals becomes the weighted terms "rebuild", "self" and "cross"; a term of weight zero is absent.

    Attributes:
        contrasts_whole_batch: the contrastive terms are those of all micro-batches of a step together, so each forward
            wants what the others predicted (``features``) beside its own batch.
        gauges: what a report says beside the terms, as of the latest forward; 0-d tensors on the device.

    Raises:
        ConfigError: sizes do not fit the data, the focus region is outside it, or no term has a weight.
    """

    def __init__(self, job: Phase1Job, space: Space) -> None:
        super().__init__()
        self.weights = checked_weights(job.loss)
        self.self_on_both = "self" in self.weights and job.loss.self_on_both_views
        self.views = 2 if "cross" in self.weights or self.self_on_both else 1
        self.contrasts_whole_batch = self.weights.keys() != {"rebuild"} and job.loss.negatives in ("global", "ring")
        self.job, self.init_report = job, {}
        self.gauges: dict[str, Tensor] = {}
        network = FmriPackedMae if job.data.pad == "packed" else FmriMae
        checkpoint = job.engine.checkpoint_activations
        self.fmri = network(job.model, space.voxels, job.data.clip_frames, checkpoint=checkpoint)
        self._views = Views(job, self.fmri.places, self.fmri.spans)
        if job.loss.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor([job.loss.temperature]).log())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of ``signal`` float32 (B, V), masks and dropout keyed by ``epoch`` and ``sample_id``.

        Clips are (B, frames, V); a packed ``signal`` (sum of lengths,) has ``lengths`` int64 (B,) with it, on the CPU.

        The keys ``others/*`` hold what ``features`` gave for this rank's other micro-batches of the step, where the
        contrast is of the whole batch. Its value is then the whole batch's; its gradient with respect to this
        micro-batch is scaled up, so that the mean over micro-batches, which accumulation takes, is the whole batch's.
        """
        parts = plain_batches(batch)
        return self._terms(parts, self._maskings(parts), batch)

    def terms(self, signal_BV: Tensor, maskings: list[Masking], batch: Batch | None = None) -> dict[str, Tensor]:
        """The same of signals of one width for given masks, one per view; nothing is dropped without a batch."""
        batch = batch or {}
        return self._terms([{**batch, "signal": signal_BV}], [[masking] for masking in maskings], batch)

    def _terms(self, parts: list[Batch], maskings: list[list[Masking]], batch: Batch) -> dict[str, Tensor]:
        predictions, targets = self._predict(parts, maskings), self._targets(parts)
        rows = self._compared(predictions, targets)
        rows |= {name: batch[name] for name in ("subject", "stimulus") if name in batch}
        rows = with_others(rows, {name: batch[f"others/{name}"] for name in rows if f"others/{name}" in batch})
        pairs = self._pairs(rows)
        terms = {}
        if "rebuild" in self.weights:
            terms["rebuild"] = rebuild_of_stretches(predictions[0], targets, maskings[0])
        if "self" in self.weights:
            terms["self"] = self._contrast_to_input(rows["first"], rows["signal"], pairs)
            if self.self_on_both:
                terms["self"] = terms["self"] + self._contrast_to_input(rows["second"], rows["signal"], pairs)
        if "cross" in self.weights:
            terms["cross"] = self._contrast(rows["first"], rows["second"], pairs)
        return {name: self.weights[name] * term for name, term in terms.items()}

    @torch.no_grad()
    def features(self, batch: Batch) -> dict[str, Tensor]:
        """What other micro-batches of the step need to know of this one, B rows each: predictions, input, numbers."""
        parts = plain_batches(batch)
        rows = self._compared(self._predict(parts, self._maskings(parts)), self._targets(parts))
        return {name: value.float() for name, value in rows.items()} | {
            name: batch[name] for name in ("subject", "stimulus")
        }

    def mask(self, batch: Batch, view: int) -> Masking:
        """The mask of view 1 or 2 of a batch whose samples have one width."""
        return self._views.mask(batch, view)

    def parts(self) -> dict[str, nn.Module]:
        return {"fmri": self.fmri}

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The first few records: ``signal``, ``visible`` (NaN where hidden) and ``prediction``, float32 (n, V) each.

        Of clips the first frame; of a packed batch records of its first sample's width.
        """
        few = {name: plain_batches(batch)[0][name][:PREVIEWED] for name in ("signal", "epoch", "sample_id")}
        masking, signal = self.mask(few, 1), few["signal"]
        patches_BLP = self._predict([few], [[masking]])[0][0]
        if signal.ndim == 3:
            places, signal = self.fmri.places, signal[:, 0]
            patches_BLP = patches_BLP[:, :places, : self.fmri.patch]
            masking = replace(masking, hidden_BL=masking.hidden_BL[:, :places])
        return fmri_preview(signal, patches_BLP, masking)

    def _maskings(self, parts: list[Batch]) -> list[list[Masking]]:
        return [[self._views.mask(part, view) for part in parts] for view in range(1, self.views + 1)]

    def _predict(self, parts: list[Batch], maskings: list[list[Masking]]) -> list[list[Tensor]]:
        """Predicted patches (B, L, P) for each view and stretch; all views go through the network as one batch."""
        seen = [self._seen(part, view) for view in range(1, len(maskings) + 1) for part in parts]
        flat = [masking for of_view in maskings for masking in of_view]
        if isinstance(self.fmri, FmriPackedMae):
            patches = self.fmri.rebuild(seen, flat)
        else:
            patches = self.fmri(torch.cat(seen), stacked(flat)).split(len(seen[0]))
        return [list(patches[i : i + len(parts)]) for i in range(0, len(patches), len(parts))]

    def _seen(self, part: Batch, view: int) -> Tensor:
        """What the network reads: the signals, in training without the dropped voxels."""
        return self._views.seen(part, view) if self.training and "sample_id" in part else part["signal"]

    def _targets(self, parts: list[Batch]) -> list[Tensor]:
        model = self.job.model
        return [clip_patches(part["signal"], model.patch, model.patch_frames) for part in parts]

    def _compared(self, predictions: list[list[Tensor]], targets: list[Tensor]) -> dict[str, Tensor]:
        """What the contrast compares, (B, W) each: ``signal``, and the predictions of the views there are."""
        named = {"signal": targets, **dict(zip(("first", "second"), predictions))}
        return {name: one_width(patches, self.fmri.length) for name, patches in named.items()}

    def _pairs(self, rows: dict[str, Tensor]) -> Pairs:
        loss = self.job.loss
        return Pairs(rows.get("stimulus"), loss.repeats, rows.get("subject"), loss.negative_subjects)

    def _temperature(self) -> float | Tensor:
        """The temperature of the contrastive terms; a learned one stays above 0.01, as in CLIP."""
        if not self.job.loss.learn_temperature:
            return self.job.loss.temperature
        learned = self.log_temperature[0].exp()
        learned = learned + (learned.clamp(min=COLDEST) - learned).detach()  # the gradient can lead back up
        self.gauges["temperature"] = learned.detach()
        return learned

    def _contrast(self, anchor_BV: Tensor, target_BV: Tensor, pairs: Pairs) -> Tensor:
        loss = self.job.loss
        negatives = "micro" if loss.negatives == "predictions" else loss.negatives
        options = {"symmetric": loss.symmetric, "negatives": negatives, "pairs": pairs}
        return info_nce(anchor_BV, target_BV, self._temperature(), **options)

    def _contrast_to_input(self, prediction_BV: Tensor, signal_BV: Tensor, pairs: Pairs) -> Tensor:
        if self.job.loss.negatives == "predictions":
            return contrast_among_anchors(prediction_BV, signal_BV, self._temperature())
        return self._contrast(prediction_BV, signal_BV, pairs)


def checked_weights(loss: Phase1Loss) -> dict[str, float]:
    """The weight of each term that has one.

    Raises:
        ConfigError: no term has a weight, or settings of the contrast that exclude each other.
    """
    contrasts = {"self": loss.scale * loss.self_contrast, "cross": loss.scale * loss.cross_contrast}
    weights = {name: weight for name, weight in {"rebuild": loss.rebuild, **contrasts}.items() if weight}
    if not weights:
        raise ConfigError(
            "All terms of phase 1 have weight 0, so there is nothing to train on. "
            "Set loss.rebuild, or a contrastive weight together with loss.scale."
        )
    if loss.learn_temperature and loss.temperature < COLDEST:
        raise ConfigError(
            f"loss.temperature = {loss.temperature}: a learned temperature stays at {COLDEST} or above. Begin there."
        )
    plain = {"negative_subjects": "any", "repeats": "negative", "symmetric": False}
    changed = [name for name, value in plain.items() if getattr(loss, name) != value]
    if loss.negatives == "predictions" and changed:
        raise ConfigError(
            f"loss.{changed[0]} = {getattr(loss, changed[0])!r} chooses among targets, and with loss.negatives = "
            "'predictions' the negatives are none. Set one of them to its default."
        )
    return weights


def with_others(rows: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
    """This micro-batch's rows, then those of the step's other micro-batches.

    Where there are others, the gradient of the network's rows grows by the number of micro-batches: accumulation will
    divide by it, although these rows get a gradient once.
    """
    if not others:
        return rows
    grown = (len(rows["signal"]) + len(others["signal"])) / len(rows["signal"])
    whole = {}
    for name, mine in rows.items():
        if mine.requires_grad:
            mine = mine.detach() + grown * (mine - mine.detach())
        whole[name] = torch.cat([mine, others[name].to(mine.dtype)]) if name in others else mine
    return whole


def one_width(parts: list[Tensor], length: int) -> Tensor:
    """Patches (B, L, P) of all stretches as rows (B, length * P): zeros stand behind a narrower sample's values."""
    width = length * parts[0].shape[2]
    if len(parts) == 1 and parts[0][0].numel() == width:
        return parts[0].flatten(1)
    return torch.cat([F.pad(patches_BLP.flatten(1), (0, width - patches_BLP[0].numel())) for patches_BLP in parts])


def rebuild_of_stretches(predictions: list[Tensor], targets: list[Tensor], maskings: list[Masking]) -> Tensor:
    """``rebuild_loss`` of samples of several widths: each sample counts alike, however wide it is."""
    losses = [
        rebuild_loss(prediction_BLP, target_BLP, masking.hidden_BL) * len(target_BLP)
        for prediction_BLP, target_BLP, masking in zip(predictions, targets, maskings, strict=True)
    ]
    return torch.stack(losses).sum() / sum(len(target_BLP) for target_BLP in targets)


def fmri_preview(signal_BV: Tensor, prediction_BLP: Tensor, masking: Masking) -> dict[str, Any]:
    """Arrays worth drawing, float32 (B, V): the signal, what was visible of it (else NaN), and the prediction."""
    hidden_BV = masking.hidden_BL.bool().repeat_interleave(prediction_BLP.shape[2], dim=1)
    return {
        "signal": signal_BV.float(),
        "visible": signal_BV.float().masked_fill(hidden_BV, float("nan")),
        "prediction": prediction_BLP.flatten(1).float(),
    }
