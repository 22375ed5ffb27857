"""Frozen image features of a folder that ``cadiff pack features`` wrote, by picture; and what streams add of them.

``features.json`` names everything; ``features-00000.bin`` … hold one record per picture, in the order of ``digests``:
its ``whole`` tokens, then those of its fixed masks, as little-endian float32 or float16 without any header.

Legend: B records, K fixed masks of a picture, W tokens of a whole picture, N tokens of a masked one, I width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cadiff.errors import ConfigError, DataError
from cadiff.files import read_json, sha256
from cadiff.shards.dataset import Dataset
from cadiff.shards.manifest import Count, PackedFile, Sha256, manifest_checksum
from cadiff.shards.mixture import Chosen
from cadiff.shards.sampler import keyed_words

FORMAT = "cadiff-features/1"
MANIFEST = "features.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
Digest = Annotated[int, Field(ge=0, lt=2**63)]
_AGAIN = "Copy the folder again, or remove it and run `cadiff pack features` again."


class FeatureManifest(BaseModel):
    """What a folder of features holds, and what they were computed from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["cadiff-features/1"]
    encoder: Sha256  # of the frozen encoder's weights
    image_size: Annotated[int, Field(ge=1)]  # pixels per side of what the encoder saw
    precision: Literal["fp32"]  # of the computation
    dtype: Literal["float32", "float16"]  # of the stored values
    whole: Annotated[int, Field(ge=1)]  # tokens of a whole picture, the class token among them
    visible: Count  # tokens of a masked one; 0 where there are no masks
    width: Annotated[int, Field(ge=1)]
    masks: Count  # fixed masks of each picture
    mask_ratio: float  # 0 where there are none, as is ``seed``
    seed: int
    rows: Annotated[int, Field(ge=1)]  # pictures per shard
    digests: Annotated[list[Digest], Field(min_length=1)]  # of the pictures' stored bytes, ascending
    made_by: dict[str, str]
    files: list[PackedFile]
    checksum: Sha256  # of all the rest

    @property
    def record_values(self) -> int:
        """Numbers stored per picture."""
        return (self.whole + self.masks * self.visible) * self.width

    @property
    def record_bytes(self) -> int:
        return self.record_values * DTYPES[self.dtype].itemsize


class Features:
    """A folder of features, opened: its manifest and the sizes of its shards are checked, the shards on first use."""

    def __init__(self, folder: str | Path) -> None:
        """Raises: DataError: not a finished folder of features, damaged, or of another version."""
        self.folder = Path(folder)
        self.manifest = manifest = _read_manifest(self.folder)
        self.dtype = DTYPES[manifest.dtype]
        self._digests = np.array(manifest.digests, dtype=np.int64)
        for number, entry in enumerate(manifest.files):
            rows = min(manifest.rows, len(self._digests) - number * manifest.rows)
            path = self.folder / entry.path
            found = path.stat().st_size if path.is_file() else None
            if not found == entry.bytes == rows * manifest.record_bytes:
                raise DataError(f"{path}: {found} bytes, expected {rows * manifest.record_bytes:,}. {_AGAIN}")
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    @property
    def rounding(self) -> str | None:
        """What keeps these features from being what the encoder computes: None, or the type they were rounded to."""
        return None if self.dtype == torch.float32 else self.manifest.dtype

    def rows_of(self, digest_N: np.ndarray) -> np.ndarray:
        """Where pictures of these content keys lie: int64 (N,), -1 for one that is not here."""
        place_N = np.searchsorted(self._digests, digest_N).clip(max=len(self._digests) - 1)
        return np.where(self._digests[place_N] == digest_N, place_N, -1)

    def read_whole(self, row_B: np.ndarray, out_BWI: Tensor) -> None:
        """Fill a contiguous tensor of this dtype with the tokens of whole pictures.

        Raises:
            DataError: a shard is damaged, gone or cannot be read.
        """
        self._read(row_B, np.zeros(len(row_B), dtype=np.int64), out_BWI)

    def read_visible(self, row_B: np.ndarray, mask_B: np.ndarray, out_BNI: Tensor) -> None:
        """The same with the tokens of what a picture's mask of this number leaves."""
        about = self.manifest
        self._read(row_B, (about.whole + mask_B * about.visible) * about.width * self.dtype.itemsize, out_BNI)

    def _read(self, row_B: np.ndarray, skip_B: np.ndarray, out: Tensor) -> None:
        shard_B, within_B = np.divmod(row_B, self.manifest.rows)
        offset_B = within_B * self.manifest.record_bytes + skip_B
        # pread, and not mapped memory: a file that was cut short, or a failing disk, is then an error and no crash.
        for place, (shard, offset) in enumerate(zip(shard_B.tolist(), offset_B.tolist())):
            row = out[place].view(torch.uint8).numpy()
            if os.preadv(self._file(shard), [row.reshape(-1)], offset) != row.nbytes:
                raise DataError(f"{self.folder / self.manifest.files[shard].path}: ends early. {_AGAIN}")

    def _file(self, shard: int) -> int:
        """The descriptor of a shard whose bytes are as they were written; each is hashed once in a process."""
        if shard not in self._open:
            with self._lock:
                if shard not in self._open:
                    entry = self.manifest.files[shard]
                    path = self.folder / entry.path
                    if not path.is_file() or sha256(path) != entry.sha256:
                        raise DataError(f"{path}: missing, or its sha256 is not the manifest's. {_AGAIN}")
                    self._open[shard] = os.open(path, os.O_RDONLY)
        return self._open[shard]


