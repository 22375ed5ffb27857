"""Voxel adapters: one learned linear map per subject, from its own voxels into a voxel space that all subjects share.

Wrap padding lays unlike brains on one another: voxel 100 of one subject is not voxel 100 of the next. A map per subject
lets the network see one space instead. It begins as wrap padding, so that weights learned on padded signals stay of
use: x' = keep * wrap(x) + W x + b with keep = 1, W = 0 and b = 0. What is learned is the difference, so weight decay
pulls towards the padding and not towards silence.

Legend: B records, V padded width of a batch's signals, v voxels of one subject, W width of the shared space, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part, read_card

PART = "adapters"  # of an export
OVERSAMPLED, POWER_STEPS = 16, 4  # of the decomposition in `become`


class VoxelMap(nn.Module):
    """One subject's map of (B, V) to (B, W), of which it reads its own ``voxels`` only.

    A subject with more voxels than W is not cut for good: those beyond W add nothing at first, and enter by ``weight``.
    """

    def __init__(self, voxels: int, width: int, rank: int) -> None:
        super().__init__()
        self.voxels, self.width, self.rank = voxels, width, rank
        self.keep = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(width))
        if rank:
            self.down = nn.Parameter(torch.empty(rank, voxels))
            self.up = nn.Parameter(torch.zeros(width, rank))
            nn.init.normal_(self.down, std=voxels**-0.5)
        else:
            self.weight = nn.Parameter(torch.zeros(width, voxels))

    def forward(self, signal_BV: Tensor) -> Tensor:
        own_Bv = signal_BV[:, : self.voxels]
        wrapped_BW = own_Bv.repeat(1, -(-self.width // self.voxels))[:, : self.width]
        if self.rank:
            learned_BW = F.linear(F.linear(own_Bv, self.down), self.up, self.bias)
        else:
            learned_BW = F.linear(own_Bv, self.weight, self.bias)
        return self.keep * wrapped_BW + learned_BW

    @torch.no_grad()
    def become(self, weight_Wv: Tensor, bias_W: Tensor) -> None:
        """Be this affine map and nothing of the padding; with a rank, the nearest one of that rank.

        That one comes from a randomised decomposition (Halko et al. 2011), the same at every call: a whole one takes
        minutes at 15,000 voxels.
        """
        self.keep.zero_()
        self.bias.copy_(bias_W)
        if not self.rank:
            self.weight.copy_(weight_Wv)
            return
        kept = min(self.rank, *weight_Wv.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            probed = min(kept + OVERSAMPLED, *weight_Wv.shape)
            left, size, right = torch.svd_lowrank(weight_Wv, q=probed, niter=POWER_STEPS)
        root = size[:kept].sqrt()
        self.up.zero_()
        self.up[:, :kept] = left[:, :kept] * root
        self.down[:kept] = (right[:, :kept] * root).T


class VoxelAdapters(nn.Module):
    """The maps of several subjects; a batch's rows each go through their own subject's.

    Every map that is in use (``number_by``) runs on the whole batch and the rows are picked afterwards: the products
    are small beside the network behind them, the host never waits to learn who is in the batch, and every rank calls
    the same modules and gives every parameter a gradient (zeros for an absent subject), which ZeRO-3 needs.

    Attributes:
        subjects: name -> own voxels.
        width: voxels of the shared space.
    """

    def __init__(self, subjects: Mapping[str, int], width: int, rank: int = 0) -> None:
        super().__init__()
        self.subjects, self.width, self.rank = dict(subjects), width, rank
        self.maps = nn.ModuleDict({_key(name): VoxelMap(voxels, width, rank) for name, voxels in subjects.items()})
        self.number_by(list(subjects))

    def number_by(self, names: Sequence[str], only: Collection[str] = ()) -> None:
        """Say whom a batch means by 0, 1, …: a stream's or a set's ``subjects``, of which some may have no map.

        Args:
            only: the subjects whose samples can come (empty: all of ``names``); the maps of others do not run.
        """
        here = [(number, name) for number, name in enumerate(names) if name in self.subjects]
        self._numbered = [(number, _key(name)) for number, name in here if not only or name in only]

    def forward(self, signal_BV: Tensor, subject_B: Tensor) -> Tensor:
        """Signals in the shared space, float32 (B, W).

        Args:
            signal_BV: float32, padded to a width of at least the widest subject's voxels.
            subject_B: int64, whose row it is. Rows of anyone without a map in use become NaN, which no training
                survives.
        """
        adapted_BW = signal_BV.new_full((len(signal_BV), self.width), math.nan)
        for number, key in self._numbered:
            adapted_BW = torch.where((subject_B == number)[:, None], self.maps[key](signal_BV), adapted_BW)
        return adapted_BW

    def map_of(self, name: str) -> VoxelMap:
        return self.maps[_key(name)]

    def describe(self) -> dict[str, Any]:
        """What ``described_adapters`` reads of an export's card."""
        return {"width": self.width, "rank": self.rank, "subjects": self.subjects}

    def load(self, state: Mapping[str, Tensor], what: str) -> dict[str, list[str]]:
        """Take over the maps of the subjects that ``state`` knows, by name; the others stay as they are.

        Returns:
            Tensor names as ``load_into`` reports them: "matched", "missing" (subjects unknown there), "unused"
            (subjects unknown here), and "resized", which is empty.

        Raises:
            ConfigError: a subject known there has other voxels, or its map another width or rank.
        """
        own = self.state_dict()
        shared = sorted(own.keys() & state.keys())
        halves = {name.rpartition(".")[0] for name in shared}
        lacking = [name for name in own.keys() - state.keys() if name.rpartition(".")[0] in halves]
        if wrong := lacking + [name for name in shared if own[name].shape != state[name].shape]:
            raise ConfigError(
                f"{what}: {wrong[0]} has another shape than here, or is of another rank. Use the set that subject was "
                "adapted on, and the adapter.width and adapter.rank of that run."
            )
        self.load_state_dict({name: state[name] for name in shared}, strict=False)
        missing, unused = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        return {"matched": shared, "missing": missing, "unused": unused, "resized": []}

    def load_stored(self, export: str | Path) -> dict[str, list[str]]:
        """``load`` from an export that has adapters; maps of subjects unknown here are not even read.

        Raises: as ``load``. DataError: the export is damaged, or the part does not fit its card.
        """
        there = described_adapters(read_card(export))
        known = [name for name in there["subjects"] if name in self.subjects]
        strangers = [name for name in there["subjects"] if name not in self.subjects]
        state = load_part(export, PART, _tensors(known, there["rank"]))
        report = self.load(state, f"{export}: {PART}")
        return report | {"unused": sorted(report["unused"] + _tensors(strangers, there["rank"]))}

    def require(self, subjects: Mapping[str, int], what: str) -> None:
        """Refuse data of subjects without a map, or with other voxels than theirs.

        Args:
            subjects: name -> own voxels.
            what: the data, for the message.

        Raises:
            DataError: naming the subjects that have a map.
        """
        for name, voxels in subjects.items():
            if name not in self.subjects:
                raise DataError(
                    f"{what}: subject '{name}' has no voxel adapter in this export, only {', '.join(self.subjects)} "
                    "have. Choose among these, or adapt to the new subject first (configs/phase2_adapt.toml)."
                )
            if voxels != self.subjects[name]:
                raise DataError(
                    f"{what}: subject '{name}' has {voxels} voxels, its voxel adapter reads {self.subjects[name]}. "
                    "Use the set that it was adapted on."
                )


