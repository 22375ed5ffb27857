"""The small sound sets that the drill injures, and what a reader is given from one, as facts that can be compared."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cadiff.shards.dataset import Dataset
from cadiff.shards.pictures import encode_png
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Reading, Stream
from cadiff.shards.tars import Tars
from cadiff.shards.voxels import voxel_stats
from cadiff.shards.zarr_store import SCANS, ScanWriter

SIDE, WIDTH, STIMULI = 16, 48, 20
DTYPES = {"half": "float16", "whole": "int16", "scans": "float16"}  # name of a set -> its storage type
FACTS = ("subject", "run", "session", "stimulus", "label", "split", "repeat", "start", "frames")


def pack_set(name: str, seed: int, out: Path) -> Path:
    """Pack the set ``name``; another seed gives another set whose files have the same names and sizes."""
    rng = np.random.default_rng(seed)
    if name == "scans":
        units = [_Person(rng.integers(2**31), f"10000{number}") for number in range(3)]
        pack_folder(out, "hcp", {"seed": 0}, {}, _describe, silent, dtype=DTYPES[name], units=units)
    else:
        pack_folder(out, "god", {"seed": 0}, {}, lambda pack: _fill(pack, rng), silent, dtype=DTYPES[name])
    return out


def _fill(pack, rng):
    """Two people of 40 and 27 voxels, two runs of 20 pictures each; a shard holds one block, or seven pictures."""
    pack.tars = {"fmri": Tars(pack.folder, "fmri", pack.shards, 4000)}
    pack.tars["images"] = Tars(pack.folder, "images", pack.shards, 20_000)
    names = [f"1443537.{number:06d}" for number in range(STIMULI)]
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    classes = [("goldfish", "leopard", "teapot")[number % 3] for number in range(STIMULI)]
    for subject, voxels in (("sub-01", 40), ("sub-02", 27)):
        for run in range(2):
            order = rng.permutation(STIMULI).tolist()
            told = [[column[i] for i in order] for column in (splits, names, classes)]
            signals = rng.normal(size=(STIMULI, voxels)).astype(np.float32)
            place = {"session": f"ses-{run}", "start": list(range(0, 2 * STIMULI, 2)), "frames": 2}
            pack.add(make_records(subject, f"run-{run}", signals, *told, [run] * STIMULI, **place))
        pack.stats(subject, voxel_stats(signals))
        pack.rois(subject, {"V1": np.arange(9), "V2": np.arange(9, 21)})
    for number, name in enumerate(names):
        pixels = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
        pack.picture(name, *((encode_png(pixels), "png") if number % 3 else (_jpeg(pixels), "jpg")))


def _jpeg(pixels):
    """A JPEG of one size for every seed: what follows its end is read by nobody."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(stream, "JPEG", quality=90)
    return stream.getvalue().ljust(1200, b"\0")


def _describe(pack):
    pack.rois("*", {"V1": np.arange(10)})
    pack.space("*", np.arange(100, 130))
    pack.families |= {"100000": "a", "100001": "a"}


class _Person:
    """A part of the set "scans": one person's two runs, as windows and as whole scans."""

    def __init__(self, seed, subject):
        self.seed, self.subject = seed, subject

    def __call__(self, pack):
        rng, scans = np.random.default_rng(self.seed), ScanWriter(pack.folder / SCANS)
        for run in ("REST1", "REST2"):
            frames = rng.normal(size=(24, 30)).astype(np.float32)
            scans.add(self.subject, run, frames, {"tr_s": 0.72}, {"mean": frames.mean(0)})
            split = "val" if self.subject == "100002" else "train"
            told = {"start": list(range(0, 24, 2)), "frames": 2}
            pack.add(make_records(self.subject, run, frames.reshape(12, 2, 30).mean(1), split, **told))
        scans.list_files()


def delivered(ds: Dataset) -> list[tuple]:
    """Each sample as names, signal and picture, in an order of their own: two equal lists are one set of data."""
    for subject in ds.subjects:
        ds.stats(subject)
    ids = np.arange(len(ds))
    signals = ds.signals(ids, max(WIDTH, ds.voxels)) if ds.voxels else [b""] * len(ds)
    pictures = np.flatnonzero(ds.has_picture)
    seen = dict(zip(pictures.tolist(), ds.images(pictures, SIDE)))
    facts = []
    for sample in ids.tolist():
        told = ds.describe(sample)
        picture = seen.get(int(ds.table.stimulus[sample]))
        facts.append((*(str(told[name]) for name in FACTS), _hash(signals[sample]), _hash(picture)))
    return sorted(facts)


def streamed(ds: Dataset) -> Iterator[tuple]:
    """What an epoch of every split gives: subject, label, stimulus, signal and picture of each sample."""
    for split in ("train", "val", "test"):
        batch = min(8, len(ds.ids(split)))
        if batch == 0:
            continue
        stream = Stream(
            [ds], split=split, batch=batch, micro_batch=batch, width=max(WIDTH, ds.voxels) if ds.voxels else 0,
            image_size=SIDE if ds.has_picture.any() else None, reading=Reading(workers=1),
        )  # fmt: skip
        for _, _, given in stream.iterate(0, stream.steps_per_epoch):
            names = [[None, *words] for words in (stream.subjects, stream.classes, ds.stimuli)]
            for row in range(batch):
                numbers = [int(given[key][row]) + 1 for key in ("subject", "label", "stimulus")]
                values = [_hash(given[key][row].numpy()) if key in given else "" for key in ("signal", "image")]
                yield (*(str(words[n]) for words, n in zip(names, numbers)), *values)


def as_streamed(facts: list[tuple]) -> set[tuple]:
    """What ``streamed`` may give of a set that delivers these facts."""
    return {(subject, label, stimulus, *values) for subject, _, _, stimulus, label, _, _, _, _, *values in facts}


def _hash(values) -> str:
    return "" if values is None else hashlib.sha1(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]
