"""Whether a job's signals are kept in memory: asked for, or by themselves where they are small."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch

from cadiff.errors import ConfigError
from cadiff.files import memory_bytes
from cadiff.shards.dataset import Dataset

log = logging.getLogger(__name__)

AUTO_BYTES = 4 * 1024**3  # "auto" reads at most so much at a start: a few seconds
AUTO_SHARE = 0.25  # and takes at most this part of what a process may use
MOST_SHARE = 0.8


def hold_signals(
    datasets: list[Dataset], where: str, width: int, whole: bool, device: torch.device, processes: int
) -> None:
    """Keep all signals, padded, in RAM or GPU memory, if they fit; which it came to is logged.

    Args:
        where: "ram", "gpu", "none", or "auto": in RAM if they are small beside it and lie on this machine's disks.
        whole: damaged blocks are an error, except for "auto"; else they are dealt with when their samples are due.
        processes: how many of this machine do the same; whether they fit is one answer for all of them.

    Raises:
        ConfigError: there is no GPU, or not enough memory; nothing was copied.
    """
    if where == "gpu" and device.type != "cuda":
        raise ConfigError("data.cache = 'gpu', but this job runs on the CPU. Use data.cache=ram or none.")
    place = device if where == "gpu" else torch.device("cpu")
    needed = sum(ds.store.held_bytes(width) for ds in datasets)
    room = torch.cuda.mem_get_info(device)[0] if where == "gpu" else memory_bytes() // processes
    small = needed <= min(AUTO_BYTES, room * AUTO_SHARE) and not any(ds.home.is_remote for ds in datasets)
    if where == "none" or (where == "auto" and not small):
        log.info("signals: %s GB, read from the files through the system's page cache", f"{needed / 1e9:.1f}")
        return
    if needed > room * MOST_SHARE:
        raise ConfigError(
            f"data.cache = '{where}': the signals are {needed / 1e9:.1f} GB, and each process may take "
            f"{MOST_SHARE:.0%} of {room / 1e9:.1f} GB. Use data.cache=none; what is read again comes from the "
            "system's page cache."
        )
    began = time.monotonic()
    for ds in datasets:
        ds.store.hold(place, width, whole=whole and where != "auto")
    for ds in datasets:
        if damaged := len(ds.checks.damaged(np.arange(len(ds.checks.lengths)))):
            log.warning(
                "%s: %d of %d blocks are damaged, and matter once a sample of theirs is due: `cadiff shards verify`",
                ds.folder, damaged, len(ds.checks.lengths),
            )  # fmt: skip
    told = "RAM" if place.type == "cpu" else "GPU memory"
    log.info("signals: kept in %s, %s GB in %.1f s", told, f"{needed / 1e9:.1f}", time.monotonic() - began)
