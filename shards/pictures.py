"""Pictures: stored as PNG or JPEG, decoded to uint8 squares. S = pixels per side."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np

from cadiff.errors import DataError
from cadiff.shards.arrays import DAMAGED

_JPEG = b"\xff\xd8\xff"  # how every JPEG begins
MAX_PIXELS = 50_000_000  # a larger header is an attack or a mistake
_STORED = ("PNG", "JPEG")
_RAW = (*_STORED, "BMP", "GIF", "TIFF", "WEBP", "PPM")  # formats of pixels: nothing has to be drawn


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) without loss. Fast compression: half the time of the default for 4 % more bytes."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def to_uint8(pixels: np.ndarray, top: float, what: str) -> np.ndarray:
    """Bring pixels of either convention (0..1 or 0..255, told apart by ``top``, the set's largest value) to uint8.

    Raises:
        DataError: values outside both ranges, or not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    scaled = np.asarray(pixels, dtype=np.float32) * (255.0 if top <= 1.0 else 1.0)
    if not np.isfinite(scaled).all() or scaled.min() < 0 or scaled.max() > 255.5:
        raise DataError(f"{what}: pixels from {pixels.min()} to {pixels.max()}; expected 0..1 or 0..255.")
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def read_picture(path: Path, max_side: int) -> tuple[bytes, str]:
    """Check that a picture file decodes and give the bytes to store with "jpg" or "png".

    JPEG and PNG files in RGB up to ``max_side`` pixels are stored as they are; others are converted to RGB, shrunk
    if needed, and stored as JPEG quality 95 without colour subsampling.

    Raises:
        DataError: not decodable, naming the file.
    """
    from PIL import Image

    if not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: no such file.")
    try:
        data = path.read_bytes()
        Image.init()
        picture = _open(data, tuple(name for name in _RAW if name in Image.OPEN))
        picture.load()
        kind = {"JPEG": "jpg", "PNG": "png"}.get(picture.format or "")
        if kind and picture.mode == "RGB" and max(picture.size) <= max_side:
            return data, kind
        picture = picture.convert("RGB")
        if max(picture.size) > max_side:
            picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=95, subsampling=0)
        return stream.getvalue(), "jpg"
    except (*DAMAGED, Image.DecompressionBombError) as problem:
        raise DataError(f"{path}: not a readable picture ({problem}). Remove it or replace it.") from None


def decode_square(data: bytes, out_SS3: np.ndarray, what: str) -> None:
    """Decode, cut the centre square, resize with antialiased bicubic, into uint8 (S, S, 3).

    A JPEG of just this size is decoded straight into ``out_SS3``, by libjpeg-turbo in about two thirds of Pillow's
    time and to the same bytes. One that it finds flawed is left to Pillow, which accepted it when it was packed.

    Raises:
        DataError: the stored bytes do not decode.
    """
    import simplejpeg
    from PIL import Image

    size = len(out_SS3)
    if data[:3] == _JPEG:
        with suppress(ValueError):  # a larger one does not fit the buffer, and is refused before it is decoded
            if simplejpeg.decode_jpeg(data, "RGB", buffer=out_SS3).shape == out_SS3.shape:
                return
    try:
        picture = _open(data, _STORED).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        # Cropped first: resize(box=...) would mix in pixels from outside the square.
        picture = picture.crop((left, top, left + side, top + side))
        if side != size:
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        out_SS3[:] = np.asarray(picture, dtype=np.uint8)
    except (*DAMAGED, Image.DecompressionBombError) as problem:
        raise DataError(f"{what}: the stored picture does not decode ({problem}). Pack again.") from None


def _open(data: bytes, formats: tuple[str, ...]):
    from PIL import Image

    picture = Image.open(io.BytesIO(data), formats=formats)
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS:,}")
    return picture
