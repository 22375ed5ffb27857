"""The hidden folder a pack grows in: parts made by several processes, kept when interrupted, joined in order."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from functools import partial as bind
from pathlib import Path

from cadiff.distributed import alive
from cadiff.errors import DataError
from cadiff.files import sync_folder, sync_tree
from cadiff.shards.absorb import absorb
from cadiff.shards.manifest import read_manifest
from cadiff.shards.parallel import run_all
from cadiff.shards.record import safe_key, silent
from cadiff.shards.seal import recipe_hash, versions
from cadiff.shards.writer import Fingerprint, Pack
from cadiff.shards.zarr_store import SCANS, ScanWriter

log = logging.getLogger(__name__)


def fresh_partial(out: Path) -> Path:
    """A hidden folder beside ``out``, with the finished parts of a killed pack of this machine if there are any."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{out.name}.partial-{safe_key(socket.gethostname())}-"
    mine = out.parent / f"{stem}{os.getpid()}"
    for stale in sorted(out.parent.glob(f"{glob.escape(stem)}*")):
        process = stale.name.removeprefix(stem)
        if not process.isdigit() or alive(int(process)):
            continue
        if not mine.exists() and _finished_parts(stale):
            os.rename(stale, mine)
        else:
            shutil.rmtree(stale, ignore_errors=True)
    if mine.exists():
        log.info("an interrupted pack left %d finished parts", len(_finished_parts(mine)))
    mine.mkdir(exist_ok=True)
    for path in mine.iterdir():
        if path.is_file():  # of the pack that was killed; parts are folders
            path.unlink()
        elif not path.name.startswith("part-"):
            shutil.rmtree(path)
    return mine


def discard(partial: Path) -> None:
    """Remove what an unfinished pack leaves, unless finished parts are worth keeping for the next start."""
    if partial.exists() and _finished_parts(partial):
        log.warning(
            "finished parts are kept (%d); the same command continues after them", len(_finished_parts(partial))
        )
        return
    shutil.rmtree(partial, ignore_errors=True)


def remove_parts(partial: Path) -> None:
    """Remove all parts: those that are joined, and those of an earlier start that this one had no use for."""
    for path in partial.glob("part-*"):
        shutil.rmtree(path)


def join_parts(pack: Pack, units: Sequence[Callable[[Pack], None]], sources: dict[str, Path], workers: int) -> None:
    """Make one part a unit, in several processes, and absorb them in order. They stay until the whole is on disk."""
    # Which inputs there are decides the splits and who is in which part, so parts of another choice are not reused.
    sizes = {name: path.stat().st_size if path.is_file() else -1 for name, path in sorted(sources.items())}
    inputs = "".join(f"{name}\t{size}\n" for name, size in sizes.items())
    options = {**pack.options, "inputs_sha256": hashlib.sha256(inputs.encode()).hexdigest()}
    options["units"] = len(units)  # another number is another division into parts
    how = (pack.folder, pack.kind, options, pack.dtype, pack.split_by, sources, pack.fingerprints)
    work = bind(_make_part, *how)
    for done in run_all(work, list(enumerate(units)), workers):
        pack.progress("packing", done, len(units))
    scans = None
    for number in range(len(units)):
        part = _part(pack.folder, number)
        absorb(pack, part, share=True)
        if (part / SCANS).is_dir():
            scans = scans or ScanWriter(pack.folder / SCANS)
            scans.adopt(part / SCANS)
    if scans is not None:
        pack.scans = scans.describe()


def _make_part(folder, kind, options, dtype, split_by, sources, fingerprints, piece) -> None:
    """Fill one part, unless an earlier start has finished it from the same recipe and the same inputs."""
    number, unit = piece
    target, making = _part(folder, number), folder / f"making-{number:05d}"
    if _is_current(target, kind, options, dtype, sources, fingerprints):
        return
    for path in (target, making):
        shutil.rmtree(path, ignore_errors=True)
    making.mkdir()
    pack = Pack(making, kind, options, sources, silent, dtype, fingerprints=fingerprints)
    pack.split_by = split_by
    try:
        unit(pack)
        pack.finish_part()
    except BaseException:
        for tars in pack.tars.values():
            tars.abandon()
        shutil.rmtree(making, ignore_errors=True)  # a full disk needs the room
        raise
    sync_tree(making)  # a part that is there after a power loss is a whole one, its scans too
    os.rename(making, target)
    sync_folder(folder)


def _is_current(
    part: Path, kind: str, options: dict, dtype: str, sources: dict[str, Path], fingerprints: Fingerprint
) -> bool:
    try:
        manifest = read_manifest(part)
    except DataError:
        return False
    if manifest.recipe_sha256 != recipe_hash(kind, options, dtype) or manifest.made_by != versions():
        return False
    return all(
        source.name in sources and fingerprints(source.name, sources[source.name]) == source.model_dump()
        for source in manifest.sources
    )


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}"


def _finished_parts(partial: Path) -> list[Path]:
    """Parts worth keeping: finished, and not empty because everything was left out."""
    return [path for path in partial.glob("part-*") if (path / "manifest.json").is_file() and any(path.glob("*.tar"))]
