"""Which step's weights a job exports: the last ones, or those of the validation that was best by a figure.

<run>/best/step-000120/     the weights of that step in export form (the running mean, if there is one), a card, and a
                            preview.npz; written beside and renamed, so they are whole or absent

The best so far is part of every checkpoint's state. A folder is kept while a checkpoint names it, so a job that goes
back, after a kill or a bad step, goes back to the best of then, and what came later is forgotten.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cadiff.checkpoint import committed
from cadiff.config import Job
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_part, read_card, save_export
from cadiff.files import read_json, sync_folder, whole_file
from cadiff.shards.clips import Clips
from cadiff.shards.dataset import Dataset

log = logging.getLogger(__name__)
LOWER = ("loss",)  # figures that are better when they are lower; of all others more is better


class Best:
    """The best validation of a run so far, the same on every rank.

    Attributes:
        figure: what chooses (``chosen_by``): "last", or a figure of the validations.
        found: ``{"figure", "step", "value"}`` of the best; None before the first validation.
    """

    def __init__(self, run: Path, job: Job, writes: bool) -> None:
        """Args: ``writes``: whether this rank writes the files."""
        self._run, self._writes, self.figure = run, writes, chosen_by(job)
        self._name = f"{'val_ema' if job.train.ema else 'val'}/{self.figure}"
        self.found: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Where the weights of the best step are."""
        return self._folder(self.found["step"])

    def improves(self, values: dict[str, float]) -> bool:
        """Whether a validation is better than all before it; of equal ones the first stays."""
        if self.figure == "last":
            return False
        value = values[self._name]
        if self.found is None or not math.isfinite(value):
            return math.isfinite(value)
        return value < self.found["value"] if self.figure in LOWER else value > self.found["value"]

    def told(self, step: int, values: dict[str, float]) -> dict[str, Any]:
        """What a card says of this validation as the chosen one."""
        return {"figure": self.figure, "step": step, "value": values[self._name]}

    def keep(
        self,
        chosen: dict[str, Any],
        states: dict[str, dict[str, Tensor]],
        card: dict[str, Any],
        preview: dict[str, np.ndarray],
    ) -> None:
        """Let a validation (``told``) be the best; the rank that writes keeps its weights."""
        self.found = chosen
        if not self._writes:
            return
        final = self._folder(chosen["step"])
        beside = final.with_name(f".tmp-{final.name}")
        shutil.rmtree(beside, ignore_errors=True)
        save_export(beside, states, card)
        with whole_file(beside / "preview.npz") as file, open(file, "wb") as handle:
            np.savez(handle, **preview)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        sync_folder(final.parent)
        log.info("step %d is the best so far: %s %.4f", chosen["step"], self._name, chosen["value"])
        self._tidy()

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights of the best step by part, checked against their hashes.

        Raises:
            DataError: a file is missing or damaged.
        """
        return {part: load_part(self.folder, part) for part in read_card(self.folder)["parts"]}

    def preview(self) -> dict[str, np.ndarray]:
        """The preview of the best step."""
        with np.load(self.folder / "preview.npz", allow_pickle=False) as stored:
            return dict(stored)

    def restore(self, found: dict[str, Any] | None) -> None:
        """Take up what a checkpoint's state says; what a later step left behind is removed.

        Raises:
            DataError: the weights it names are gone, so the job could not export what it has chosen.
        """
        self.found = found
        if found is not None and not (self.folder / "card.json").is_file():
            raise DataError(
                f"{self.folder}: is gone, and the checkpoint to continue from names it as the best so far. Copy the "
                "run folder again with all that is in it, or start the job anew with another --out folder."
            )
        if self._writes:
            self._tidy()

    def _tidy(self) -> None:
        """Remove the folders that neither this job nor a checkpoint of it would go back to."""
        try:
            states = [read_json(folder / "state.json").get("best") for folder in committed(self._run)]
        except (DataError, AttributeError):  # a damaged checkpoint may have named any of them
            return
        kept = {self._folder(found["step"]) for found in (self.found, *states) if found}
        for folder in (self._run / "best").glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder)

    def _folder(self, step: int) -> Path:
        return self._run / "best" / f"step-{step:06d}"


def chosen_by(job: Job) -> str:
    """What chooses the step that a job exports: ``train.select``, and for "auto" what it comes to.

    Linear voxel adapters make the target of phase 2's fMRI term: the loss of one step and of another are then not of
    the same thing, but a correlation does not ask for the target's scale.

    Raises:
        ConfigError: the loss is asked for where it is no measure.
    """
    asked = job.train.select
    moving = job.phase == "phase2" and job.adapter.kind == "linear" and job.loss.fmri > 0
    instead = "image_correlation" if moving and job.loss.image else "fmri_correlation"
    if asked == "auto":
        return instead if moving else "loss"
    if asked == "loss" and moving:
        raise ConfigError(
            "train.select = 'loss': with adapter.kind = 'linear' the fMRI term's target is the adapted signal, whose "
            f"scale changes, so that losses of two steps do not compare. Set train.select={instead} (auto does), or "
            "loss.fmri=0."
        )
    return asked


def validation_samples(job: Job, datasets: list[Dataset]) -> int:
    """How many samples of the validation split are for this job: of its subjects, with a picture if it needs one."""
    count = 0
    for dataset in datasets:
        known = [subject for subject in job.data.subjects if subject in dataset.subjects]
        if job.data.subjects and not known and dataset.subjects:
            continue
        ids = dataset.ids(split="val", subjects=known if job.data.subjects else None)
        if job.phase != "phase1":
            stimuli = dataset.table.stimulus[ids]
            ids = ids[(stimuli >= 0) & dataset.has_picture[stimuli]]
        count += len(Clips([dataset], job.data.clip_frames).starts(0, ids))
    return count


def check_selection(job: Job, figures: list[str], samples: int, ranks: int) -> None:
    """Refuse a ``train.select`` that a job cannot follow, before its first step.

    Args:
        figures: what its validations report beside the loss.
        samples: of the validation split (``validation_samples``); fewer than ``ranks`` make no validation.

    Raises:
        ConfigError: there is no validation, or no such figure, or one that is no measure.
    """
    asked = chosen_by(job)
    if asked == "last":
        return
    if samples == 0:
        raise ConfigError(
            f"train.select = '{asked}' chooses among validations, and data.shards hold no validation samples for this "
            "job. Pack with a val_fraction above 0, or export the last weights with train.select=last."
        )
    if samples < ranks:
        raise ConfigError(
            f"train.select = '{asked}' chooses among validations, and data.shards hold {samples} validation samples, "
            f"fewer than {ranks} ranks: use fewer ranks, or pack with a larger val_fraction."
        )
    known = ["last", "loss", *figures]
    if asked not in known:
        retrieval = " Retrieval needs two stimuli in each split." if asked.startswith("retrieval") else ""
        raise ConfigError(
            f"train.select = '{asked}': no validation of this {job.phase} job reports that.{retrieval} Choose one of "
            f"{', '.join(known)}."
        )
