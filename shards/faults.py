"""What happens when a stored sample is damaged: stop, or put a certain other one in its place and write it down."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.mixture import Chosen
from cadiff.shards.sampler import keyed_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaultPolicy:
    """What to do about damage.

    Attributes:
        on_damage: "raise" stops at the first damaged sample; "quarantine" replaces it.
        budget: largest part of the samples that may be quarantined before the stream stops all the same: by all ranks
            and starts that share a ledger, else by this process.
        check: "first" compares each block's checksum on its first read in a process, "every" each row's on every read.
        ledger: file that quarantined samples are appended to, one JSON object a line; None keeps them in the log only.
    """

    on_damage: str = "raise"
    budget: float = 0.001
    check: str = "first"
    ledger: Path | None = None

    def __post_init__(self) -> None:
        if self.on_damage not in ("raise", "quarantine") or self.check not in ("first", "every"):
            raise ConfigError(
                f"data.on_damage = '{self.on_damage}', data.check = '{self.check}': use raise or quarantine, and first "
                "or every."
            )


class Faults:
    """Keeps damaged samples out of batches. The replacement depends on the damaged sample alone, so all ranks agree."""

    def __init__(self, datasets: Sequence[Dataset], chosen: Chosen, policy: FaultPolicy, key: str) -> None:
        self._datasets, self._chosen, self.policy, self._key = datasets, chosen, policy, key
        self._replaced: dict[int, int] = {}
        self._lock = threading.Lock()

    def sound(self, positions: np.ndarray, signals: bool, image_size: int | None) -> np.ndarray:
        """The positions, with every damaged sample replaced.

        Raises:
            DataError: damage under the policy "raise", more damage than the budget, or a missing file.
        """
        if signals and self.policy.check == "every":
            self._check_rows(positions)
        if all(
            (not signals or ds.checks.all_sound) and (image_size is None or ds.pictures.checks.all_sound)
            for ds in self._datasets
        ):
            return positions
        bad, why = self._damaged(positions, signals, image_size)
        if not bad.any():
            return positions
        if self.policy.on_damage == "raise":
            raise DataError(why)
        positions = positions.copy()
        with self._lock:
            for row in np.flatnonzero(bad).tolist():
                positions[row] = self._replacement(int(positions[row]), signals, image_size)
        return positions

    def _check_rows(self, positions: np.ndarray) -> None:
        for k, ds in enumerate(self._datasets):
            mine = positions[self._chosen.which[positions] == k]
            if len(mine) and ds.store.table_MW is None:  # what is held was checked when it was read
                ds.check_rows(self._chosen.ids[mine])

    def _replacement(self, position: int, signals: bool, image_size: int | None) -> int:
        if position not in self._replaced:
            same_set = np.flatnonzero(self._chosen.which == self._chosen.which[position])
            for word in keyed_words(1000, self._key, "replace", position).tolist():
                other = int(same_set[word % len(same_set)])
                bad, why = self._damaged(np.array([position, other]), signals, image_size)
                if not bad[1]:
                    break
            else:
                raise DataError(f"{why} A thousand other samples are damaged too.")
            self._replaced[position] = other
            self._record(position, other, why)
        return self._replaced[position]

    def _damaged(self, positions: np.ndarray, signals: bool, image_size: int | None) -> tuple[np.ndarray, str]:
        bad, why = np.zeros(len(positions), dtype=bool), ""
        which, ids = self._chosen.which[positions], self._chosen.ids[positions]
        for k, ds in enumerate(self._datasets):
            mine = np.flatnonzero(which == k) if len(self._datasets) > 1 else slice(None)
            if signals:
                block_N = ds.block_of[ids[mine]]
                if len(found := ds.checks.damaged(block_N)):
                    bad[mine] |= np.isin(block_N, found)
                    why = ds.checks.describe(int(found[0]))
            if image_size is not None:
                stimulus_N = ds.table.stimulus[ids[mine]]
                if len(found := ds.pictures.damaged(stimulus_N, image_size)):
                    bad[mine] |= np.isin(stimulus_N, found)
                    why = ds.pictures.checks.describe(int(found[0]))
        return bad, why

    def _record(self, position: int, other: int, why: str) -> None:
        told = {"replaced": self._name(position), "by": self._name(other), "why": why}
        log.warning("quarantined %s", json.dumps(told))
        if self.policy.ledger is not None:
            # One write of one line: several ranks may share the file.
            with open(self.policy.ledger, "ab", buffering=0) as handle:
                handle.write((json.dumps(told) + "\n").encode())
                os.fsync(handle.fileno())
        if (count := self._count()) > self.policy.budget * len(self._chosen):
            raise DataError(
                f"{count:,} of {len(self._chosen):,} samples are damaged, more than data.damage_budget = "
                f"{self.policy.budget}. {why}"
            )

    def _count(self) -> int:
        """Samples of this stream that were quarantined so far, each once."""
        if self.policy.ledger is None:
            return len(self._replaced)
        told: dict[str, set[int]] = {ds.hash: set() for ds in self._datasets}  # a set may lie elsewhere next time
        for line in self.policy.ledger.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, LookupError, TypeError):  # half a line, left by a full disk
                replaced = json.loads(line)["replaced"]
                told[replaced["hash"]].add(int(replaced["sample"]))
        chosen = (self._chosen.ids[self._chosen.which == k] for k in range(len(self._datasets)))
        return sum(int(np.isin(ids, list(told[ds.hash])).sum()) for ds, ids in zip(self._datasets, chosen))

    def _name(self, position: int) -> dict[str, object]:
        ds = self._datasets[self._chosen.which[position]]
        return {"set": str(ds.folder), "hash": ds.hash, **ds.describe(int(self._chosen.ids[position]))}