def stored_adapters(export: str | Path, only: Collection[str] | None = None) -> VoxelAdapters | None:
    """The adapters of an export (or its run folder); None where it has none.

    Args:
        only: read the maps of these of its subjects; None: of all.

    Raises:
        DataError: the export is damaged, or the part does not fit its card.
    """
    described = described_adapters(read_card(export))
    if described is None:
        return None
    subjects = {name: voxels for name, voxels in described["subjects"].items() if only is None or name in only}
    with torch.device("meta"):  # no memory, and nothing drawn: the maps are those of the file
        adapters = VoxelAdapters(subjects, described["width"], described["rank"])
    own = adapters.state_dict()
    state = load_part(export, PART, None if only is None else own)
    if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in own):
        raise DataError(f"{export}: part '{PART}' does not fit its own card. Export it again.")
    adapters.load_state_dict(state, assign=True)
    return adapters


def network_voxels(card: Mapping[str, Any]) -> int:
    """Length of the signals that an export's network reads: the shared space's width, where there are adapters."""
    described = described_adapters(card)
    return card["space"]["voxels"] if described is None else described["width"]


def described_adapters(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an export's card says of its adapters: "width", "rank" and "subjects" (name -> voxels); None without any."""
    architecture = card.get("architecture")
    return architecture.get("adapter") if isinstance(architecture, dict) else None


def _tensors(subjects: Sequence[str], rank: int) -> list[str]:
    """Names of the tensors of these subjects' maps."""
    leaves = ("bias", "keep", *(("down", "up") if rank else ("weight",)))
    return [f"maps.{_key(name)}.{leaf}" for name in subjects for leaf in leaves]


def _key(name: str) -> str:
    """A subject's name as part of a parameter's name: percent-encoded, and without dots, which separate modules."""
    return "of_" + quote(name, safe="").replace(".", "%2E")
