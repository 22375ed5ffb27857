"""Packing HCP runs: how fast is it beside reading the raw files, and does its memory grow with the number of runs?

    python benchmarks/bench_pack_hcp.py --folder DIR       # one JSON object; see --help for sizes

One run of the simulator is written once for every run of every subject, each copy a file of its own. All files are read
from the first byte to the last, and packed, each with the page cache dropped for these files ("cold") and filled
("warm"), in turns. Packing is timed in a fresh process, without its imports but with starting its workers. GB/s counts
the raw files' bytes in both, so the ratio pack / read is how fast packing is beside reading every byte. Peak memory is
that of the packing process and of its largest worker, for a quarter of the subjects and for all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cadiff.launch.machine import machine
from cadiff.shards.synthetic.hcp_files import FILE_END, REST_RUNS, REST_TR_S, brain_noise, save_dtseries


def write_study(root: Path, subjects: int, runs: int, frames: int) -> list[str]:
    """Write the raw files below ``root``, in the release's layout; return the subjects."""
    first, names = None, [str(990_001 + index) for index in range(subjects)]
    for name in names:
        for run in REST_RUNS[:runs]:
            path = root / name / "MNINonLinear" / "Results" / run / f"{run}{FILE_END}"
            path.parent.mkdir(parents=True)
            if first is None:
                save_dtseries(path, brain_noise(0, name, run, frames) * 100 + 10_000, REST_TR_S)
                first = path
            else:
                shutil.copyfile(first, path)
    os.sync()
    return names


def drop_cached(paths: list[Path]) -> None:
    for path in paths:
        with open(path, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(paths: list[Path]) -> float:
    buffer, started = bytearray(2**20), time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    return time.perf_counter() - started


def pack_once(root: Path, out: Path, subjects: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Pack in a fresh process: seconds, and peak memory in MiB of it and of its largest worker."""
    shutil.rmtree(out, ignore_errors=True)
    order = [sys.executable, __file__, "--pack", str(root), str(out), "--roi", options.roi]
    order += ["--window", str(options.window), "--scans" if options.scans else "--no-scans"]
    order += ["--workers", str(options.workers)] if options.workers else []
    done = subprocess.run(order, input=" ".join(subjects), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def pack_here(options: argparse.Namespace) -> None:
    from cadiff.shards.hcp import pack_hcp

    root, out = options.pack
    how = {"roi": options.roi, "window": options.window, "scans": options.scans, "workers": options.workers}
    how["val_fraction"] = 0.0  # all subjects are copies of one run, which two splits may not share
    subjects, peaks, over = sys.stdin.read().split(), {}, threading.Event()
    watch = threading.Thread(target=_watch, args=(peaks, over))
    watch.start()
    started = time.perf_counter()
    pack_hcp(root, out, subjects=subjects, **how)
    seconds = time.perf_counter() - started
    over.set()
    watch.join()
    own = peaks.pop(os.getpid())
    print(json.dumps({"seconds": seconds, "own_mib": own / 1024, "worker_mib": max(peaks.values(), default=0) / 1024}))


def _watch(peaks: dict[int, int], over: threading.Event) -> None:
    """Look at the peak memory of this process and all below it, in KiB by process, until it is over.

    getrusage would not do: workers are children of another process, and what a process had before exec counts too.
    """
    while True:
        last, family = over.wait(0.25), {os.getpid()}
        parents = {int(path.name): _status(path, "PPid") for path in Path("/proc").iterdir() if path.name.isdigit()}
        for process in sorted(parents):
            if process in family or parents[process] in family:
                family.add(process)
                peaks[process] = max(peaks.get(process, 0), _status(Path(f"/proc/{process}"), "VmHWM"))
        if last:
            return


def _status(process: Path, field: str) -> int:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def measure(root: Path, out: Path, names: list[str], options: argparse.Namespace) -> dict:
    """Read and pack the subjects named, cold and warm, in turns."""
    paths = sorted(path for name in names for path in (root / name).rglob("*.nii"))
    size = sum(path.stat().st_size for path in paths)
    seconds: dict[str, list[float]] = {name: [] for name in ("read_cold", "pack_cold", "read_warm", "pack_warm")}
    memory: dict[str, float] = {"own_mib": 0, "worker_mib": 0}
    for _ in range(options.rounds):
        for name in seconds:
            if name.endswith("cold"):
                drop_cached(paths)
            elif name == "read_warm":
                read_all(paths)
            if name.startswith("read"):
                seconds[name].append(read_all(paths))
                continue
            told = pack_once(root, out, names, options)
            seconds[name].append(told["seconds"])
            memory = {what: max(memory[what], told[what]) for what in memory}
            os.sync()  # what this pack wrote must not slow the next turn
    speed = {name: size / 1e9 / statistics.median(values) for name, values in seconds.items()}
    return {
        "subjects": len(names),
        "runs": len(paths),
        "raw_gb": round(size / 1e9, 3),
        "gb_per_s": {name: round(value, 2) for name, value in speed.items()},
        "ratio_cold": round(speed["pack_cold"] / speed["read_cold"], 2),
        "ratio_warm": round(speed["pack_warm"] / speed["read_warm"], 2),
        "peak_mib": {what: round(value) for what, value in memory.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the raw and packed files go; default: a temporary folder")
    parser.add_argument("--subjects", type=int, default=8, help="of the larger size; the smaller has a quarter")
    parser.add_argument("--runs", type=int, default=2, help="of each subject, up to 4")
    parser.add_argument("--frames", type=int, default=200, help="of each run; HCP's resting runs have 1,200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--roi", default="VC")
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--workers", type=int, help="default: what cadiff pack takes")
    parser.add_argument("--scans", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pack", nargs=2, metavar=("ROOT", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pack:
        pack_here(options)
        return
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-pack-hcp-") as folder:
        root, out = Path(folder) / "raw", Path(folder) / "packed"
        names = write_study(root, options.subjects, options.runs, options.frames)
        sizes = [measure(root, out, part, options) for part in (names[: max(1, len(names) // 4)], names)]
    row = {
        "bench": "pack_hcp",
        **{name: value for name, value in vars(options).items() if name not in ("folder", "pack")},
        "sizes": sizes,
        "machine": machine(),
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
