"""Who am I among the processes: rank, local rank and world size, from any launcher's variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cadiff.errors import ConfigError

# DeepSpeed and torchrun, then SLURM, then Open MPI: the first family found complete wins.
_DIALECTS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Place:
    """One process's place in the job: ``rank`` of ``world`` overall, ``local_rank`` on its machine."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """Read the launcher's variables; a process started by hand is rank 0 of 1.

    Raises:
        ConfigError: the variables are not numbers, or the rank lies outside the world.
    """
    for names in _DIALECTS:
        if all(name in environ for name in names):
            text = {name: environ[name] for name in names}
            try:
                rank, local_rank, world = (int(text[name]) for name in names)
            except ValueError:
                raise ConfigError(f"The launcher's variables are not whole numbers: {text}.") from None
            if not 0 <= rank < world:
                raise ConfigError(f"The launcher says rank {rank} of {world}: a rank lies in 0..world-1.")
            return Place(rank, local_rank, world)
    return Place()


def processes_here(here: Place, environ: Mapping[str, str] = os.environ) -> int:
    """Processes of this job on this machine: as DeepSpeed or torchrun says, else the whole world."""
    text = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or ""
    return int(text) if text.isdigit() and int(text) > 0 else here.world


def under_launcher(environ: Mapping[str, str] = os.environ) -> bool:
    """True if a launcher started this process as one rank of a job."""
    return any(all(name in environ for name in names) for names in _DIALECTS[:1])


def alive(process: int) -> bool:
    """False once a process is gone, also while nobody has collected it yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
