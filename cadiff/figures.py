"""What a validation says beside its terms, of a phase that has it: correlations of what was hidden, and retrieval.

Which samples are looked at, how they are cut into batches and in which order sums are formed does not depend on the
number of ranks: chunk k of the samples is rank k mod world's, and what all ranks found is put in order again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.config import Phase2Job
from cadiff.engine import Engine
from cadiff.retrieval import retrieve
from cadiff.shards.dataset import Dataset
from cadiff.shards.stream import Stream

CHUNK = 64  # samples of a forward, at most; a job's own micro_batch may be less
FITTED = 2048  # training samples that retrieval's readout is fitted on, at most

Rows = dict[str, np.ndarray]
Ask = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Figures:
    """Looks at fixed samples of training and validation, each time with the weights of then.

    The phase's ``figures`` gives values of single samples, whose means are told; its ``fmri_features`` and
    ``image_features`` give what retrieval reads and what it looks for.

    Attributes:
        names: what ``of`` tells, without prefix; chance levels come beside them.
    """

    def __init__(self, job: Phase2Job, datasets: list[Dataset], part: dict[str, Any], options: dict[str, Any]) -> None:
        """Args:
        part: what a stream of training is told beyond ``options``, which are those of all streams of this job.
        """
        reading = replace(options["reading"], weights=(), order="random")
        options = {**options, "reading": reading, "rank": 0, "world": 1, "batch": 1, "micro_batch": 1}
        self._seed, self._chunk = job.seed, min(job.train.micro_batch or job.train.batch, CHUNK)
        self._train = Stream(datasets, split="train", **part, **options)
        self._val = Stream(datasets, split="val", **options)
        self._fitted = min(len(self._train), FITTED)
        self._judged = min(len(self._val), job.train.val_batches * job.train.batch)
        told = ((self._train, self._fitted), (self._val, self._judged))
        self._retrieves = all(_count_stimuli(datasets, stream, count) >= 2 for stream, count in told)
        self.names = [f"{name}_correlation" for name in ("fmri", "image") if getattr(job.loss, name)]
        if self._retrieves:
            self.names += ["retrieval_top1", "retrieval_two_way"]
        self._frozen = not job.image.train_encoder
        self._pictures: dict[str, np.ndarray] = {}  # what a frozen encoder made of them, by split

    def of(self, engine: Engine, prefix: str) -> dict[str, float]:
        """The figures of the weights as they are, the same on every rank; all ranks call this.

        Returns:
            ``<prefix>/fmri_correlation`` and ``<prefix>/image_correlation`` (of the terms with a weight), and
            ``<prefix>/retrieval_top1`` and ``<prefix>/retrieval_two_way`` with their chance, where there are two
            stimuli to tell apart. NaN where features are not finite.
        """
        judged = self._rows(engine, self._val, self._judged, [engine.phase.figures])
        fitted = self._rows(engine, self._train, self._fitted, []) if self._retrieves else {}
        told: dict[str, float] = {}
        if engine.place.is_main:
            told = {name: float(judged[name].astype(np.float64).mean()) for name in self.names if name in judged}
            told |= self._retrieval(fitted, judged) if self._retrieves else {}
        told = json.loads(engine.told_by_main(json.dumps(told)))
        return {f"{prefix}/{name}": value for name, value in told.items()}

    def _retrieval(self, fitted: Rows, judged: Rows) -> dict[str, float]:
        parts = [rows[name] for rows in (fitted, judged) for name in ("fmri", "image", "stimulus")]
        if not all(np.isfinite(part).all() for part in parts):
            return dict.fromkeys(("retrieval_top1", "retrieval_two_way"), math.nan)
        found = retrieve(*parts, seed=self._seed)
        return {
            "retrieval_top1": found.top1,
            "retrieval_top1_chance": found.chance["top1"],
            "retrieval_two_way": found.two_way,
            "retrieval_two_way_chance": found.chance["two_way"],
        }

    def _rows(self, engine: Engine, stream: Stream, count: int, asked: list[Ask]) -> Rows:
        """What the phase gives for the first samples of a stream, in their order: (count, ...) each.

        Every rank computes as many chunks: under ZeRO-3 they gather weights together.
        """
        kept, place, chunks = self._pictures.get(stream.split), engine.place, -(-count // self._chunk)
        if self._retrieves:
            asked = [*asked, engine.phase.fmri_features, *([] if kept is not None else [engine.phase.image_features])]
        parts: dict[str, list[np.ndarray]] = {}
        for first in range(0, chunks, place.world):
            mine = first + place.rank
            start = (mine if mine < chunks else 0) * self._chunk
            batch = _samples(stream, start, min(count, start + self._chunk))
            rows = {"stimulus": batch["stimulus"].to(engine.device)}
            for ask in asked:
                rows |= asked_of(engine, ask, batch)
            for name, value in rows.items():
                parts.setdefault(name, []).extend(_of_all_ranks(value, self._chunk, place.world))
        found = {name: np.concatenate(values)[:count] for name, values in parts.items()}
        if kept is not None:
            return found | {"image": kept}
        if self._frozen and self._retrieves:
            self._pictures[stream.split] = found["image"]
        return found


def _count_stimuli(datasets: list[Dataset], stream: Stream, count: int) -> int:
    """Stimuli of the first samples of a stream of single ones."""
    firsts = np.cumsum([0, *(len(ds.stimuli) for ds in datasets)])
    of_sample = [np.where(ds.table.stimulus < 0, -1, ds.table.stimulus + n) for ds, n in zip(datasets, firsts)]
    ids = [stream.sample_ids(step)[0] for step in range(count)]
    return len(np.unique(np.concatenate(of_sample)[ids]))


def _samples(stream: Stream, start: int, stop: int) -> dict[str, Tensor]:
    """Samples of a stream of single ones, as a batch."""
    alone = [stream.micro(step, 0) for step in range(start, stop)]
    return {name: torch.cat([batch[name] for batch in alone]) for name in alone[0]}


def asked_of(engine: Engine, ask: Ask, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a method of the phase gives, run as its forward.

    Only inside the wrapped forward does ZeRO-3 gather weights that a method of another module than their owner uses,
    and only there is the precision that of training.
    """
    engine.phase.forward = ask
    try:
        return engine(batch)
    finally:
        del engine.phase.forward


def _of_all_ranks(rows: Tensor, chunk: int, world: int) -> list[np.ndarray]:
    """Each rank's rows, in the order of ranks. A short chunk is filled up: it is the last, and only filler follows."""
    if world == 1:
        return [rows.cpu().numpy()]
    mine = rows.new_zeros((chunk, *rows.shape[1:]))
    mine[: len(rows)] = rows
    found = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(found, mine)
    return [part.cpu().numpy() for part in found]
