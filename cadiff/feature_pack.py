"""What a frozen image encoder makes of pictures, computed once and kept: ``cadiff pack features``.

Legend: B pictures, S pixels per side, W tokens of a whole picture, N tokens of a masked one, I width, R values stored
per picture.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from cadiff import __version__
from cadiff.config import ImageModel
from cadiff.devices import device_of
from cadiff.distributed import Place
from cadiff.errors import ConfigError, DataError
from cadiff.feature_cache import encoder_hash
from cadiff.files import read_json
from cadiff.kernels.mask import kept_patches
from cadiff.masking import picture_mask
from cadiff.models.image_mae import ImageMae, check_contrast, normalise_image
from cadiff.models.vit_weights import load_vit
from cadiff.shards.dataset import Dataset
from cadiff.shards.feature_writer import FeatureWriter, packed_before
from cadiff.shards.features import DTYPES, FORMAT
from cadiff.shards.parallel import cores
from cadiff.shards.record import Progress, silent

log = logging.getLogger(__name__)

BATCH = 32  # pictures per forward; part of what decides the last bits of the features
SHARD_BYTES = 64 * 1024**2
# Our names of a model's sizes, and those of Hugging Face's config.json.
_SIZES = {
    "patch": "patch_size", "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads",
    "mlp_width": "intermediate_size", "decoder_width": "decoder_hidden_size",
    "decoder_heads": "decoder_num_attention_heads", "decoder_mlp_width": "decoder_intermediate_size",
}  # fmt: skip


@dataclass(frozen=True)
class FixedMasks:
    """Whose visible patches are kept: ``count`` masks of each picture, hiding ``ratio`` of it, keyed by ``seed``."""

    count: int = 0
    ratio: float = 0.0
    seed: int = 0


def pack_features(
    shards: Sequence[str | Path],
    out: str | Path,
    vit: str | Path,
    *,
    image_size: int = 224,
    masks: FixedMasks = FixedMasks(),
    dtype: str = "float32",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the encoder of the ViT-MAE in ``vit`` over the training and validation pictures of packed sets, never test's.

    The encoder computes in float32, on the GPU where there is one.

    Args:
        out: folder to make; it appears whole or not at all.
        vit: local folder in Hugging Face's layout (config.json, model.safetensors).
        masks: also keep what the layers before the cross layers make of the patches that these masks leave.
        dtype: float32 gives a job the losses it has without; float16 rounds each value by up to 0.05 %.

    Returns:
        ``{"folder", "already", "pictures", "bytes", "whole", "visible", "seconds"}``.

    Raises:
        ConfigError: ``out`` holds something else, the disk lacks room, or the sizes do not fit.
        DataError: pictures or weights that cannot be used.
    """
    started, out, vit = time.monotonic(), Path(out), Path(vit)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}': one of {', '.join(DTYPES)}.")
    masks = masks if masks.count else FixedMasks()
    datasets = [Dataset(folder, splits=("train", "val")) for folder in shards]
    digests, places = _distinct(datasets)
    device = device_of(Place())
    encoder = _load(vit, image_size).to(device)
    recipe = _recipe(encoder, digests, image_size, masks, dtype)
    recipe["made_by"] = {"cadiff": __version__, "torch": torch.__version__, "device": device.type}
    values = (recipe["whole"] + masks.count * recipe["visible"]) * recipe["width"]
    record_bytes = values * DTYPES[dtype].itemsize
    recipe["rows"] = max(1, SHARD_BYTES // record_bytes)
    already = packed_before(out, recipe)
    if not already:
        told = f"{len(digests):,} pictures, {record_bytes * len(digests) / 1e9:.2f} GB"
        with FeatureWriter(out, recipe, record_bytes) as writer:
            log.info("%s: %s (%s), %d of %d shards to do", out, told, dtype, len(writer.missing), writer.shards)
            _compute(writer, encoder, _Pictures(datasets, digests, places, image_size, progress), recipe, masks)
            writer.finish()
    sizes = {"bytes": record_bytes * len(digests), "whole": [recipe["whole"], recipe["width"]]}
    sizes["visible"] = [masks.count, recipe["visible"], recipe["width"]] if masks.count else []
    told = {"folder": str(out), "already": already, "pictures": len(digests), **sizes}
    return {**told, "seconds": round(time.monotonic() - started, 3)}


def _recipe(encoder: ImageMae, digests: list[int], size: int, masks: FixedMasks, dtype: str) -> dict[str, Any]:
    visible = 1 + kept_patches(encoder.length, masks.ratio) if masks.count else 0
    return {
        "format": FORMAT,
        "encoder": encoder_hash(encoder.vit),
        "image_size": size,
        "precision": "fp32",
        "dtype": dtype,
        "whole": 1 + encoder.length,
        "visible": visible,
        "width": encoder.vit.layernorm.normalized_shape[0],
        "masks": masks.count,
        "mask_ratio": float(masks.ratio),
        "seed": masks.seed,
        "digests": digests,
    }


def _load(folder: Path, image_size: int) -> ImageMae:
    found = read_json(folder / "config.json")
    found = found if isinstance(found, dict) else {}
    sizes = {ours: found[theirs] for ours, theirs in _SIZES.items() if theirs in found}
    try:
        image = ImageModel(**sizes, decoder_depth=1)  # of which nothing is used here
    except ValidationError as problem:
        error = problem.errors()[0]
        raise DataError(
            f"{folder}/config.json: {error['loc'][0]} = {error['input']!r}: {error['msg']}. Save the model again."
        ) from None
    model = ImageMae(image, image_size)
    load_vit(model, folder, image, image_size)
    return model.eval()


def _distinct(datasets: Sequence[Dataset]) -> tuple[list[int], list[tuple[int, int]]]:
    """Content keys of all training and validation pictures, ascending, and set and stimulus of one with each."""
    found: dict[int, tuple[int, int]] = {}
    for k, ds in enumerate(datasets):
        stimuli = np.unique(np.concatenate([ds.table.stimulus[ds.ids(split)] for split in ("train", "val")]))
        stimuli = stimuli[stimuli >= 0]
        for stimulus in stimuli[ds.has_picture[stimuli]].tolist():
            found.setdefault(int(ds.pictures.digest[stimulus]), (k, stimulus))
    if not found:
        folders = ", ".join(str(ds.folder) for ds in datasets)
        raise ConfigError(f"{folders}: no training or validation sample has a picture. Name sets packed with pictures.")
    digests = sorted(found)
    return digests, [found[digest] for digest in digests]


@dataclass
class _Pictures:
    """Decodes pictures in threads ahead of the encoder."""

    datasets: Sequence[Dataset]
    digests: list[int]
    places: list[tuple[int, int]]
    size: int
    progress: Progress

    def batches(self, first: int, stop: int, pool: ThreadPoolExecutor) -> Iterator[tuple[list[int], Tensor]]:
        """Content keys and uint8 (B, 3, S, S) of pictures first..stop-1."""
        waiting: deque[tuple[int, Future[Tensor]]] = deque()
        for start in range(first, stop, BATCH):
            waiting.append((start, pool.submit(self._decode, start, min(start + BATCH, stop))))
            if len(waiting) > cores():
                start, coming = waiting.popleft()
                yield self.digests[start : start + BATCH][: len(coming.result())], coming.result()
        for start, coming in waiting:
            yield self.digests[start : start + BATCH][: len(coming.result())], coming.result()

    def _decode(self, start: int, stop: int) -> Tensor:
        images = [self.datasets[k].images(np.array([stimulus]), self.size) for k, stimulus in self.places[start:stop]]
        return torch.from_numpy(np.concatenate(images))


def _compute(
    writer: FeatureWriter, encoder: ImageMae, pictures: _Pictures, recipe: dict[str, Any], masks: FixedMasks
) -> None:
    """Fill the missing shards."""
    rows, done, dtype = recipe["rows"], 0, DTYPES[recipe["dtype"]]
    device = next(encoder.parameters()).device
    total = sum(writer.records(number) for number in writer.missing)
    for ds in pictures.datasets:
        ds.pictures.cache_bytes = 0  # each is needed once

    def blocks(number: int) -> Iterator[np.ndarray]:
        nonlocal done
        for digests, image_BCSS in pictures.batches(number * rows, number * rows + writer.records(number), pool):
            if done == 0:
                check_contrast(image_BCSS, "The pictures")
            values_BR = _values(encoder, image_BCSS.to(device), torch.tensor(digests, device=device), masks).to(dtype)
            if not values_BR.isfinite().all():
                raise DataError(f"Features beyond {recipe['dtype']}: use --dtype float32, or check the weights.")
            yield values_BR.cpu().numpy()
            done += len(digests)
            pictures.progress("pictures", done, total)

    with ThreadPoolExecutor(cores(), thread_name_prefix="decode") as pool:
        for number in writer.missing:
            writer.write(number, blocks(number))


@torch.no_grad()
def _values(encoder: ImageMae, image_BCSS: Tensor, picture_B: Tensor, masks: FixedMasks) -> Tensor:
    """Everything stored of some pictures, a row each: float32 (B, R)."""
    vit, pixels_BCSS = encoder.vit, normalise_image(image_BCSS)
    found = [vit(pixels_BCSS).flatten(1)]
    for number in range(masks.count):
        number_B = torch.full_like(picture_B, number)
        masking = picture_mask(masks.seed, picture_B, number_B, encoder.length, masks.ratio)
        found.append(vit.encoder(vit.embeddings(pixels_BCSS, masking)).flatten(1))
    return torch.cat(found, dim=1)
