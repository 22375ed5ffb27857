"""What a data set costs before it is downloaded or packed: bytes, pack time, shards, and what training reads.

The formulas, for every kind of run of a study (GB = 10^9 bytes):

    raw bytes of a run   = 629 kB of header + frames x grayordinates x 4
    windows of a run     = frames // window
    packed bytes         = windows x voxels x bytes per value + 3 kB of headers per block of up to 64 windows
    archive bytes        = frames x voxels x 2        (scans.zarr keeps each whole run as float16)
    taken bytes of a run = 629 kB of header + frames x voxels x 4      (a ROI is read and hashed, not the whole file)
    CPU seconds of a run = header + taken bytes x hashing + frames x voxels x work per value
    pack seconds         = the larger of  sum over runs of (CPU seconds + taken bytes / read speed) / cores
                                    and  all taken bytes / read speed
    read bytes/s per GPU = samples per second x voxels x bytes per value

One reader gets the whole speed of the storage while no other reads, so one core waits for the disk and then works; with
many cores the storage is the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cadiff.errors import ConfigError

HEADER_BYTES = 628_816  # of a CIFTI file with HCP's 91,282 grayordinates and 1,200 frames
RAW_VALUE_BYTES = 4  # float32
BLOCK_ROWS, BLOCK_BYTES = 64, 3_000  # windows of a block, and what its tar and .npy headers and its json take
VALUE_BYTES = {"float16": 2, "float32": 4, "int16": 2, "int8": 1}
MIB = 2**20


@dataclass(frozen=True)
class Scan:
    """One kind of run: how many each subject has, and how many frames they have."""

    name: str
    runs: int
    frames: int


@dataclass(frozen=True)
class Study:
    """Who was scanned how long. Every subject is taken to have every run, so figures are upper bounds."""

    subjects: int
    scans: tuple[Scan, ...]
    tr_s: float
    grayordinates: int = 91_282


@dataclass(frozen=True)
class PackSpeed:
    """Seconds of one core: opening a header, hashing a byte of a file, packing one value (a frame of a voxel)."""

    header_s: float
    hash_s_per_byte: float
    work_s_per_value: float
    source: str


# HCP's imaging protocols give TR, runs and frames; 1,113 subjects have 3T scans, 1,003 of them all four resting runs.
_REST = (Scan("REST", 4, 1200),)
_TASKS = {"WM": 405, "GAMBLING": 253, "MOTOR": 284, "LANGUAGE": 316, "SOCIAL": 274, "RELATIONAL": 232, "EMOTION": 176}
_MOVIES = {"MOVIE1": 921, "MOVIE2": 918, "MOVIE3": 915, "MOVIE4": 901}
PRESETS = {
    "hcp-rest": Study(1113, _REST, 0.72),
    "hcp-all": Study(1113, _REST + tuple(Scan(name, 2, frames) for name, frames in _TASKS.items()), 0.72),
    "hcp-7t": Study(
        184, (Scan("REST", 4, 900), *(Scan(n, 1, frames) for n, frames in _MOVIES.items()), Scan("RET", 6, 300)), 1.0
    ),
}
# A simulated run of HCP's size, in the page cache; Python 3.11, NumPy 2.4. docs/data.md says how.
DEFAULT_SPEED = PackSpeed(0.012, 6.4e-10, 1.2e-8, "measured on one core of an AMD EPYC virtual machine")


def choose(
    preset: str,
    subjects: int | None = None,
    runs: int | None = None,
    frames: int | None = None,
    tr_s: float | None = None,
    grayordinates: int | None = None,
) -> Study:
    """A preset, with whatever is given in its place.

    Raises:
        ConfigError: an unknown preset, or runs or frames for one with several kinds of runs.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset '{preset}': use one of {', '.join(PRESETS)}.")
    study = PRESETS[preset]
    if (runs or frames) and len(study.scans) > 1:
        raise ConfigError(f"preset {preset} has runs of its own lengths: leave out --runs-per-subject and --frames.")
    if runs or frames:
        scan = study.scans[0]
        study = replace(study, scans=(Scan(scan.name, runs or scan.runs, frames or scan.frames),))
    given = {"subjects": subjects, "tr_s": tr_s, "grayordinates": grayordinates}
    return replace(study, **{name: value for name, value in given.items() if value is not None})


