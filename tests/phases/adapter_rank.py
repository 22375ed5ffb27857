"""One rank of a few small jobs in one process, for test_adapted_chain.py: each trained by the real loop."""

import logging
import os
import sys
from pathlib import Path

from cadiff.config import load_job
from cadiff.distributed import Place
from cadiff.train import train


def main(folder: Path, rank: int, world: int, port: int, stems: list[str]) -> None:
    """Train ``folder/STEM.toml`` into ``folder/STEM-WORLD`` for each of ``stems``."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    logging.getLogger("cadiff").setLevel(logging.ERROR)
    for stem in stems:
        train(load_job(folder / f"{stem}.toml", []), folder / f"{stem}-{world}", Place(rank, rank, world))


if __name__ == "__main__":
    folder, rank, world, port, *stems = sys.argv[1:]
    main(Path(folder), int(rank), int(world), int(port), stems)
