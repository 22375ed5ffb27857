"""Pack the runs of some subjects into one part: read, z-score and archive each run, then z-score all their windows.

Memory: the frames of two runs, as one is archived while the next is read. Windows wait in an unnamed file until the
subject's mean and deviation are known.
Shapes: T frames, V grayordinates of the ROI, N windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial as bind
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch

from cadiff.errors import DataError
from cadiff.shards.cifti import locate, read_blocks, read_header
from cadiff.shards.cifti_header import DenseHeader
from cadiff.shards.encoding import block_rows
from cadiff.shards.hcp_runs import SUFFIX, Run
from cadiff.shards.hcp_series import WINDOWS, Moments, Scored, Windows, score_run
from cadiff.shards.hcp_split import Sides
from cadiff.shards.legacy import PATCH
from cadiff.shards.parallel import Behind
from cadiff.shards.record import make_records
from cadiff.shards.splits import held_tail
from cadiff.shards.voxels import Stats, padded_width, wrap_pad
from cadiff.shards.writer import Pack, fingerprint
from cadiff.shards.zarr_store import SCANS, ScanWriter

Archive = Callable[..., None] | None  # takes what ScanWriter.add does, and may not be done when it returns
_SLICE_BYTES = 32 * 10**6  # of windows handled at a time


@dataclass(frozen=True)
class Recipe:
    """What is done to every run.

    Attributes:
        columns_V: the standard grayordinates to pack, in the order of the packed columns.
        windows: a name in ``hcp_series.WINDOWS``.
        legacy_pad: take each subject's statistics over rows wrap-padded as the paper's code pads them.
        tables: sources, beside the runs, that decide the split.
    """

    columns_V: np.ndarray
    window: int
    windows: str
    legacy_pad: bool
    sides: Sides
    tables: tuple[str, ...]
    scans: bool
    skip_bad: bool


def pack_subjects(recipe: Recipe, runs: list[Run], pack: Pack) -> None:
    """Add all runs of some subjects to a part; ``runs`` are sorted by subject.

    Raises:
        DataError: a run that cannot be used, unless bad runs are skipped.
    """
    for table in recipe.tables:
        pack.source(table)  # so that the part is made again when the table has changed
    scans = ScanWriter(pack.folder / SCANS) if recipe.scans else None
    with _one_thread(), Behind() as behind:
        archive = bind(behind.do, scans.add) if scans else None
        for subject, mine in groupby(runs, key=lambda run: run.subject):
            _pack_subject(recipe, subject, list(mine), pack, archive)
    if scans:
        scans.list_files()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Conversions to float16 of a block at a time: waking torch's other threads takes longer, and they have work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprint_run(columns_V: np.ndarray, name: str, path: Path) -> dict[str, Any]:
    """Name, size and sha256 of what a run's packed form depends on: its header, and the series of ``columns_V``.

    A run that cannot be read, and every other file, is hashed whole.
    """
    if name.endswith(SUFFIX):
        try:
            header = read_header(path)
            digest = hashlib.sha256(bytes.fromhex(header.sha256))
            for _ in _hashed(header, locate(header, columns_V), digest):
                pass
            return _entry(name, path, digest)
        except DataError:
            pass
    return fingerprint(name, path)


def _hashed(header: DenseHeader, places_V: np.ndarray, digest: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for positions, block_nT in read_blocks(header, places_V):
        digest.update(block_nT)
        yield positions, block_nT


def _entry(name: str, path: Path, digest: Any) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _pack_subject(recipe: Recipe, subject: str, runs: list[Run], pack: Pack, archive: Archive) -> None:
    moments, done = Moments(), []
    with TemporaryFile(dir=pack.folder) as spill:
        for run in runs:
            try:
                windows, scored = _read_run(recipe, run, pack, archive)
            except DataError as problem:
                if not recipe.skip_bad:
                    raise
                pack.source(run.name)
                pack.drop(run.name, str(problem).replace(str(run.path), run.path.name))
                continue
            late = held_tail(len(scored.windows_NV), recipe.sides.tail)
            _measure(recipe, scored.windows_NV[: len(scored.windows_NV) - late], moments)
            scored.windows_NV.tofile(spill)
            done.append((run, windows, late))
        if not done:
            return
        stats = moments.stats(subject)
        spill.seek(0)
        for run, windows, late in done:
            _add_run(recipe, run, windows, late, stats, spill, pack)
    pack.stats(subject, stats)


def _read_run(recipe: Recipe, run: Run, pack: Pack, archive: Archive) -> tuple[list[Windows], Scored]:
    """Read and z-score one run, archive its frames, and report what is in it."""
    header = read_header(run.path)
    try:
        windows = WINDOWS[recipe.windows](header.frames, recipe.window)
    except DataError as problem:
        remedy = "Use a smaller --window"
        if not recipe.skip_bad:
            remedy += ", or leave the run out with --runs or --skip-bad if there are others"
        raise DataError(f"{run.path}: {problem} {remedy}.") from None
    places_V = locate(header, recipe.columns_V)
    digest = hashlib.sha256(bytes.fromhex(header.sha256))
    blocks, shape = _hashed(header, places_V, digest), (header.frames, len(places_V))
    scored = score_run(blocks, shape, (header.slope, header.inter), windows, keep_frames=archive is not None)
    if len(scored.flat_V) == len(places_V):
        raise DataError(f"{run.path}: no grayordinate of the ROI varies over time. Is this a finished time series?")
    pack.hashes[run.name] = _entry(run.name, run.path, digest)
    _report(run, header, windows, scored, pack)
    if archive is not None:
        columns_hash = hashlib.sha256(recipe.columns_V.astype("<i8").tobytes()).hexdigest()
        told = {"source": run.name, "source_sha256": digest.hexdigest(), "columns_sha256": columns_hash}
        zscore = {"mean": scored.mean_V, "std": scored.std_V}
        archive(run.subject, run.run, scored.frames_TV, {"tr_s": header.tr_s, **told}, zscore)
    return windows, scored


def _report(run: Run, header: DenseHeader, windows: list[Windows], scored: Scored, pack: Pack) -> None:
    """Note what was packed of a run; list the grayordinates that became zeros, if there are any."""
    pack.notes.setdefault("runs", {})[f"{run.subject}/{run.run}"] = {
        "frames": header.frames,
        "frames_left_over": header.frames - sum(part.count * part.frames for part in windows),
        "tr_s": header.tr_s,
        "windows": sum(part.count for part in windows),
        "flat": len(scored.flat_V) - scored.not_finite,
        "not_finite": scored.not_finite,
        "version": run.version,
    }
    if len(scored.flat_V):
        pack.attach(run.subject, "flat", scored.flat_V, run.run)


def _measure(recipe: Recipe, windows_NV: np.ndarray, moments: Moments) -> None:
    rows = max(1, _SLICE_BYTES // windows_NV[:1].nbytes) if len(windows_NV) else 1
    for start in range(0, len(windows_NV), rows):
        part_NV = windows_NV[start : start + rows]
        if recipe.legacy_pad:
            part_NV = wrap_pad(part_NV, padded_width(part_NV.shape[1], PATCH, legacy_pad=True))
        moments.add(part_NV)


def _add_run(
    recipe: Recipe, run: Run, windows: list[Windows], late: int, stats: Stats, spill: IO[bytes], pack: Pack
) -> None:
    """z-score a run's windows with the subject's statistics and add them, a whole number of blocks at a time."""
    voxels, split = len(recipe.columns_V), recipe.sides.split_of[run.subject]
    total, place = sum(part.count for part in windows), 0
    block = block_rows(voxels, pack.dtype)
    rows = max(1, _SLICE_BYTES // (4 * voxels * block)) * block
    for part in windows:
        for first in range(0, part.count, rows):
            count = min(rows, part.count - first)
            signals_NV = np.fromfile(spill, dtype=np.float32, count=count * voxels).reshape(count, voxels)
            start = [part.start + (first + i) * part.frames for i in range(count)]
            splits = ["val" if place + i >= total - late else split for i in range(count)]
            scaled_NV, told = stats.apply(signals_NV), {"session": run.session, "start": start, "frames": part.frames}
            pack.add(make_records(run.subject, run.run, scaled_NV, splits, **told))
            place += count
