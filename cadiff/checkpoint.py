"""Checkpoints that are whole or absent: DeepSpeed's files in a hashed folder that is committed by its last file.

<run>/checkpoints/.tmp-step-000120/          all ranks write here
<run>/checkpoints/step-000120/
    deepspeed/...                            DeepSpeed's own sharded files
    state.json                               step, world size, ZeRO stage, job and data hashes
    MANIFEST.json                            every file's size and sha256
    COMMITTED                                written last; holds the manifest's hash
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from cadiff.engine import Engine
from cadiff.errors import ConfigError, DataError
from cadiff.files import read_json, sha256, sync_folder, write_json, write_text

log = logging.getLogger(__name__)
_TAG = "deepspeed"


def save(engine: Engine, run: Path, state: dict[str, Any], keep: int) -> None:
    """Save at ``state["step"]`` and drop the oldest beyond ``keep``; all ranks call this."""
    root = run / "checkpoints"
    final = root / f"step-{state['step']:06d}"
    beside = root / f".tmp-{final.name}"
    if engine.place.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    engine.barrier()
    engine.save(beside, _TAG)
    engine.barrier()
    if engine.place.is_main:
        write_json(beside / "state.json", state)
        _commit(beside, final)
        for old in committed(run)[:-keep]:
            shutil.rmtree(old)
    engine.barrier()


def _commit(beside: Path, final: Path) -> None:
    files = {
        str(path.relative_to(beside)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(beside.rglob("*"))
        if path.is_file()
    }
    write_json(beside / "MANIFEST.json", files)
    write_text(beside / "COMMITTED", sha256(beside / "MANIFEST.json") + "\n")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    sync_folder(final.parent)


def committed(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    found = (path.parent for path in (run / "checkpoints").glob("step-*/COMMITTED"))
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def newest_valid(run: Path) -> Path | None:
    """The newest checkpoint whose files have the sizes and hashes of its manifest; damaged ones are named aloud."""
    for folder in reversed(committed(run)):
        problem = find_damage(folder)
        if problem is None:
            return folder
        log.warning("checkpoint %s is damaged (%s); trying the one before it", folder.name, problem)
    return None


def agreed_newest(engine: Engine, run: Path) -> Path | None:
    """The checkpoint all ranks continue from: rank 0 checks the hashes and tells the others which one.

    Raises:
        DataError: another rank does not see it: the run folder is not shared between the machines.
    """
    found = newest_valid(run) if engine.place.is_main else None
    name = engine.told_by_main(found.name if found else "")
    if not name:
        return None
    folder = run / "checkpoints" / name
    if not (folder / "COMMITTED").is_file():
        raise DataError(
            f"{folder}: rank 0 continues from it, but rank {engine.place.rank} does not see it. "
            "Put the run folder where all machines can read it."
        )
    return folder


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    try:
        if (folder / "COMMITTED").read_text().strip() != sha256(folder / "MANIFEST.json"):
            return "MANIFEST.json changed after the commit"
        for name, fact in read_json(folder / "MANIFEST.json").items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != fact["bytes"]:
                return f"{name} is missing or has another size"
            if sha256(path) != fact["sha256"]:
                return f"{name} has another hash"
    except (OSError, DataError, AttributeError, KeyError, TypeError) as problem:
        return str(problem)
    return None


def load(engine: Engine, folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Restore ``engine`` from a checkpoint of the same job.

    Raises:
        ConfigError: the checkpoint belongs to another job, data set, world size or ZeRO stage.
    """
    state = read_json(folder / "state.json")
    for key, value in expected.items():
        if state.get(key) != value:
            raise ConfigError(
                f"{folder}: was saved with {key} = {state.get(key)!r}, this job has {value!r}. "
                "Continue with the settings of that run, or give another --out folder."
            )
    engine.load(folder, _TAG)
    return state
