"""One rank of a training job: what the ``deepspeed`` launcher (or torchrun) starts on every device.

deepspeed --hostfile hosts launch/worker.py --config configs/phase1_hcp.toml --out runs/phase1 optim.lr=1e-4
deepspeed --num_gpus 8 --module cadiff.launch.worker --config ... --out ...
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from cadiff.distributed import alive, place
from cadiff.errors import CadiffError, ConfigError

MARK = "[cadiff] "  # the lines of a rank that a person wants to see begin with this
ERROR = "error"  # such a line ends with the exit code and the message; every rank prints its own
PARENT = "CADIFF_PARENT_PID"  # set by `cadiff train`: ranks end when that process is gone


def main(argv: list[str] | None = None) -> int:
    """Train one job as one rank; returns the exit code."""
    options = _arguments(argv)
    here = place()
    logging.basicConfig(stream=sys.stdout, format=MARK + "%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("cadiff").setLevel(logging.INFO if here.is_main else logging.ERROR)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    end_with(os.environ.get(PARENT))
    try:
        return _train(options, here)
    except CadiffError as problem:
        print(f"{MARK}{ERROR} {problem.exit_code}: {problem}", flush=True)
        return problem.exit_code


def _train(options: argparse.Namespace, here) -> int:
    from cadiff.config import load_job
    from cadiff.engine import stop_processes
    from cadiff.train import train

    job = load_job(options.config, options.overrides, phase=options.phase)
    run = Path(options.out or Path("runs") / job.name)
    lock = hold(run) if here.is_main else None
    try:
        train(job, run, here)
        stop_processes()
    finally:
        if lock is not None:
            lock.close()
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a job's TOML file")
    parser.add_argument("--out", help="run folder (default: runs/<name>)")
    parser.add_argument("--phase", help="the phase the config must configure")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by some launchers; the environment wins")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(argv)


def end_with(parent: str | None) -> None:
    """Leave when the process that started this job is gone: a killed `cadiff` must not leave ranks behind."""
    if parent is None:
        return

    def watch() -> None:
        while True:
            time.sleep(0.5)
            if not alive(int(parent)):
                os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def hold(run: Path, patience_s: float = 20.0) -> TextIO:
    """Hold a folder until the returned file is closed; a predecessor that is just ending is waited for."""
    run.mkdir(parents=True, exist_ok=True)
    handle = open(run / ".lock", "w")  # noqa: SIM115 (held until the job ends)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                handle.close()
                raise ConfigError(
                    f"{run}: another process is writing here. Wait for it or choose another --out."
                ) from None
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
