"""A frozen encoder of phase 1 or 2: its features of whole signals, and what its export says that it was trained on.

Legend: B records, N samples, L patches, F features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadiff.adapting import network_signals
from cadiff.config import FmriModel
from cadiff.errors import CadiffError, ConfigError
from cadiff.exports import find_export, load_into, load_part, read_card
from cadiff.layers import nothing_hidden
from cadiff.models.adapter import VoxelAdapters, network_voxels, stored_adapters
from cadiff.models.fmri_mae import FmriEncoder
from cadiff.shards.dataset import Dataset
from cadiff.shards.voxels import padded_width

POOLS = ("mean", "cls", "patches")
Seen = set[tuple[str, str]]  # (subject, session and run) of what an encoder was trained on

BATCH = 256


@dataclass(frozen=True)
class Encoder:
    """The encoder of an export: its network in evaluation mode on the CPU, and how it was told to pad signals."""

    network: FmriEncoder
    voxels: int
    packed: bool  # samples keep their own length instead of being padded to the widest
    adapters: VoxelAdapters | None = None  # what signals go through instead of being padded

    @torch.no_grad()
    def features(self, dataset: Dataset, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Frozen features of these samples, float32: the last layer's tokens after its LayerNorm, nothing hidden.

        Returns:
            "mean" (N, D), the mean over patch tokens; "cls" (N, D), the class token; "patches" (N, L * D), all patch
            tokens one after the other, absent where subjects have different numbers of them.

        Raises:
            ConfigError: a subject has more voxels than the encoder. DataError: or no voxel adapter, where others do.
        """
        subject_N, patch = dataset.table.subject[ids], self.network.patch
        width_N = np.full(len(ids), self.voxels)
        if self.packed:
            width_N = np.array([padded_width(voxels, patch) for voxels in dataset.voxel_counts])[subject_N]
        found: dict[str, np.ndarray] = {}
        pools = POOLS if len(set(width_N.tolist())) == 1 else POOLS[:2]
        for width in np.unique(width_N).tolist():
            rows = np.flatnonzero(width_N == width)
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                signal_BV = torch.from_numpy(network_signals(self.adapters, dataset, ids[part], width))
                tokens_BND = self.network(signal_BV, nothing_hidden(len(part), width // patch, signal_BV.device))
                patches_BLD = tokens_BND[:, 1:]
                values = patches_BLD.mean(1), tokens_BND[:, 0], patches_BLD.flatten(1)
                for pool, value_BF in dict(zip(pools, values)).items():
                    found.setdefault(pool, np.empty((len(ids), value_BF.shape[1]), np.float32))[part] = value_BF.numpy()
        return found


def load_encoder(export: str | Path) -> Encoder:
    """The encoder of a phase-1 or phase-2 export (or its run folder), or of a converted checkpoint.

    Raises:
        ConfigError: another phase's export, or an encoder of clips. DataError: damaged.
    """
    folder, card = find_export(export), read_card(export)
    if card["phase"] not in ("phase1", "phase2"):
        raise ConfigError(f"{folder}: holds {card['phase']}; a probe reads phase 1 or 2. Name the run of such a job.")
    data = card["job"].get("data", {})
    if data.get("clip_frames", 1) != 1:
        raise ConfigError(f"{folder}: reads clips of {data['clip_frames']} frames; the probe reads single samples.")
    encoder = _encoder(card)
    load_into(encoder.network, load_part(folder, "fmri"), what=str(folder))
    return replace(encoder, adapters=stored_adapters(folder))


def untrained_encoder(export: str | Path, seed: int) -> Encoder:
    """The same network with the weights it would start from: what the architecture does without any training.

    Voxel adapters are trained ones here too: without them a signal has not the width that the network reads.
    """
    torch.manual_seed(seed)
    return replace(_encoder(read_card(export)), adapters=stored_adapters(export))


def _encoder(card: dict[str, Any]) -> Encoder:
    voxels = network_voxels(card)
    network = FmriEncoder(FmriModel.model_validate(card["job"]["model"]), voxels).eval()
    return Encoder(network, voxels, card["job"].get("data", {}).get("pad") == "packed")


def runs_trained_on(export: str | Path, dataset: Dataset) -> Seen | None:
    """The runs, by subject and name, whose samples the encoder was trained on; None where that cannot be told.

    The export names its packed folders and their hashes. A folder is believed only while it has the hash of then;
    ``dataset`` itself is recognised wherever it lies.
    """
    card = read_card(export)
    data, hashes = card["job"].get("data", {}), card["lineage"].get("data", [])
    folders = data.get("shards", [])
    if not hashes or len(folders) != len(hashes):
        return None
    seen: Seen = set()
    for folder, version in zip(folders, hashes):
        try:
            trained = dataset if version == dataset.hash else Dataset(folder)
        except CadiffError:
            return None
        if trained.hash != version:
            return None
        names = [name for name in data.get("subjects", []) if name in trained.subjects]
        if data.get("subjects") and not names:
            continue
        seen |= set(runs_of(trained, trained.ids("train", names)))
    return seen


def runs_of(dataset: Dataset, ids: np.ndarray) -> list[tuple[str, str]]:
    """Subject, and session and run, of each sample."""
    table = dataset.table
    sessions = [dataset.sessions[i] if i >= 0 else "" for i in table.session[ids].tolist()]
    runs = [dataset.runs[i] if i >= 0 else "" for i in table.run[ids].tolist()]
    subjects = [dataset.subjects[i] for i in table.subject[ids].tolist()]
    return [(who, "/".join(filter(None, where))) for who, *where in zip(subjects, sessions, runs)]


def lineage(export: str | Path) -> dict[str, Any]:
    """What an export says of its training: folders, their hashes, subjects, steps, and the terms that had a weight."""
    card = read_card(export)
    data = card["job"].get("data", {})
    told = {"shards": data.get("shards", []), "hashes": card["lineage"].get("data", [])}
    return told | {"subjects": data.get("subjects", []), "steps": card.get("steps"), "loss": card["job"].get("loss")}