def estimate(
    study: Study,
    *,
    voxels: int,
    window: int,
    dtype: str,
    cores: int,
    read_gbps: float,
    samples_per_s_per_gpu: float,
    gpus: int,
    shard_mb: int,
    speed: PackSpeed = DEFAULT_SPEED,
) -> dict[str, Any]:
    """Do the arithmetic of this module's first lines: plain numbers in bytes and seconds.

    Args:
        voxels: grayordinates of the ROI.
        window: frames averaged into one sample.
        dtype: how a value is stored, a key of VALUE_BYTES.
        read_gbps: GB per second that one reader gets from the storage with the raw files.
        shard_mb: MiB at which a shard is closed.

    Raises:
        ConfigError: an unknown dtype, an ROI larger than the files, or a window that no run fills.
    """
    if dtype not in VALUE_BYTES:
        raise ConfigError(f"dtype '{dtype}': use one of {', '.join(VALUE_BYTES)}.")
    if voxels > study.grayordinates:
        raise ConfigError(f"voxels = {voxels:,}: a file has {study.grayordinates:,} grayordinates. Choose fewer.")
    longest = max(scan.frames for scan in study.scans)
    if window > longest:
        raise ConfigError(f"window = {window}: the longest run has {longest} frames. Use a smaller window.")
    runs = frames = samples = blocks = raw = taken = 0
    cpu_s = 0.0
    for scan in study.scans:
        count, windows = study.subjects * scan.runs, scan.frames // window
        bytes_of_run = raw_bytes(scan.frames, study.grayordinates)
        runs, frames, samples = runs + count, frames + count * scan.frames, samples + count * windows
        blocks, raw = blocks - count * (-windows // BLOCK_ROWS), raw + count * bytes_of_run
        taken += count * raw_bytes(scan.frames, voxels)
        cpu_s += count * run_seconds(scan.frames * voxels, speed)
    read_s = taken / (read_gbps * 1e9)
    row_bytes = voxels * VALUE_BYTES[dtype]
    packed = samples * row_bytes + blocks * BLOCK_BYTES
    return {
        "subjects": study.subjects,
        "runs": runs,
        "frames": frames,
        "hours": frames * study.tr_s / 3600,
        "raw_bytes": raw,
        "taken_bytes": taken,
        "raw_bytes_of_longest_run": raw_bytes(longest, study.grayordinates),
        "cpu_s_per_run": cpu_s / runs,
        "pack_s": max((cpu_s + read_s) / cores, read_s),
        "pack_limit": "storage" if read_s > (cpu_s + read_s) / cores else "cores",
        "samples": samples,
        "sample_bytes": row_bytes,
        "packed_bytes": packed,
        "shards": -(-packed // (shard_mb * MIB)),
        "archive_bytes": frames * voxels * 2,
        "read_bytes_per_s_per_gpu": samples_per_s_per_gpu * row_bytes,
        "read_bytes_per_s": samples_per_s_per_gpu * row_bytes * gpus,
    }


def raw_bytes(frames: int, grayordinates: int) -> int:
    """Bytes of one dense time series, header included."""
    return HEADER_BYTES + frames * grayordinates * RAW_VALUE_BYTES


def run_seconds(values: int, speed: PackSpeed) -> float:
    """CPU seconds to pack one run of ``values`` = frames x voxels."""
    taken = HEADER_BYTES + values * RAW_VALUE_BYTES
    return speed.header_s + taken * speed.hash_s_per_byte + values * speed.work_s_per_value


def table(report: dict[str, Any]) -> list[str]:
    """The report of ``cadiff plan data`` as aligned lines: what, figure, how it came about."""
    study, given, gb, mb = report["study"], report["inputs"], 1e9, 1e6
    scans = [f"{scan['runs']} {scan['name']} x {scan['frames']:,} frames" for scan in study["scans"]]
    longest, limit, row_bytes = report["raw_bytes_of_longest_run"], report["pack_limit"], report["sample_bytes"]
    packing = f"cores: {given['cores']}, raw storage: {given['read_gbps']:g} GB/s; the limit is the {limit}"
    rows = [
        ("subjects", f"{report['subjects']:,}", report["preset"]),
        ("runs", f"{report['runs']:,}", f"each subject: {', '.join(scans[:2])}{', ...' * (len(scans) > 2)}"),
        ("frames", f"{report['frames']:,}", f"{report['hours']:,.0f} hours at TR {study['tr_s']:g} s"),
        ("raw", f"{report['raw_bytes'] / gb:,.1f} GB", f"up to {longest / mb:,.0f} MB a run"),
        ("CPU per run", f"{report['cpu_s_per_run']:.2f} s", report["speed"]["source"]),
        *((f"  {step}", f"{seconds:.3f} s", "") for step, seconds in report["steps"].items()),
        ("pack time", duration(report["pack_s"]), packing),
        ("samples", f"{report['samples']:,}", f"windows of {given['window']} frames, {given['voxels']:,} voxels"),
        ("packed", f"{report['packed_bytes'] / gb:,.2f} GB", f"{given['dtype']}, {row_bytes:,} bytes each"),
        ("shards", f"{report['shards']:,}", f"of {given['shard_mb']} MiB"),
        ("scans.zarr", f"{report['archive_bytes'] / gb:,.2f} GB", "whole runs, float16"),
        ("read per GPU", f"{report['read_bytes_per_s_per_gpu'] / mb:,.1f} MB/s",
         f"at {given['samples_per_s_per_gpu']:,g} samples/s: assumed, unless you measured it"),
        ("read in all", f"{report['read_bytes_per_s'] / mb:,.1f} MB/s", f"{given['gpus']} GPUs"),
    ]  # fmt: skip
    return [f"{what:<16}{figure:>12}   {why}".rstrip() for what, figure, why in rows]


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
