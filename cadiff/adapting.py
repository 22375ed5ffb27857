"""Voxel adapters applied to packed sets: signals as a finished network reads them, and a first map for a new subject.

A new subject's map needs no training to begin well where it saw stimuli that adapted subjects saw too: ridge regression
from its own training signals to the mean of what their maps make of theirs (hyperalignment, Haxby et al. 2011, to a
finished space), with the penalty chosen on stimuli left out. Ridge regression shrinks what it is unsure of, most of all
from few samples, but the network knows signals of the size that the known subjects' maps give: so the map is scaled.

Legend: N samples, n samples of one set, M samples of known subjects, S stimuli, V voxels, W width of the shared space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from cadiff.baselines import ridge_fit
from cadiff.config import Phase2Job
from cadiff.errors import ConfigError
from cadiff.exports import read_card
from cadiff.models.adapter import VoxelAdapters, described_adapters, stored_adapters
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import Chosen, choose
from cadiff.shards.portion import part_of_stimuli
from cadiff.splits import TRAIN

log = logging.getLogger(__name__)

ROWS = 256
LEAST_EXPLAINED = 0.01  # below this part of the variance a map is hardly one, and is scaled no further


@torch.no_grad()
def network_signals(adapters: VoxelAdapters | None, dataset: Dataset, ids_N: np.ndarray, width: int) -> np.ndarray:
    """Signals of these samples as a network of ``width`` voxels reads them: float32 (N, width).

    They are wrap-padded, or go through ``adapters`` where there are some.

    Raises:
        ConfigError: a subject wider than the network. DataError: one without an adapter, where there are adapters.
    """
    if adapters is None:
        return dataset.signals(ids_N, width)
    subject_N = dataset.table.subject[ids_N].astype(np.int64)
    asked = {dataset.subjects[number]: int(dataset.voxel_counts[number]) for number in np.unique(subject_N)}
    adapters.require(asked, str(dataset.folder))
    adapters.number_by(dataset.subjects, only=asked)
    device, out_NW = next(adapters.parameters()).device, np.empty((len(ids_N), adapters.width), np.float32)
    for start in range(0, len(ids_N), ROWS):
        rows = slice(start, start + ROWS)
        signal_NV = torch.from_numpy(dataset.signals(ids_N[rows], dataset.voxels)).to(device)
        out_NW[rows] = adapters(signal_NV, torch.from_numpy(subject_N[rows]).to(device)).cpu().numpy()
    return out_NW


def start_by_ridge(adapters: VoxelAdapters, job: Phase2Job, datasets: Sequence[Dataset]) -> dict[str, float]:
    """Give each subject that ``init.tuned`` does not know a map to the mean of those it knows, on training stimuli.

    Every rank computes the same from the same samples: those that the job will train on, without those of damaged
    blocks where ``data.on_damage`` passes over them.

    Returns:
        For each new subject the part of the targets' variance that is predicted for training stimuli left out.

    Raises:
        ConfigError: nobody is new, or a new subject shares too few training stimuli with the known ones.
    """
    known = (described_adapters(read_card(job.init.tuned)) or {"subjects": {}})["subjects"]
    teachers = sorted({name for dataset in datasets for name in dataset.subjects} & known.keys())
    new = [name for name in adapters.subjects if name not in known]
    if not teachers or not new:
        raise ConfigError(
            f"adapter.init = 'ridge' fits subjects that {job.init.tuned} does not know to those it knows: "
            f"{len(new)} of data.subjects are new, {len(teachers)} of data.shards known. Name a set that holds both, "
            "and the new ones in data.subjects, or set adapter.init=wrap."
        )
    seen = _sound(datasets, choose(datasets, "train", teachers, True, 1), job)
    mean_SW, row_of, spread = _mean_by_stimulus(stored_adapters(job.init.tuned, teachers), datasets, seen)
    told = {}
    for name in new:
        chosen = choose(datasets, "train", [name], True, 1)
        chosen = part_of_stimuli(datasets, chosen, job.data.stimuli_fraction, job.seed, 1)
        chosen = _sound(datasets, chosen, job)
        pairs = [(k, int(datasets[k].table.stimulus[i])) for k, i in zip(chosen.which.tolist(), chosen.ids.tolist())]
        shared_N = np.array([pair in row_of for pair in pairs])
        if len({pair for pair in pairs if pair in row_of}) < 2:
            raise ConfigError(
                f"adapter.init = 'ridge': of subject {name}'s training stimuli, {', '.join(teachers)} saw fewer than 2 "
                "in the same set. Take a new subject who saw what they saw, or set adapter.init=wrap."
            )
        row_N = np.array([row_of[pair] for pair in pairs if pair in row_of])
        chosen, target_NW = Chosen(chosen.which[shared_N], chosen.ids[shared_N]), mean_SW[row_N]
        signal_NV = _own_signals(datasets, chosen, adapters.subjects[name])
        fit = ridge_fit(signal_NV, target_NW, row_N, split_N=np.full(len(row_N), TRAIN), seed=job.seed)
        variance = float(target_NW.var(axis=0).mean())
        told[name] = 1 - min(fit.errors.values()) / variance
        # Predictions for stimuli left out vary as much as they explain.
        weight_VW = fit.weight_VT * (spread / (max(told[name], LEAST_EXPLAINED) * variance) ** 0.5)
        bias_W = fit.target_mean_T - fit.signal_mean_V @ weight_VW
        adapters.map_of(name).become(torch.from_numpy(weight_VW.T).float(), torch.from_numpy(bias_W).float())
        log.info(
            "%s: map fitted to %s on %d samples; explains %.1f %% of the variance for stimuli left out",
            name, ", ".join(teachers), len(row_N), 100 * told[name],
        )  # fmt: skip
    return told


def _mean_by_stimulus(
    known: VoxelAdapters, datasets: Sequence[Dataset], chosen: Chosen
) -> tuple[np.ndarray, dict[tuple[int, int], int], float]:
    """Mean adapted signal of each stimulus, float32 (S, W), the row of each (set, stimulus), and samples' deviation.

    Subjects count alike, however often they saw a stimulus.
    """
    means: dict[tuple[int, int], list[np.ndarray]] = {}
    variances = []
    for k, dataset in enumerate(datasets):
        ids_M = chosen.ids[chosen.which == k]
        for subject in np.unique(dataset.table.subject[ids_M]):
            own_M = ids_M[dataset.table.subject[ids_M] == subject]
            signal_MW = network_signals(known, dataset, own_M, known.width)
            variances.append(signal_MW.var(axis=0).mean())
            seen_S, row_M = np.unique(dataset.table.stimulus[own_M], return_inverse=True)
            sum_SW = np.zeros((len(seen_S), known.width), np.float64)
            np.add.at(sum_SW, row_M, signal_MW)
            for stimulus, mean_W in zip(seen_S.tolist(), sum_SW / np.bincount(row_M)[:, None]):
                means.setdefault((k, stimulus), []).append(mean_W.astype(np.float32))
    if not means:
        return np.empty((0, known.width), np.float32), {}, 1.0
    row_of = {pair: row for row, pair in enumerate(means)}
    mean_SW = np.stack([np.mean(parts, axis=0) for parts in means.values()])
    return mean_SW, row_of, float(np.mean(variances)) ** 0.5


def _own_signals(datasets: Sequence[Dataset], chosen: Chosen, voxels: int) -> np.ndarray:
    """One subject's signals without padding, float32 (N, V), in the order of ``chosen``, which goes by set."""
    parts = [np.empty((0, voxels), np.float32)]
    for k, dataset in enumerate(datasets):
        ids = chosen.ids[chosen.which == k]
        if len(ids):  # a set of others only may be narrower than this subject
            parts.append(dataset.signals(ids, dataset.voxels)[:, :voxels])
    return np.concatenate(parts)


def _sound(datasets: Sequence[Dataset], chosen: Chosen, job: Phase2Job) -> Chosen:
    """Those of these samples that may be read; all, where damage is to stop the job: reading them does that."""
    if job.data.on_damage == "raise":
        return chosen
    bad_N = np.zeros(len(chosen), dtype=bool)
    for k, dataset in enumerate(datasets):
        rows = np.flatnonzero(chosen.which == k)
        ids = chosen.ids[rows]
        if len(ids) and job.data.check == "every" and dataset.store.table_MW is None:
            dataset.check_rows(ids)
        block_n = dataset.block_of[ids]
        bad_N[rows] = np.isin(block_n, dataset.checks.damaged(block_n))
    if bad_N.any():
        log.warning("adapter.init = 'ridge': %d of %d samples are damaged and left out", bad_N.sum(), len(chosen))
    return Chosen(chosen.which[~bad_N], chosen.ids[~bad_N])
