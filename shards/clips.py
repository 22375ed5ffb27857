"""Clips: several stored frames of one run, one right after the other, as one sample, named by its first frame.

N samples of a batch, F frames of a clip, M samples of a set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cadiff.errors import ConfigError
from cadiff.shards.dataset import Dataset
from cadiff.shards.faults import FaultPolicy, Faults
from cadiff.shards.mixture import Chosen
from cadiff.shards.record import SPLITS


class Clips:
    """Which frames make up a clip of several sets. Clips overlap: every frame with enough others behind it begins one.

    A stored frame is a window of a run; the next one is the window that begins where it ends, of the same subject,
    session, run and split. Samples without a place in a run, such as betas, are in no clip.
    """

    def __init__(self, datasets: Sequence[Dataset], frames: int) -> None:
        self.frames, self._datasets = frames, datasets
        self._next = [following(ds) for ds in datasets] if frames > 1 else []

    def starts(self, k: int, ids: np.ndarray) -> np.ndarray:
        """Those of some samples of set ``k`` that begin a clip: int64, in the same order."""
        last = np.asarray(ids, dtype=np.int64)
        for _ in range(self.frames - 1):
            last = np.where(last < 0, -1, self._next[k][last])
        return np.asarray(ids, dtype=np.int64)[last >= 0]

    def samples(self, k: int, ids: np.ndarray) -> np.ndarray:
        """All frames of the clips that begin with these samples of set ``k``: int64 (N, F)."""
        frames = [ids]
        for _ in range(self.frames - 1):
            frames.append(self._next[k][frames[-1]])
        return np.stack(frames, axis=1)

    def whole(self, begins: Chosen) -> Chosen:
        """All frames of the clips that begin with these samples, as many for each."""
        if self.frames == 1:
            return begins
        which, ids = np.repeat(begins.which, self.frames), np.empty((len(begins), self.frames), dtype=np.int64)
        for k in np.unique(begins.which).tolist():
            ids[begins.which == k] = self.samples(k, begins.ids[begins.which == k])
        return Chosen(which, ids.reshape(-1))

    def choose(self, chosen: Chosen, split: str, least: int) -> Chosen:
        """The chosen samples that begin a clip.

        Raises:
            ConfigError: fewer than ``least``.
        """
        parts = [self.starts(k, chosen.ids[chosen.which == k]) for k in range(len(self._datasets))]
        which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        if len(which) >= least:
            return Chosen(which, np.concatenate(parts))
        folders = ", ".join(str(ds.folder) for ds in self._datasets)
        raise ConfigError(
            f"data.clip_frames = {self.frames}: {len(which):,} clips begin in the {split} split of {folders}, fewer "
            f"than one batch of {least:,}; a clip is {self.frames} windows of one run in a row, and samples without a "
            "place in a run make none. Use fewer frames, a smaller batch, or pack time series with a smaller --window."
        )


def following(ds: Dataset) -> np.ndarray:
    """The sample that comes right after each one in its run, -1 where none does: int64 (M,)."""
    table, after_M = ds.table, np.full(len(ds), -1, dtype=np.int64)
    known = np.flatnonzero((table.start >= 0) & (table.frames > 0))
    if not len(known):
        return after_M
    # One number for subject, session, run, split and frame, so that a clip's next frame is found by its number.
    begin_M, frames_M = np.zeros(len(known), dtype=np.int64), table.frames[known].astype(np.int64)
    longest = int((table.start + table.frames)[known].max()) + 1
    sizes = (len(ds.subjects), len(ds.sessions), len(ds.runs), len(SPLITS), longest)
    for name, size in zip(("subject", "session", "run", "split", "start"), sizes):
        begin_M = begin_M * (size + 1) + getattr(table, name)[known] + 1
    order = np.argsort(begin_M, kind="stable")
    begins = begin_M[order]
    place = np.minimum(np.searchsorted(begins, begin_M + frames_M), len(begins) - 1)
    found = begins[place] == begin_M + frames_M
    after_M[known[found]] = known[order[place[found]]]
    return after_M


class ClipFaults(Faults):
    """A clip is damaged where any of its frames is, and another clip takes its place."""

    def __init__(
        self, datasets: Sequence[Dataset], chosen: Chosen, policy: FaultPolicy, key: str, clips: Clips
    ) -> None:
        super().__init__(datasets, chosen, policy, key)
        self._clips = clips

    def _check_rows(self, positions: np.ndarray) -> None:
        for k, ds in enumerate(self._datasets):
            mine = positions[self._chosen.which[positions] == k]
            if len(mine) and ds.store.table_MW is None:  # what is held was checked when it was read
                ds.check_rows(np.unique(self._clips.samples(k, self._chosen.ids[mine])))

    def _damaged(self, positions: np.ndarray, signals: bool, image_size: int | None) -> tuple[np.ndarray, str]:
        bad, why = np.zeros(len(positions), dtype=bool), ""
        which, ids = self._chosen.which[positions], self._chosen.ids[positions]
        for k, ds in enumerate(self._datasets):
            mine = np.flatnonzero(which == k)
            block_NF = ds.block_of[self._clips.samples(k, ids[mine])]
            if len(found := ds.checks.damaged(block_NF.reshape(-1))):
                bad[mine] |= np.isin(block_NF, found).any(axis=1)
                why = ds.checks.describe(int(found[0]))
        return bad, why