class PictureExtras:
    """What a stream gives beside pictures: which of its fixed masks a sample's picture has, and frozen features.

    A sample goes through its picture's K masks in turn, one an epoch, from a beginning of its own.

    Attributes:
        keys: ``picture`` (content key) and ``image_mask`` (0..K-1), int64 (B,), where pictures have fixed masks;
            ``image_whole`` (B, W, I) where there are features, and with both ``image_visible`` (B, N, I).
    """

    def __init__(
        self, datasets: Sequence[Dataset], chosen: Chosen, seed: int, masks: int, features: Features | None
    ) -> None:
        """Raises: ConfigError: a picture of a chosen sample has no features."""
        self._masks, self._features = masks, features
        self._digest = np.concatenate([ds.pictures.digest for ds in datasets])
        self._first = keyed_words(sum(map(len, datasets)), seed, "image masks") if masks else None
        self.keys = ["picture", "image_mask"] if masks else []
        if features is not None:
            self._row = features.rows_of(self._digest)
            self.keys += ["image_whole", *(["image_visible"] if masks else [])]
            _refuse_missing(self._row, datasets, chosen, features)

    def buffers(self, records: int, pin: bool) -> dict[str, Tensor]:
        """Memory for the keys of one batch."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = dict.fromkeys(self.keys, ((records,), torch.int64))
        if self._features is not None:
            about = self._features.manifest
            for key, tokens in (("image_whole", about.whole), ("image_visible", about.visible)):
                shapes[key] = (records, tokens, about.width), self._features.dtype
        return {key: torch.empty(shapes[key][0], dtype=shapes[key][1], pin_memory=pin) for key in self.keys}

    def fill(self, buffers: dict[str, Tensor]) -> None:
        """Fill them, for the samples that a batch's ``stimulus``, ``sample_id`` and ``epoch`` name."""
        if not self.keys:
            return
        stimulus_B = buffers["stimulus"].numpy()
        if self._masks:
            buffers["picture"].numpy()[:] = self._digest[stimulus_B]
            first_B = (self._first[buffers["sample_id"].numpy()] % np.uint64(self._masks)).astype(np.int64)
            buffers["image_mask"].numpy()[:] = (first_B + buffers["epoch"].numpy()) % self._masks
        if self._features is not None:
            row_B = self._row[stimulus_B]
            self._features.read_whole(row_B, buffers["image_whole"])
            if self._masks:
                self._features.read_visible(row_B, buffers["image_mask"].numpy(), buffers["image_visible"])


def _refuse_missing(row_S: np.ndarray, datasets: Sequence[Dataset], chosen: Chosen, features: Features) -> None:
    """Raise ConfigError unless every chosen sample's picture has features; ``row_S`` covers all sets' stimuli."""
    first = 0
    for k, ds in enumerate(datasets):
        wanted = np.unique(ds.table.stimulus[chosen.ids[chosen.which == k]])
        lacking = wanted[row_S[first + wanted] < 0]
        if len(lacking):
            folders = " ".join(str(each.folder) for each in datasets)
            raise ConfigError(
                f"data.features: {features.folder} holds {len(row_S[row_S >= 0]):,} of these sets' pictures, but not "
                f"that of stimulus {ds.stimuli[lacking[0]]} of {ds.folder} ({len(lacking):,} of {len(wanted):,} are "
                f"lacking there). Pack them into a new folder: `cadiff pack features {folders} OUT --vit INIT.IMAGE` "
                "with the options of the job, or set data.features=''."
            )
        first += len(ds.stimuli)


def _read_manifest(folder: Path) -> FeatureManifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: no {MANIFEST}, so these are no finished features. Run `cadiff pack features`.")
    tree = read_json(path)
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: format {str(found)[:60]!r}, expected {FORMAT!r}. {_AGAIN}")
    try:
        manifest = FeatureManifest.model_validate(tree)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}. {_AGAIN}") from None
    pieces = -(-len(manifest.digests) // manifest.rows)
    ascending = all(one < two for one, two in zip(manifest.digests, manifest.digests[1:]))
    if manifest.checksum != manifest_checksum(tree) or len(manifest.files) != pieces or not ascending:
        raise DataError(f"{path}: its content is not what was written there. {_AGAIN}")
    return manifest
