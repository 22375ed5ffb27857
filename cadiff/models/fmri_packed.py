"""The fMRI autoencoder on samples of different widths: one batch without padding, each attending to itself alone.

A packed batch is a list of stretches: neighbouring samples of one width, as plain batches. Everything that works on
tokens one by one sees all of them laid end to end; attention knows where each sample ends (attention_packed).

Legend: B records of a stretch, V their voxels, L their patches, P values per patch, K kept, N tokens of a record, T
tokens of all records, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from cadiff.kernels.mask import Masking
from cadiff.layers import run_layers
from cadiff.models.fmri_mae import FmriMae


class FmriPackedMae(FmriMae):
    """The same weights under the same names as ``FmriMae``, which is built for the widest sample.

    A sample that is narrower has the first of its patches and positions.
    """

    def rebuild(self, signals: Sequence[Tensor], maskings: Sequence[Masking]) -> list[Tensor]:
        """``forward``, taken apart again: predicted patches (B, L, P) of each stretch, as ``FmriMae`` gives alone."""
        sizes = [(len(masking.hidden_BL), 1 + masking.hidden_BL.shape[1]) for masking in maskings]
        return [patches_BLP[:, 1:] for patches_BLP in apart(self(signals, maskings), sizes)]

    def forward(self, signals: Sequence[Tensor], maskings: Sequence[Masking]) -> Tensor:
        """Rebuild signals from their kept patches.

        It takes lists, but gives one tensor: ranks have different numbers of stretches, and under ZeRO-3 each output of
        a layer is met by a collective in backward.

        Args:
            signals: float (B, V) for each stretch.
            maskings: one for each stretch.

        Returns:
            what is predicted for the class token, which means nothing, and the patches of every record in turn: (T, P).
        """
        entering = self.embed_all(signals, maskings)
        tokens_TD = run_layers(self.blocks, end_to_end(entering), sequences(entering), checkpoint=self.checkpoint)
        visible = apart(self.decoder_embed(self.norm(tokens_TD)), _sizes(entering))
        placed = [self.placed(tokens_BND, masking) for tokens_BND, masking in zip(visible, maskings)]
        tokens_TD = run_layers(self.decoder_blocks, end_to_end(placed), sequences(placed), checkpoint=self.checkpoint)
        return self.decoder_pred(self.decoder_norm(tokens_TD))

    def embed_all(self, signals: Sequence[Tensor], maskings: Sequence[Masking]) -> list[Tensor]:
        """``embed`` of every stretch, by one call of the projection.

        Ranks have different numbers of stretches, and under ZeRO-3 every call of a layer with parameters is a
        collective: all ranks must call it equally often.
        """
        kept = [
            signal_BV.unflatten(1, (-1, self.patch)).gather(1, masking.keep_BK[:, :, None].expand(-1, -1, self.patch))
            for signal_BV, masking in zip(signals, maskings, strict=True)
        ]
        kept_TP = end_to_end(kept)
        first_T1 = torch.zeros(len(kept_TP), 1, dtype=torch.int64, device=kept_TP.device)
        nowhere_1D = torch.zeros_like(self.pos_embed[0, :1])
        first_11D = self.cls_token + self.pos_embed[:, :1]
        tokens_TD = self.patch_embed(kept_TP, first_T1, nowhere_1D)[:, 0]
        entering = []
        for tokens_BKD, masking in zip(apart(tokens_TD, _sizes(kept)), maskings):
            tokens_BKD = tokens_BKD + self.pos_embed[0, 1:][masking.keep_BK].to(tokens_BKD.dtype)
            entering.append(torch.cat([first_11D.expand(len(tokens_BKD), -1, -1), tokens_BKD], dim=1))
        return entering


def stretches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours of one length as (how many, length), in order."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Tokens (B, N, D) of each stretch as (T, D)."""
    return torch.cat([tokens_BND.flatten(0, 1) for tokens_BND in parts])


def sequences(parts: Sequence[Tensor]) -> list[int]:
    """How many tokens each record has, over all stretches."""
    return [tokens_BND.shape[1] for tokens_BND in parts for _ in range(len(tokens_BND))]


def apart(tokens_TD: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Undo ``end_to_end``: (B, N, D) of each stretch, of these sizes (B, N)."""
    rows = tokens_TD.split([batch * count for batch, count in sizes])
    return [part.unflatten(0, size) for part, size in zip(rows, sizes)]


def _sizes(parts: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(part.shape[0], part.shape[1]) for part in parts]
