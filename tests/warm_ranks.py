"""Ranks that start at once: a process that has imported everything forks them, where no launcher is what is tested.

A rank is a process of its own with its own interpreter state and process group, as one that a launcher starts; it is
only spared the seconds in which PyTorch and DeepSpeed are imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# What a rank imports by and by, from the doors of its libraries.
IMPORTED = ("cadiff.train", "cadiff.launch.worker", "deepspeed")
# And what deepspeed.initialize does; a release without one of these does without.
IMPORTED_LATE = ("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer")
PATIENCE_S = 20  # for the other ranks, once one has failed


class WarmRanks:
    """A process to fork ranks from, until ``close``."""

    def __init__(self) -> None:
        environ = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore::FutureWarning", __file__]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, function: str, arguments: list, log: Path, ranks: int) -> list[int]:
        """Call "module:function" with JSON values in so many ranks, all at once; their exit codes.

        What they print goes to the end of ``log``. They find each other by the usual variables of the environment.
        """
        from cadiff.launch.start import free_port
        from cadiff.launch.worker import PARENT

        environ = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
        environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
        environ["LOCAL_SIZE"] = str(max(ranks, os.cpu_count() or 1))  # one thread each: other tests run beside these
        environ[PARENT] = str(os.getpid())  # ranks end when it does
        asked = {"function": function, "arguments": arguments, "ranks": ranks, "log": str(log)}
        asked |= {"environ": environ, "path": sys.path}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that ranks are forked from ended with {self._process.wait()}"
        return json.loads(answer)

    def train(
        self, config: Path, overrides: list[str], run: Path, *, phase: str, ranks: int, say: Callable[[str], None]
    ) -> None:
        """``cadiff.launch.start.start_training`` with these ranks; ``say`` hears all lines when the job is over."""
        from cadiff.launch import start
        from cadiff.launch.worker import ERROR, MARK

        run.mkdir(parents=True, exist_ok=True)
        log = run / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        words = ["--config", str(config), "--out", str(run), "--phase", phase, *overrides]
        codes = self.run("cadiff.launch.worker:main", [words], log, ranks)
        said = log.read_bytes()[before:].decode().splitlines()
        marked = [line.removeprefix(MARK) for line in said if line.startswith(MARK)]
        errors = [line.removeprefix(f"{ERROR} ") for line in marked if line.startswith(f"{ERROR} ")]
        for line in marked:
            if not line.startswith(f"{ERROR} "):
                say(line)
        if any(codes):
            raise start._failure(next(code for code in codes if code), errors, said[-30:], run)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Fork ranks as each line of standard input asks, one job after the other; answer with a line of exit codes."""
    for name in IMPORTED:
        importlib.import_module(name)
    for name in IMPORTED_LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what a fork collects and takes apart is copied first
    sys.modules["deepspeed"].ops.__compatible_ops__.copy()  # which asks the compiler
    for line in sys.stdin:
        asked = json.loads(line)
        ranks = []
        for rank in range(asked["ranks"]):
            ranks.append(os.fork())
            if ranks[-1] == 0:
                _rank(rank, asked)
        print(json.dumps(_ended(ranks)), flush=True)


def _rank(rank: int, asked: dict) -> None:
    """In the fork: be a rank, and leave as at an interpreter's end, but for taking thousands of modules apart."""
    os.environ.clear()
    os.environ.update(asked["environ"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path[:] = asked["path"]
    module, _, function = asked["function"].partition(":")
    code = None
    try:
        code = getattr(importlib.import_module(module), function)(*asked["arguments"]) or 0
    finally:
        if code is None:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if code is None else code)


def _ended(ranks: list[int]) -> list[int]:
    """Exit codes of all ranks; as under a launcher, a rank that fails takes the others with it."""
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(ranks):
        for pid in ranks:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
        if any(codes.values()) and deadline is None:
            deadline = time.monotonic() + PATIENCE_S
        if deadline is not None and time.monotonic() > deadline:
            for pid in set(ranks) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in ranks]


if __name__ == "__main__":
    serve()
