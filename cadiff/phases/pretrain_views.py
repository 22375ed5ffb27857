"""The views of phase 1: which patches of a sample are hidden, which of its voxels are dropped, keyed by the sample.

Everything here takes plain batches, whose samples have one width; a packed batch is cut into such first.

Legend: B records, F frames of a clip, V voxels, L patches, P values per patch, K kept, S spans of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cadiff.config import Phase1Job
from cadiff.kernels.keyed import keyed_draws
from cadiff.kernels.mask import Masking, focus_weights, random_mask
from cadiff.models.fmri_packed import stretches

Batch = dict[str, Tensor]


def plain_batches(batch: Batch) -> list[Batch]:
    """The batch itself; or, if it is packed, its stretches of samples of one width, in order.

    ``lengths`` is read by the host: on a GPU it would be waited for, so the engine leaves it where the stream put it.
    """
    if "lengths" not in batch:
        return [batch]
    parts, row, begin = [], 0, 0
    for count, voxels in stretches(batch["lengths"].tolist()):
        keys = {name: batch[name][row : row + count] for name in ("epoch", "sample_id")}
        signal_BV = batch["signal"][begin : begin + count * voxels].view(count, voxels)
        parts.append({"signal": signal_BV, **keys})
        row, begin = row + count, begin + count * voxels
    return parts


class Views:
    """Draws what each view of a batch sees. A draw is a function of (seed, view, epoch, sample id) and nothing else.

    Args:
        spans: of frames in a clip.

    Raises:
        ConfigError: the focus region is outside the widest signal.
    """

    def __init__(self, job: Phase1Job, places: int, spans: int) -> None:
        self._job, self._spans = job, spans
        self._focus: dict[tuple[int, torch.device], Tensor | None] = {}
        self._focus_of(places, torch.device("cpu"))

    def mask(self, batch: Batch, view: int) -> Masking:
        """The patches that view 1 or 2 of a plain batch hides; ``mask.tube`` hides the same places in every span."""
        options = self._job.mask
        places = batch["signal"].shape[-1] // self._job.model.patch
        spans = 1 if options.tube else self._spans
        masking = random_mask(
            self._job.seed,
            f"phase1/view{view}",
            batch["epoch"],
            batch["sample_id"],
            spans * places,
            options.ratio,
            self._focus_of(places, batch["signal"].device),
        )
        return in_every_span(masking, self._spans) if options.tube else masking

    def seen(self, batch: Batch, view: int) -> Tensor:
        """The signals of a plain batch with ``mask.voxel_dropout`` of the voxels at 0: what a view's network reads."""
        key = (self._job.seed, f"phase1/dropout/view{view}", batch["epoch"], batch["sample_id"])
        return drop_voxels(batch["signal"], *key, self._job.mask.voxel_dropout)

    def _focus_of(self, places: int, device: torch.device) -> Tensor | None:
        """Weights of a mask's patches; they go to a device once, as a mask that waits for a copy waits every step."""
        if (places, device) not in self._focus:
            options = self._job.mask
            weights_L = focus_weights(places, self._job.model.patch, options.focus_range, options.focus_rate)
            if weights_L is not None:
                weights_L = weights_L.repeat(1 if options.tube else self._spans).to(device)
            self._focus[places, device] = weights_L
        return self._focus[places, device]


def drop_voxels(signal: Tensor, seed: int, stream: str, epoch_B: Tensor, sample_id_B: Tensor, share: float) -> Tensor:
    """Put int(share * V) voxels of each sample to 0, for all frames of a clip.

    Args:
        signal: (B, V), or clips (B, F, V).
        seed, stream, epoch_B, sample_id_B: what the choice is keyed by (cadiff.kernels.keyed).
    """
    voxels = signal.shape[-1]
    count = int(share * voxels)
    if count == 0:
        return signal
    # Draw and position in one integer: all differ, so exactly ``count`` of them are up to the count-th smallest.
    place_V = torch.arange(voxels, device=signal.device)
    keys_BV = keyed_draws(seed, stream, epoch_B, sample_id_B, voxels).bitwise_left_shift_(32).bitwise_or_(place_V)
    gone_BV = keys_BV <= keys_BV.kthvalue(count, dim=1, keepdim=True).values
    return signal.masked_fill(gone_BV if signal.ndim == 2 else gone_BV[:, None], 0.0)


def in_every_span(masking: Masking, spans: int) -> Masking:
    """A mask of places as the mask of a clip that hides these places in every span of frames."""
    kept, places = masking.keep_BK.shape[1], masking.hidden_BL.shape[1]
    span_S1 = torch.arange(spans, device=masking.keep_BK.device)[:, None]
    place_B1L = masking.restore_BL[:, None]
    # The kept patches of all spans come first, span after span, then the hidden ones in the same way.
    among_hidden = spans * kept + span_S1 * (places - kept) + place_B1L - kept
    restore_BSL = torch.where(place_B1L < kept, span_S1 * kept + place_B1L, among_hidden)
    keep_BSK = span_S1 * places + masking.keep_BK[:, None]
    return Masking(keep_BSK.flatten(1), restore_BSL.flatten(1), masking.hidden_BL.repeat(1, spans))


def stacked(maskings: list[Masking]) -> Masking:
    """Masks of several batches as the mask of one batch, in order."""
    return Masking(
        torch.cat([masking.keep_BK for masking in maskings]),
        torch.cat([masking.restore_BL for masking in maskings]),
        torch.cat([masking.hidden_BL for masking in maskings]),
    )
