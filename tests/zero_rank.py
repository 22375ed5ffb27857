"""One rank of many small jobs in one process, for test_zero_stages.py: each trained by the real loop."""

import logging
from pathlib import Path

from cadiff.config import load_job
from cadiff.distributed import place
from cadiff.train import train


def main(config: str, folder: str, names: list[str]) -> None:
    """Train each of ``names``, such as "zero=2 accumulate=2 recompute=1", in a folder of its own."""
    logging.getLogger("cadiff").setLevel(logging.ERROR)
    here = place()
    for name in names:
        options = dict(part.split("=") for part in name.split())
        overrides = [
            f"engine.zero={options['zero']}",
            f"engine.checkpoint_activations={'true' if options['recompute'] == '1' else 'false'}",
            f"train.micro_batch={8 // here.world // int(options['accumulate'])}",
        ]
        train(load_job(Path(config), overrides), Path(folder) / name.replace(" ", "_"), here)
