"""The memory of a batch: buffers that are filled again and again, and the views of them that a trainer sees."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cadiff.shards.address import roomy
from cadiff.shards.dataset import Dataset

Buffers = dict[str, Tensor]


def packed_lengths(voxels_N: np.ndarray, patch: int) -> np.ndarray:
    """Values of each sample in a packed batch: its own voxels, padded to whole patches: int64 (N,)."""
    return -(-voxels_N // patch) * patch


def keys_of(signal: bool, image: bool, pad: str) -> list[str]:
    """What a batch holds."""
    optional = [*(["signal"] * signal), *(["image"] * image)]
    optional += [{"wrap": "", "zero": "voxels", "packed": "lengths"}[pad]] * signal
    return [*filter(None, optional), "label", "stimulus", "subject", "sample_id", "epoch"]


def columns(
    ds: Dataset, keys: list[str], patch: int, first_sample: int, first_stimulus: int, subject_number: np.ndarray,
    class_number: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What every sample of a set has beside signal and picture, in the numbering over all sets: int64 each."""
    table, stimulus = ds.table, ds.table.stimulus
    told = {
        "label": class_number[table.label],
        "stimulus": np.where(stimulus < 0, -1, stimulus + first_stimulus),
        "subject": subject_number[table.subject],
        "sample_id": np.arange(len(ds)) + first_sample,
    }
    if "voxels" in keys:
        told["voxels"] = ds.voxel_counts[table.subject]
    if "lengths" in keys:
        told["lengths"] = packed_lengths(ds.voxel_counts[table.subject], patch)
    return told


def balanced(lengths_N: np.ndarray) -> np.ndarray:
    """An order in which equal contiguous parts of a batch hold nearly equal numbers of values: int64 (N,).

    Steps of the golden section through the samples sorted by length: every stretch of such a walk is spread evenly
    over the whole range, so the batch balances for any number of ranks and micro-batches, without knowing it.
    """
    count = len(lengths_N)
    step = next(m for m in range(max(1, round(count * 0.618)), 2 * count) if math.gcd(m, count) == 1)
    return np.argsort(lengths_N, kind="stable")[np.arange(count) * step % count]


def alike_together(lengths_N: np.ndarray, micro_batch: int) -> np.ndarray:
    """An order in which the samples of each micro-batch go by length: int64 (N,).

    Neighbours of one length are what a network takes as one batch.
    """
    return np.lexsort((lengths_N, np.arange(len(lengths_N)) // micro_batch))


def pack_rows(rows_NW: Tensor, lengths_N: np.ndarray, out: Tensor) -> int:
    """Lay the beginnings of the rows end to end in ``out``; returns how many values that are."""
    keep_NW = torch.arange(rows_NW.shape[1])[None, :] < torch.from_numpy(lengths_N)[:, None]
    total = int(lengths_N.sum())
    torch.masked_select(rows_NW, keep_NW.to(rows_NW.device), out=out[:total])
    return total


def make_buffers(
    keys: list[str], rows: int, signal: tuple[int, ...], size: int, device: torch.device, pin: bool
) -> Buffers:
    """Memory for one batch. Signals lie where the set's rows are; pictures hold colour last, as they are decoded.

    Args:
        signal: shape of one sample's signal: (voxels,), or (frames, voxels) of a clip.
        size: pixels per side of pictures.
        pin: page-locked memory, from which a GPU copies while it computes.
    """
    numbers = number_keys(keys)
    shapes = {
        "signal": ((rows, *signal), torch.float32),
        "packed": ((rows * signal[-1],), torch.float32),
        "image": ((rows, size, size, 3), torch.uint8),
        "epoch": ((rows,), torch.int64),
        "numbers": ((len(numbers), rows), torch.int64),
    }
    wanted = {*keys, "numbers", *(["packed"] if "lengths" in keys else [])}
    buffers = {}
    for key in sorted(shapes.keys() & wanted):
        shape, dtype = shapes[key]
        where = device if key in ("signal", "packed") else torch.device("cpu")
        if where.type == "cpu" and not pin:
            buffers[key] = roomy(shape, dtype)
        else:
            buffers[key] = torch.empty(shape, dtype=dtype, device=where, pin_memory=where.type == "cpu")
    return buffers | dict(zip(numbers, buffers["numbers"]))


def number_keys(keys: list[str]) -> list[str]:
    """The keys of one whole number per sample: rows of one buffer, so that one call fills them all."""
    return [key for key in keys if key not in ("signal", "image", "epoch")]


def views(buffers: Buffers, keys: list[str]) -> dict[str, Tensor]:
    """A batch as models read it, without copying: pictures as (b, 3, S, S), packed signals in one row."""
    batch = {key: buffers[key] for key in keys}
    if "image" in batch:
        batch["image"] = batch["image"].permute(0, 3, 1, 2)
    if "packed" in buffers:
        batch["signal"] = buffers["packed"][: int(buffers["lengths"].sum())]
    return batch


def interleave(buffers: Buffers, part: Buffers, rows: np.ndarray) -> None:
    """Put the samples of one set at their places in the batch."""
    for key, values in part.items():
        if key not in ("epoch", "packed", "numbers"):
            buffers[key][torch.from_numpy(rows).to(buffers[key].device)] = values


def unite(lists: list[list[str]]) -> tuple[list[str], list[np.ndarray]]:
    """Number names over several sets; each set's map has -1 at its end, so that index -1 stays -1."""
    numbers: dict[str, int] = {}
    for names in lists:
        for name in names:
            numbers.setdefault(name, len(numbers))
    return list(numbers), [np.array([*(numbers[name] for name in names), -1], dtype=np.int64) for names in lists]
