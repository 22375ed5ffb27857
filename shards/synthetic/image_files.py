"""A plain folder of further pictures, one sub-folder per class: what the image prior learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cadiff.files import whole_file
from cadiff.shards.synthetic.gallery import Gallery

BLOCK = 256  # pictures held in memory at once


def write_images(root: Path, count: int, gallery: Gallery, tick: Callable[[], None]) -> list[Path]:
    """Write ``root/images/<class>/<number>.jpg``, JPEG quality 95 without colour subsampling. Returns the paths.

    None of them is a GOD or BOLD5000 stimulus; of photos, only those not held out are used.
    """
    paths = []
    for start in range(0, count, BLOCK):
        stimuli = gallery.training("images", min(BLOCK, count - start), start)
        for number, (picture, label) in enumerate(zip(stimuli.images, stimuli.labels), start):
            paths.append(root / "images" / gallery.classes[label].replace("/", "-") / f"{number:06d}.jpg")
            with whole_file(paths[-1]) as beside:
                Image.fromarray(picture).save(beside, format="JPEG", quality=95, subsampling=0)
            tick()
    return paths
