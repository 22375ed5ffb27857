"""One rank of many small jobs in one process, for test_zero_stages.py: each trained by the real loop."""

import logging
import os
import sys
from pathlib import Path

from cadiff.config import load_job
from cadiff.distributed import Place
from cadiff.train import train


def main(config: str, folder: str, rank: int, world: int, port: int, names: list[str]) -> None:
    """Train each of ``names``, such as "zero=2 accumulate=2 recompute=1", in a folder of its own."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    logging.getLogger("cadiff").setLevel(logging.ERROR)
    for name in names:
        options = dict(part.split("=") for part in name.split())
        overrides = [
            f"engine.zero={options['zero']}",
            f"engine.checkpoint_activations={'true' if options['recompute'] == '1' else 'false'}",
            f"train.micro_batch={8 // world // int(options['accumulate'])}",
        ]
        train(load_job(Path(config), overrides), Path(folder) / name.replace(" ", "_"), Place(rank, rank, world))


if __name__ == "__main__":
    config, folder, rank, world, port, *names = sys.argv[1:]
    main(config, folder, int(rank), int(world), int(port), names)
