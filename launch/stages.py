"""Stages that are done once: recognised by a hash of what went in and of what came out, not by a file being there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadiff.errors import ConfigError, DataError
from cadiff.files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: what the user reads, and the name of its record.
        inputs: everything the result depends on: options, and the digests of earlier stages.
        folder: what it writes; removed before the stage starts over with other inputs.
        work: does it; may be called again after a kill and continues where it can.
        digest: hash of what is in ``folder`` now; raises DataError or OSError if that is not whole.
    """

    name: str
    inputs: dict[str, Any]
    folder: Path
    work: Callable[[], None]
    digest: Callable[[], str]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True, default=str).encode()).hexdigest()


class Ledger:
    """Records of finished and started stages in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, stage: Stage, say: Callable[[str], None]) -> str:
        """Do the stage unless it is done; returns the digest of its result."""
        done, started = (self.folder / f"{stage.name}.{state}.json" for state in ("done", "started"))
        record, begun = self._read(done), self._read(started)
        if record.get("key") == stage.key:
            present = _digest_or_none(stage)
            if present is not None and present == record.get("digest"):
                say(f"{stage.name}: done before, unchanged")
                return present
        if stage.folder.exists() and (record or begun.get("key") != stage.key):
            self._remove(stage, ours=bool(record or begun))
        done.unlink(missing_ok=True)
        write_json(started, {"key": stage.key, "inputs": json.loads(json.dumps(stage.inputs, default=str))})
        stage.work()
        digest = stage.digest()
        write_json(done, {"key": stage.key, "digest": digest})
        return digest

    def forget(self, folders: dict[str, Path]) -> None:
        """Delete what recorded stages wrote (name -> folder) with their records; nothing that no stage wrote."""
        for name, folder in folders.items():
            records = [self.folder / f"{name}.{state}.json" for state in ("done", "started")]
            if any(record.exists() for record in records):
                shutil.rmtree(folder, ignore_errors=True)
            for record in records:
                record.unlink(missing_ok=True)

    @staticmethod
    def _remove(stage: Stage, *, ours: bool) -> None:
        """Make room for other inputs, or for a result that was damaged; never for files that no stage wrote."""
        if not ours and any(stage.folder.iterdir()):
            raise ConfigError(f"{stage.folder}: holds files that were not made here. Choose another output folder.")
        shutil.rmtree(stage.folder)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            record = read_json(path)
        except DataError:
            return {}
        return record if isinstance(record, dict) else {}


def _digest_or_none(stage: Stage) -> str | None:
    try:
        return stage.digest()
    except (DataError, OSError):
        return None
