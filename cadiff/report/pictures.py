"""Pictures inside the page: arrays to data URIs, no file beside the HTML."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from cadiff.report.html import Html, tag

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 128  # pixels per side kept in the page; larger pictures are reduced
HEAVY = 5000  # bytes of PNG above which a picture is stored as JPEG: noise does not compress without loss


def picture(image: np.ndarray, alt: str) -> Html:
    """An ``img`` of one uint8 (3, S, S) picture."""
    height, width = image.shape[1:]
    shown = min(LARGEST, width), min(LARGEST, height)
    return tag("img", src=data_uri(image), alt=alt, width=shown[0], height=shown[1], loading="lazy", decoding="async")


def data_uri(image: np.ndarray) -> str:
    """uint8 (3, H, W) as a base64 data URI."""
    from PIL import Image

    opened = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    opened.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    kind, data = "png", _encoded(opened, format="PNG", optimize=True)
    if len(data) > HEAVY:
        kind, data = "jpeg", _encoded(opened, format="JPEG", quality=90, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(opened: Image.Image, **options: Any) -> bytes:
    held = io.BytesIO()
    opened.save(held, **options)
    return held.getvalue()


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Preview pictures of any usual range (0..255, 0..1 or -1..1, told apart by their extremes) as uint8."""
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float32), nan=0.0, posinf=255.0, neginf=0.0)
    if values.size and values.max() > 2:
        scaled = values
    else:
        scaled = (values + 1) * 127.5 if values.size and values.min() < -0.1 else values * 255
    return scaled.round().clip(0, 255).astype(np.uint8)
