"""Batches for one rank: the sampler's contiguous slice, read and padded, with one prefetch thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.sampler import Sampler

AHEAD = 2  # micro-batches prepared while the trainer computes


class Stream:
    """Deterministic batches over one or more packed sets.

    The global batch of a step depends on the data versions, the seed and the step alone; rank r of w takes the
    contiguous part [r*batch/w, (r+1)*batch/w) of it, cut into micro-batches. For a split other than "train" the order
    is the same in every epoch and ``epoch`` is -1, so that keyed masks and noise are fixed.

    Attributes:
        steps_per_epoch: whole global batches in an epoch.
        accumulate: micro-batches per step and rank.
        subjects, classes: names over all sets, in the numbering the batches use.
        keys: the keys of a batch.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        split: str,
        batch: int,
        micro_batch: int,
        width: int = 0,
        image_size: int | None = None,
        subjects: Sequence[str] = (),
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        """Args:
            batch: samples per optimizer step over all ranks.
            micro_batch: samples per rank and forward.
            width: voxels of a signal after wrap padding; 0 leaves signals out.
            image_size: pixels per side; None leaves pictures out. With pictures, samples without one are left out.
            subjects: only these, over all sets; empty means all.

        Raises:
            ConfigError: batch sizes that do not divide, or a split that is empty or smaller than one batch.
        """
        self.datasets, self.split, self.batch, self.micro_batch = list(datasets), split, batch, micro_batch
        self.rank, self.world, self.width, self.image_size = rank, world, width, image_size
        if micro_batch < 1 or batch % (micro_batch * world):
            raise ConfigError(
                f"batch {batch} is not a multiple of micro_batch {micro_batch} x {world} ranks. "
                "Change train.batch or train.micro_batch."
            )
        self.accumulate = batch // (micro_batch * world)
        self.has_signal = width > 0 and all(ds.voxels > 0 for ds in self.datasets)
        self.has_image = image_size is not None and all(ds.has_picture.any() for ds in self.datasets)
        if unknown := set(subjects) - {name for ds in self.datasets for name in ds.subjects}:
            raise ConfigError(f"data.subjects: no subject '{min(unknown)}' in {', '.join(map(str, self._folders()))}.")
        ids = [self._select(ds, list(subjects)) for ds in self.datasets]
        self._which = np.concatenate([np.full(len(part), k) for k, part in enumerate(ids)]).astype(np.int64)
        self._ids = np.concatenate(ids)
        if len(self._ids) < max(batch, 1):
            raise ConfigError(
                f"{', '.join(map(str, self._folders()))}: the {split} split has {len(self._ids)} samples, fewer than "
                f"one batch of {batch}. Use a smaller batch, more subjects, or pack with another val_fraction."
            )
        version = "+".join([*(ds.hash for ds in self.datasets), split, ",".join(subjects), str(self.has_image)])
        self._sampler = Sampler(len(self._ids), batch, seed, version)
        self.steps_per_epoch = self._sampler.steps_per_epoch
        self._offset = np.cumsum([0, *(len(ds) for ds in self.datasets)])
        self._stimulus_offset = np.cumsum([0, *(len(ds.stimuli) for ds in self.datasets)])
        self.subjects, self._subject_number = _unite([ds.subjects for ds in self.datasets])
        self.classes, self._class_number = _unite([ds.classes for ds in self.datasets])
        optional = [*(["signal"] * self.has_signal), *(["image"] * self.has_image)]
        self.keys = [*optional, "label", "stimulus", "subject", "sample_id", "epoch"]

    def _folders(self) -> list[Path]:
        return [ds.folder for ds in self.datasets]

    def __len__(self) -> int:
        """Samples that can occur."""
        return len(self._ids)

    def sample_ids(self, step: int) -> np.ndarray:
        """The global batch of ``step``, all ranks together: int64 (batch,), unique over the datasets."""
        chosen = self._positions(step)
        return self._ids[chosen] + self._offset[self._which[chosen]]

    def micro(self, step: int, index: int) -> dict[str, Tensor]:
        """Micro-batch ``index`` of optimizer step ``step`` for this rank: a pure function, b = micro_batch.

        Returns:
            ``signal`` float32 (b, width) and ``image`` uint8 (b, 3, S, S) where there are any; int64 (b,) ``label``
            and ``stimulus`` (-1 none), ``subject``, ``sample_id`` and ``epoch`` (-1 unless training).
        """
        share = self.batch // self.world
        start = self.rank * share + index * self.micro_batch
        chosen = self._positions(step)[start : start + self.micro_batch]
        ids, which = self._ids[chosen], self._which[chosen]
        epoch = step // self.steps_per_epoch if self.split == "train" else -1
        sets = np.unique(which).tolist()
        parts = [self._read(k, ids[which == k]) for k in sets]
        arrays = parts[0] if len(sets) == 1 else _interleave(parts, [which == k for k in sets])
        arrays["epoch"] = np.full(len(ids), epoch, dtype=np.int64)
        return {key: torch.from_numpy(arrays[key]) for key in self.keys}

    def iterate(self, start_step: int, stop_step: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Yield (step, index, batch) for all micro-batches of steps start..stop-1, prepared by one thread ahead."""
        ready: queue.Queue = queue.Queue(maxsize=AHEAD)
        stop = threading.Event()
        arguments = (ready, stop, start_step, stop_step)
        thread = threading.Thread(target=self._prefetch, args=arguments, name="prefetch", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            while not ready.empty():
                ready.get_nowait()
            thread.join()

    def _prefetch(self, ready: queue.Queue, stop: threading.Event, start_step: int, stop_step: int) -> None:
        pin = torch.cuda.is_available()
        try:
            for step in range(start_step, stop_step):
                for index in range(self.accumulate):
                    batch = self.micro(step, index)
                    if pin:
                        batch = {key: value.pin_memory() for key, value in batch.items()}
                    if not _put(ready, (step, index, batch), stop):
                        return
            _put(ready, None, stop)
        except BaseException as problem:  # noqa: BLE001 - handed to the consumer, which raises it
            _put(ready, problem, stop)

    def _positions(self, step: int) -> np.ndarray:
        return self._sampler.positions(step if self.split == "train" else step % self.steps_per_epoch)

    def _select(self, ds: Dataset, subjects: list[str]) -> np.ndarray:
        mine = [name for name in subjects if name in ds.subjects]
        if subjects and not mine and ds.subjects:
            return np.empty(0, dtype=np.int64)
        ids = ds.ids(self.split, mine)
        if self.has_image:
            stimulus = ds.table.stimulus[ids]
            ids = ids[(stimulus >= 0) & ds.has_picture[stimulus]]
        return ids

    def _read(self, k: int, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a batch whose samples all come from set ``k``."""
        ds = self.datasets[k]
        stimulus, label, subject = (getattr(ds.table, name)[ids] for name in ("stimulus", "label", "subject"))
        arrays = {
            "label": self._class_number[k][label],
            "stimulus": np.where(stimulus < 0, -1, stimulus + self._stimulus_offset[k]).astype(np.int64),
            "subject": self._subject_number[k][subject],
            "sample_id": ids + self._offset[k],
        }
        if self.has_signal:
            arrays["signal"] = ds.signals(ids, self.width)
        if self.has_image:
            arrays["image"] = ds.images(stimulus, self.image_size)
        return arrays


def _interleave(parts: list[dict[str, np.ndarray]], rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Put the rows of several sets back into the batch's order."""
    arrays = {}
    for key, first in parts[0].items():
        arrays[key] = np.empty((len(rows[0]), *first.shape[1:]), dtype=first.dtype)
        for part, mine in zip(parts, rows):
            arrays[key][mine] = part[key]
    return arrays


def _put(ready: queue.Queue, item: object, stop: threading.Event) -> bool:
    """Put unless the consumer has left; a plain put would wait for ever then."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _unite(lists: list[list[str]]) -> tuple[list[str], list[np.ndarray]]:
    """Number names over several sets; each set's map has -1 at its end, so that index -1 stays -1."""
    numbers: dict[str, int] = {}
    for names in lists:
        for name in names:
            numbers.setdefault(name, len(numbers))
    return list(numbers), [np.array([*(numbers[name] for name in names), -1], dtype=np.int64) for names in lists]
