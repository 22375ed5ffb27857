"""Batches for one rank: its contiguous part of the global batch, read and padded ahead of the trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.errors import ConfigError
from cadiff.shards import batches
from cadiff.shards.batches import Buffers
from cadiff.shards.clips import ClipFaults, Clips
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import Faults
from cadiff.shards.features import Features, PictureExtras
from cadiff.shards.feed import Feed
from cadiff.shards.leaks import refuse_leaks_between
from cadiff.shards.mixture import Chosen, Mixture, choose
from cadiff.shards.portion import part_of_stimuli
from cadiff.shards.readahead import Pieces, ReadAhead
from cadiff.shards.reading import Reading
from cadiff.shards.sampler import ORDER


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
        order: "random" or "window".
        seconds: what preparing batches has cost so far, by set and stage ("fetch", "decode"), over all workers.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        split: str,
        batch: int,
        micro_batch: int,
        width: int = 0,
        frames: int = 1,
        image_size: int | None = None,
        subjects: Sequence[str] = (),
        stimuli_fraction: float = 1.0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        image_masks: int = 0,
        features: Features | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Args:
            batch: samples per optimizer step over all ranks.
            micro_batch: samples per rank and forward.
            width: voxels of a signal after padding; 0 leaves signals out.
            frames: stored frames of one run, in a row, that are a sample: a clip, named by its first frame.
            image_size: pixels per side; None leaves pictures out. With pictures, samples without one are left out.
            subjects: only these, over all sets; empty means all.
            stimuli_fraction: of each subject's stimuli in this split, so large a part (``part_of_stimuli``).
            image_masks: fixed masks that each picture has; they and ``features`` add keys (``PictureExtras``).

        Raises:
            ConfigError: batch sizes that do not divide, a split that is empty or smaller than one batch, clips with
                pictures or packed, or pictures without features.
        """
        self.datasets, self.split, self.batch, self.micro_batch = list(datasets), split, batch, micro_batch
        self.rank, self.world, self.width, self.frames, self.image_size = rank, world, width, frames, image_size
        self._reading = reading or Reading()
        if micro_batch < 1 or batch % (micro_batch * world):
            raise ConfigError(
                f"batch {batch} is not a multiple of micro_batch {micro_batch} x {world} ranks. "
                "Change train.batch or train.micro_batch."
            )
        if frames > 1 and (self._reading.pad == "packed" or image_size is not None or not width):
            raise ConfigError(
                f"data.clip_frames = {frames} makes clips of signals, which go neither with data.pad = 'packed' nor "
                "with pictures: phase 1 takes them alone. Set data.clip_frames=1, or data.pad=wrap."
            )
        self.accumulate = batch // (micro_batch * world)
        self.has_signal = width > 0 and all(ds.voxels > 0 for ds in self.datasets)
        self.has_image = image_size is not None and all(ds.has_picture.any() for ds in self.datasets)
        refuse_leaks_between(self.datasets)
        self._chosen = choose(self.datasets, split, list(subjects), self.has_image, batch)
        self._chosen = part_of_stimuli(self.datasets, self._chosen, stimuli_fraction, seed, batch)
        parts = [*(ds.hash for ds in self.datasets), split, ",".join(subjects), str(self.has_image)]
        parts += [f"{stimuli_fraction} of the stimuli"] if stimuli_fraction < 1 else []
        version = "+".join([*parts, *([f"clips of {frames}"] if frames > 1 else [])])
        self._clips = Clips(self.datasets, frames)
        if frames > 1:
            self._chosen = self._clips.choose(self._chosen, split, batch)
        rest = (self._reading.order, self._reading.weights)
        self._mixture = Mixture(self.datasets, self._chosen, batch, seed, version, *rest)
        faults = (self.datasets, self._chosen, self._reading.faults, version)
        self._faults = Faults(*faults) if frames == 1 else ClipFaults(*faults, self._clips)
        self.steps_per_epoch, self.order, self.seed = self._mixture.steps_per_epoch, self._mixture.order, seed
        self._offset = np.cumsum([0, *(len(ds) for ds in self.datasets)])
        self._stimulus_offset = np.cumsum([0, *(len(ds.stimuli) for ds in self.datasets)])
        self.subjects, self._subject_number = batches.unite([ds.subjects for ds in self.datasets])
        self.classes, self._class_number = batches.unite([ds.classes for ds in self.datasets])
        extras = (image_masks, features) if self.has_image else (0, None)
        self._extras = PictureExtras(self.datasets, self._chosen, seed, *extras)
        self._own_keys = batches.keys_of(self.has_signal, self.has_image, self._reading.pad)
        self.keys = self._own_keys + self._extras.keys
        self.seconds = {(str(ds.folder), stage): 0.0 for ds in self.datasets for stage in ("fetch", "decode")}
        firsts = (self._offset.tolist(), self._stimulus_offset.tolist(), self._subject_number, self._class_number)
        self._columns = [
            batches.columns(ds, self.keys, self._reading.patch, *told) for ds, *told in zip(self.datasets, *firsts)
        ]
        numbers = batches.number_keys(self._own_keys)
        self._numbers = [np.stack([columns[key] for key in numbers], axis=1) for columns in self._columns]
        self._batch_of = lru_cache(maxsize=8)(self._global_batch)
        self._ahead: ReadAhead | None = None

    def __len__(self) -> int:
        """Samples that can occur."""
        return len(self._chosen)

    def sample_ids(self, step: int) -> np.ndarray:
        """The global batch of ``step``, all ranks together: int64 (batch,), unique over the datasets."""
        chosen, _ = self._batch_of(self._step(step))
        return self._chosen.ids[chosen] + self._offset[self._chosen.which[chosen]]

    def state(self, step: int) -> dict[str, Any]:
        """All that decides the batches from ``step`` on, the same on every rank; and what each source has given."""
        sets = [{"folder": str(ds.folder), "hash": ds.hash} for ds in self.datasets]
        counted = [{**counter, "share": n} for counter, n in zip(self._mixture.counters(step), self._mixture.shares)]
        fixed = {"order": f"{ORDER}/{self.order}", "seed": self.seed, "batch": self.batch, "step": step}
        return {**fixed, "sets": sets, "sources": counted}

    def micro(self, step: int, index: int) -> dict[str, Tensor]:
        """Micro-batch ``index`` of optimizer step ``step`` for this rank: a pure function, b = micro_batch.

        Returns:
            ``signal`` float32 (b, width), (b, frames, width) for clips, or (sum of lengths,) if packed, and ``image``
            uint8 (b, 3, S, S) where there are any; int64 (b,) ``label`` and ``stimulus`` (-1 none), ``subject``,
            ``sample_id``, ``epoch`` (-1 unless training), and ``voxels`` or ``lengths`` as the padding wants.
        """
        buffers = self._buffers(pin=False)
        self._fill(step, index, buffers)
        return batches.views(buffers, self.keys)

    def iterate(self, start_step: int, stop_step: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Yield (step, index, batch) for all micro-batches of steps start..stop-1, prepared ahead by threads.

        A batch's memory is used again: it is valid until the next one is asked for.
        """

        def fill(n: int, buffers: Buffers) -> None:
            step, index = start_step + n // self.accumulate, n % self.accumulate
            if ahead is not None:
                ahead.wait(step)
            self._fill(step, index, buffers)

        count = max(0, stop_step - start_step) * self.accumulate
        from_files = self.has_signal and any(ds.store.table_MW is None for ds in self.datasets)
        ahead = self._read_ahead(start_step, stop_step) if self.order == "window" and from_files else None
        feed = Feed(fill, lambda: self._buffers(torch.cuda.is_available()), count, self._reading.workers)
        try:
            for n, buffers in feed.iterate():
                yield start_step + n // self.accumulate, n % self.accumulate, batches.views(buffers, self.keys)
        finally:
            if ahead is not None:
                ahead.stop()

    def _fill(self, step: int, index: int, buffers: Buffers) -> None:
        positions, epochs = self._batch_of(self._step(step))
        start = self.rank * (self.batch // self.world) + index * self.micro_batch
        mine = slice(start, start + self.micro_batch)
        began = time.perf_counter()
        chosen = self._faults.sound(positions[mine], self.has_signal, self.image_size if self.has_image else None)
        self._count(int(self._chosen.which[chosen[0]]), "fetch", began)
        ids = self._chosen.ids[chosen]
        buffers["epoch"].numpy()[:] = epochs[mine] if self.split == "train" else -1
        if len(self.datasets) == 1:
            self._read(0, ids, buffers)
        else:
            which = self._chosen.which[chosen]
            for k in np.unique(which).tolist():
                rows = np.flatnonzero(which == k)
                part = self._buffers(pin=False, rows=len(rows))
                self._read(k, ids[rows], part)
                batches.interleave(buffers, part, rows)
        self._extras.fill(buffers)
        if "packed" in buffers:
            batches.pack_rows(buffers["signal"], buffers["lengths"].numpy(), buffers["packed"])

    def _read(self, k: int, ids: np.ndarray, buffers: Buffers) -> None:
        """Fill buffers with samples that all come from set ``k``."""
        ds, began = self.datasets[k], time.perf_counter()
        # A sample's numbers lie together, so that looking them up is one miss of the cache, not one each.
        buffers["numbers"].numpy()[:] = np.take(self._numbers[k], ids, axis=0, mode="clip").T
        if self.has_signal:
            pad = "zero" if self._reading.pad == "zero" else "wrap"
            frames = ids if self.frames == 1 else self._clips.samples(k, ids).reshape(-1)
            ds.read_signals(frames, buffers["signal"].view(len(frames), self.width), pad)
        self._count(k, "fetch", began)
        if self.has_image:
            began = time.perf_counter()
            ds.pictures.read(ds.table.stimulus[ids], buffers["image"].numpy())
            self._count(k, "decode", began)

    def _count(self, k: int, stage: str, began: float) -> None:
        self.seconds[str(self.datasets[k].folder), stage] += time.perf_counter() - began

    def _buffers(self, pin: bool, rows: int = 0) -> Buffers:
        device = self.datasets[0].store.device if self.has_signal else torch.device("cpu")
        signal = (self.width,) if self.frames == 1 else (self.frames, self.width)
        shape = (rows or self.micro_batch, signal, self.image_size or 0, device)
        buffers = batches.make_buffers(self._own_keys, *shape, pin)
        return buffers if rows else buffers | self._extras.buffers(self.micro_batch, pin)

    def _read_ahead(self, start: int, stop: int) -> ReadAhead:
        share = self.batch // self.world

        def mine(step: int) -> Chosen:
            positions = self._batch_of(self._step(step))[0][self.rank * share : (self.rank + 1) * share]
            return self._clips.whole(Chosen(self._chosen.which[positions], self._chosen.ids[positions]))

        ahead = ReadAhead(Pieces(self.datasets), mine, self.steps_per_epoch)
        ahead.start(start, stop)
        return ahead

    def _global_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and epochs of a step's samples, all ranks together, in the order of the batch."""
        positions, epochs = self._mixture.batch(step)
        if "lengths" in self.keys:
            lengths = np.empty(len(positions), dtype=np.int64)
            for k in range(len(self.datasets)):
                mine = self._chosen.which[positions] == k
                lengths[mine] = self._columns[k]["lengths"][self._chosen.ids[positions[mine]]]
            order = batches.balanced(lengths)
            order = order[batches.alike_together(lengths[order], self.micro_batch)]
            positions, epochs = positions[order], epochs[order]
        return positions, epochs

    def _step(self, step: int) -> int:
        return step if self.split == "train" else step % self.steps_per_epoch
