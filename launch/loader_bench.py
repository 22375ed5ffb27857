"""How fast shards are read here, beside the limits of this machine and stock WebDataset, all measured in one run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cadiff.launch.machine import machine

ROUNDS = 5
_READ = 4 * 1024**2


def measure(shards: Path, batch: int, seconds: float, workers: list[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Run every contender in a process of its own, so that memory is its own too."""
    report: dict[str, Any] = {"bench": "loader", "shards": str(shards), "batch": batch, **_describe(shards)}
    report["machine"] = machine()
    plans: list[tuple[str, Callable[..., dict], tuple]] = []
    if report["voxels"]:
        common = (shards, batch, seconds)
        plans += [(f"kept in RAM, {n} workers", stream_warm, (*common, n, "random", True)) for n in workers]
        plans += [(f"mapped files, {n} workers", stream_warm, (*common, n, "random", False)) for n in workers]
        plans += [
            (f"mapped files in windows, {max(workers)} workers", stream_warm, (*common, max(workers), "window", False))
        ]
        plans += [("cold, window", stream_cold, (shards, batch, max(workers), "window"))]
        plans += [("cold, random", stream_cold, (shards, batch, max(workers), "random"))]
        plans += [("stock webdataset, same tars", stock_blocks, (shards, seconds))]
        plans += [("stock webdataset, one frame a sample", stock_frames, (shards, batch, seconds))]
    if report["pictures"] and report["jpeg"]:
        plans += [(f"pictures, {n} workers", pictures, (shards, min(batch, 64), seconds, n)) for n in workers if n]
    report["contenders"] = []
    for name, work, arguments in plans:
        say(name)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            report["contenders"].append({"name": name, **alone.submit(work, *arguments).result()})
    return report


def stream_warm(shards: Path, batch: int, seconds: float, workers: int, order: str, held: bool) -> dict[str, Any]:
    """The training stream from the page cache, or from a table ``held`` in RAM, taking turns with the limit.

    The limit is what one core can do: copies of random float32 rows from memory into one batch that is used again.
    """
    ds, stream = _stream(shards, batch, workers, order)
    if held:
        ds.store.hold("cpu", stream.width)
    limit = _gather_limit(ds.voxels, stream.width, batch)
    began = time.perf_counter()
    batches = stream.iterate(0, 10**9)
    next(batches)
    first_s = time.perf_counter() - began
    for _ in range(stream.steps_per_epoch):  # all blocks are looked at and in memory after an epoch
        next(batches)
    rates = {"stream": [], "limit": []}
    for _ in range(ROUNDS):
        rates["limit"].append(_rate(limit, batch, seconds / ROUNDS))
        for _ in range(8):  # what the threads prepared during the other's turn is not counted
            next(batches)
        rates["stream"].append(_rate(lambda: next(batches), batch, seconds / ROUNDS))
    batches.close()
    rate, most = (statistics.median(rates[name]) for name in ("stream", "limit"))
    return {
        "samples_per_s": rate, "limit_per_s": most, "share_of_limit": rate / most,
        "bytes_per_s": rate * stream.width * 4, "first_batch_s": first_s, "rss_mb": _rss(),
    }  # fmt: skip


def stream_cold(shards: Path, batch: int, workers: int, order: str) -> dict[str, Any]:
    """One epoch with the files out of the page cache, and reading the same files from one end to the other.

    Beside the whole epoch, ``steady``: from the first batch to the last byte read. A set of this size is two windows,
    and filling the first one, which has a figure of its own, would be most of it; a large set is nearly all steady.
    """
    tars = sorted(shards.glob("fmri-*.tar"))
    disk, epochs, steady, first = [], [], [], []
    for _ in range(3):
        disk.append(_read_through(tars))
        _, stream = _stream(shards, batch, workers, order)
        checks = stream.datasets[0].checks
        _drop(tars)
        seen = []
        began = time.perf_counter()
        for _, _, _ in stream.iterate(0, stream.steps_per_epoch):
            seen.append((time.perf_counter() - began, checks.bytes_read))
        size = checks.bytes_read  # of the training samples' blocks, once each
        first.append(seen[0][0])
        epochs.append(size / seen[-1][0])
        last = next(when for when, read in seen if read == size)
        steady.append((size - seen[0][1]) / (last - seen[0][0]) if last > seen[0][0] else epochs[-1])
        samples = stream.steps_per_epoch * stream.batch / size
        del stream, checks, _
        gc.collect()  # pages that are mapped cannot be dropped
    rate, flow, most = (statistics.median(rates) for rates in (epochs, steady, disk))
    return {
        "samples_per_s": samples * rate, "bytes_per_s": rate, "disk_bytes_per_s": most, "share_of_disk": rate / most,
        "steady_bytes_per_s": flow, "steady_share_of_disk": flow / most,
        "first_batch_s": statistics.median(first), "rss_mb": _rss(),
    }  # fmt: skip


def stock_blocks(shards: Path, seconds: float) -> dict[str, Any]:
    """The webdataset package on the same tars: whole blocks decoded, their rows counted, nothing mixed."""
    from cadiff.shards.stock import read_blocks

    return _count_rows(read_blocks(sorted(shards.glob("fmri-*.tar"))), seconds)


