"""The webdataset package as its users use it, on our tars and on tars of one frame a sample: for comparison only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_blocks(tars: list[Path]) -> Iterator[int]:
    """Decode whole blocks of our tars for ever, as float32; yields how many rows each had."""
    import webdataset

    urls = [str(path) for path in tars]
    while True:
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
            yield len(np.asarray(sample["npy"], dtype=np.float32))


def write_frames(path: Path, signals_NV: np.ndarray) -> None:
    """One sample a frame, as .npy: what a set looks like that was not blocked."""
    import webdataset

    with webdataset.TarWriter(str(path)) as tar:
        for i, row_V in enumerate(signals_NV):
            tar.write({"__key__": f"{i:07d}", "npy": row_V})


def read_frames(path: Path, batch: int) -> Iterator[int]:
    """Shuffle, decode and batch such a tar for ever; yields the rows of each batch."""
    import webdataset

    while True:
        frames = webdataset.WebDataset(str(path), shardshuffle=False).shuffle(1000).decode().to_tuple("npy")
        for (table,) in frames.batched(batch):
            yield len(table)
