"""Start a job on this machine through the real ``deepspeed`` launcher, and pass on what its first rank says."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cadiff.config import Job
from cadiff.errors import CadiffError, ConfigError, DataError, NonFiniteError, Preempted
from cadiff.launch.worker import ERROR, MARK, PARENT

log = logging.getLogger(__name__)
_ERRORS = {kind.exit_code: kind for kind in (ConfigError, DataError, NonFiniteError, Preempted)}
_ERROR = f"{MARK}{ERROR} "
_ENDING = 30  # lines of the log shown when a job dies of something that is not a CadiffError


class TrainingFailed(CadiffError):
    """A rank died of something unforeseen; its last lines are in the message and its log in the run folder."""

    exit_code = 1


def local_ranks(jobs: Iterable[Job], asked: int = 0) -> int:
    """How many ranks to start here: as asked, else one per GPU; without GPUs two, which share the cores.

    A batch must divide evenly between ranks, so the default may leave GPUs idle; that is said aloud.

    Raises:
        ConfigError: more ranks were asked for than there are GPUs or than divide a batch, or GPUs cannot be used.
    """
    gpus = visible_gpus()
    if asked and gpus and asked > gpus:
        raise ConfigError(f"--ranks {asked}: there are {gpus} GPUs here, and one rank needs one. Ask for fewer.")
    units = [(job.name, job.train.batch, job.train.micro_batch or 1) for job in jobs]
    for name, batch, micro in units if asked else ():
        if batch % (asked * micro):
            raise ConfigError(f"--ranks {asked} x micro-batch {micro} does not divide the batch of {batch} of {name}.")
    if asked:
        return asked
    most = gpus or min(2, len(os.sched_getaffinity(0)))
    even = [count for count in range(1, most + 1) if all(batch % (count * micro) == 0 for _, batch, micro in units)]
    ranks = max(even, default=1)
    if ranks < most:
        what = "GPUs" if gpus else "processes"
        log.warning("%d of %d %s are used: the batch does not divide evenly between more", ranks, most, what)
    return ranks


def visible_gpus() -> int:
    """GPUs this process may use.

    Raises:
        ConfigError: there are some, but this PyTorch cannot use them.
    """
    import torch

    count = torch.cuda.device_count()
    if count and not torch.cuda.is_available():
        raise ConfigError(
            f"{count} NVIDIA GPUs are here, but PyTorch {torch.__version__} cannot use them: the driver is probably "
            f"older than CUDA {torch.version.cuda} needs. Update it, install another torch, or train on the CPU with "
            "CUDA_VISIBLE_DEVICES= in the environment."
        )
    return count


def start_training(
    config: Path, overrides: list[str], run: Path, *, phase: str, ranks: int, say: Callable[[str], None]
) -> None:
    """Train one job with ``ranks`` processes and wait for it.

    Args:
        config, overrides, phase: as for ``cadiff.config.load_job``.
        run: run folder; everything the launcher and the ranks print goes to ``run/log.txt``.
        say: called with each line meant for a person.

    Raises:
        CadiffError: of the kind and with the message that the ranks ended with.
    """
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", os.devnull, *devices(ranks)]
    command += ["--master_port", str(free_port()), "--module", "cadiff.launch.worker"]
    command += ["--config", str(config), "--out", str(run), "--phase", phase, *overrides]
    said: list[str] = []
    errors: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with (
        open(run / "log.txt", "a", encoding="utf-8") as log,
        subprocess.Popen(
            command, env=_environment(ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        try:
            signal.signal(signal.SIGTERM, lambda *_: _ask_to_stop(process.pid))
            for line in process.stdout:
                log.write(line)
                said.append(line.rstrip("\n"))
                del said[:-_ENDING]
                if line.startswith(_ERROR):
                    errors.append(line.removeprefix(_ERROR).rstrip("\n"))
                elif line.startswith(MARK):
                    say(line.removeprefix(MARK).rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if process.returncode:
        raise _failure(process.returncode, errors, said, run)


def devices(ranks: int, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The launcher's options for so many ranks; it would ignore CUDA_VISIBLE_DEVICES beside a mere number.

    Raises:
        ConfigError: that variable does not name GPUs by number, which is all the launcher understands.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible:
        return ["--num_gpus", str(ranks)]
    chosen = [name.strip() for name in visible.split(",")][:ranks]
    if not all(name.isdigit() for name in chosen):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible}: DeepSpeed's launcher takes numbers only. Name the GPUs as 0,1,...; "
            "nvidia-smi -L lists them."
        )
    return ["--include", f"localhost:{','.join(chosen)}"]


def _ask_to_stop(launcher: int) -> None:
    """Pass SIGTERM to the ranks themselves: the launcher would kill them before they have saved."""
    import psutil

    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "cadiff.launch.worker" in process.cmdline() and "deepspeed.launcher.launch" not in process.cmdline():
                process.send_signal(signal.SIGTERM)


def _failure(code: int, errors: list[str], said: list[str], run: Path) -> CadiffError:
    """The error that a rank explained, whichever rank it was and however the launcher ended; else the log's end."""
    for text in errors:
        kind, _, message = text.partition(": ")
        if kind.isdigit() and int(kind) in _ERRORS:
            return _ERRORS[int(kind)](message)
    ending = "\n".join(said)
    return TrainingFailed(f"A rank ended with code {code}; the whole log is {run / 'log.txt'}. It ended with\n{ending}")


def _environment(ranks: int) -> dict[str, str]:
    import torch

    environ = dict(os.environ)
    environ[PARENT] = str(os.getpid())
    environ["PYTHONUNBUFFERED"] = "1"
    environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    if not torch.cuda.is_available():
        environ.setdefault("DS_ACCELERATOR", "cpu")
    return environ


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