def stock_frames(shards: Path, batch: int, seconds: float) -> dict[str, Any]:
    """The webdataset package on a tar of one frame a sample (float32 .npy), shuffled and batched: the usual way."""
    from cadiff.shards.stock import read_frames, write_frames

    ds, _ = _stream(shards, batch, 0, "random")
    with tempfile.TemporaryDirectory(dir=shards.parent) as folder:
        path = Path(folder) / "frames-000000.tar"
        write_frames(path, ds.signals(np.arange(min(len(ds), 4000)), ds.voxels))
        return _count_rows(read_frames(path, batch), seconds)


def pictures(shards: Path, batch: int, seconds: float, workers: int) -> dict[str, Any]:
    """fMRI-picture pairs, decoded anew for every batch, beside the bare decoder on as many threads, bytes in memory.

    Both are warm: every block's first look, which costs a read and a checksum, is over.
    """
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    ds, stream = _stream(shards, batch, workers, "random", size=256)
    ds.pictures.cache_bytes = 0
    for checks, count in ((ds.checks, len(ds.checks.lengths)), (ds.pictures.checks, len(ds.has_picture))):
        checks.require(np.arange(count))
    data = [ds.pictures.encoded(int(i)) for i in np.flatnonzero(ds.has_picture)[:200]]
    batches = stream.iterate(0, 10**9)
    for _ in range(8):
        next(batches)
    rates: dict[str, list[float]] = {"stream": [], "limit": []}
    with ThreadPoolExecutor(workers) as pool:
        decode = lambda: list(pool.map(_decode_all, [data[k::workers] for k in range(workers)]))  # noqa: E731
        for _ in range(ROUNDS):
            for _ in range(4):
                next(batches)
            rates["stream"].append(_rate(lambda: next(batches), batch, seconds / ROUNDS))
            time.sleep(0.3)  # the threads fill the batches ahead and fall silent
            rates["limit"].append(_rate(decode, len(data), seconds / ROUNDS))
    batches.close()
    rate, most = (statistics.median(rates[name]) for name in ("stream", "limit"))
    kept = {"decoder": f"simplejpeg {simplejpeg.__version__}", "rss_mb": _rss()}
    return {"samples_per_s": rate, "limit_per_s": most, "share_of_limit": rate / most, **kept}


def _decode_all(data: list[bytes]) -> None:
    import simplejpeg

    for item in data:
        simplejpeg.decode_jpeg(item, "RGB")


def _describe(shards: Path) -> dict[str, Any]:
    from cadiff.shards.dataset import Dataset

    ds = Dataset(shards)
    size = sum(entry["bytes"] for entry in ds.manifest["files"])
    return {
        "voxels": ds.voxels, "samples": len(ds), "bytes": size, "dtype": ds.manifest["dtype"], "hash": ds.hash,
        "pictures": int(ds.has_picture.sum()), "jpeg": _all_jpeg(ds),
    }  # fmt: skip


def _all_jpeg(ds: Any) -> bool:
    return all(ds.pictures.encoded(int(i))[:2] == b"\xff\xd8" for i in np.flatnonzero(ds.has_picture)[:200])


def _stream(shards: Path, batch: int, workers: int, order: str, size: int | None = None) -> tuple[Any, Any]:
    import torch

    from cadiff.shards.dataset import Dataset
    from cadiff.shards.stream import Reading, Stream
    from cadiff.shards.voxels import padded_width

    torch.set_num_threads(1)
    ds = Dataset(shards)
    batch = min(batch, len(ds.ids("train")))
    width = padded_width(ds.voxels, 16) if ds.voxels else 0
    options = {"split": "train", "batch": batch, "micro_batch": batch, "width": width, "image_size": size}
    return ds, Stream([ds], reading=Reading(order=order, workers=workers), **options)


def _gather_limit(voxels: int, width: int, batch: int) -> Callable[[], object]:
    table = np.random.default_rng(0).standard_normal((20_000, width), dtype=np.float32)
    rows = np.random.default_rng(1).integers(0, len(table), (64, batch))
    target = np.empty((batch, width), dtype=np.float32)
    turn = iter(range(10**9))
    return lambda: np.take(table, rows[next(turn) % 64], axis=0, out=target, mode="clip")


def _count_rows(rows: Iterator[int], seconds: float) -> dict[str, Any]:
    began = time.perf_counter()
    next(rows)
    first_s = time.perf_counter() - began
    rates = []
    for _ in range(ROUNDS):
        start, seen = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / ROUNDS:
            seen += next(rows)
        rates.append(seen / (time.perf_counter() - start))
    return {"samples_per_s": statistics.median(rates), "first_batch_s": first_s, "rss_mb": _rss()}


def _rate(work: Callable[[], object], samples: int, seconds: float) -> float:
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        done += samples
    return done / (time.perf_counter() - start)


def _read_through(paths: list[Path]) -> float:
    """Bytes per second of reading files from beginning to end, from the disk."""
    _drop(paths)
    buffer, total, start = bytearray(_READ), 0, time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                total += count
    return total / (time.perf_counter() - start)


def _drop(paths: list[Path]) -> None:
    """Ask the system to forget these files' pages."""
    for path in paths:
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
