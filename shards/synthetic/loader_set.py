"""A packed set of the paper's shape for measuring loaders: 20 subjects, 1,000 windows each, 4,183 voxels, pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.writer import Pack


def make_loader_set(
    folder: Path, *, subjects: int = 20, rows: int = 1000, voxels: int = 4183, pictures: int = 200, dtype="float16"
) -> Path:
    """Pack noise: values do not matter for speed, sizes do. Pictures are JPEG quality 95, 256 x 256, 4:4:4."""

    def fill(pack: Pack) -> None:
        pack.split_by = "stimulus"
        names = [f"p{i:04d}" for i in range(pictures)]
        for s in range(subjects):
            signals_NV = np.random.default_rng([1, s]).standard_normal((rows, voxels), dtype=np.float32)
            shown = [names[(i + s) % pictures] for i in range(rows)] if pictures else None
            pack.add(make_records(f"s{s:02d}", "r", signals_NV, "train", shown, None, None))
        for i, name in enumerate(names):
            pack.picture(name, _smooth_jpeg(i), "jpg")

    pack_folder(folder, "table", {"synthetic": "loader"}, {}, fill, silent, dtype=dtype)
    return folder


def _smooth_jpeg(number: int) -> bytes:
    """A picture with the detail of a photo: noise at several scales, about 40 kB."""
    from PIL import Image

    draw = np.random.default_rng([2, number])
    pixels = np.zeros((256, 256, 3), dtype=np.float32)
    for side, weight in ((8, 60), (32, 30), (128, 14), (256, 5)):
        layer = Image.fromarray((draw.random((side, side, 3)) * 255).astype(np.uint8)).resize((256, 256), 3)
        pixels += (np.asarray(layer, dtype=np.float32) - 127.5) * (weight / 127.5)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels + 127.5, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
