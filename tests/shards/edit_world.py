"""Tiny sets to cut and merge, and what each of their samples is on disk."""

import numpy as np

from cadiff.shards.dataset import Dataset
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent

PLACES = ("sample", "shard", "offset", "picture_shard", "picture_offset")  # may differ between equal samples


def signals(rows, voxels, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, voxels)).astype(np.float32)


def make(out, *records, kind="table", split_by="run", dtype="float16", more=lambda pack: None):
    """Pack these Records; ``more`` adds what else the set keeps."""

    def fill(pack):
        pack.split_by = split_by
        for part in records:
            pack.add(part)
        more(pack)

    pack_folder(out, kind, {"seed": str(out)}, {}, fill, silent, dtype=dtype)
    return out


def person(name, split="train", run="r1", rows=4, voxels=6, seed=0, **more):
    return make_records(name, run, signals(rows, voxels, seed), split, **more)


def samples(folder):
    """Each sample's names, columns and stored bytes."""
    ds = Dataset(folder)
    found = []
    for sample in range(len(ds)):
        row = ds.describe(sample)
        with open(ds.folder / row["shard"], "rb") as handle:
            handle.seek(row["offset"])
            values = handle.read(row["bytes"])
        scale = float(ds.blocks["scale"][ds.block_of[sample]])
        told = (v for k, v in row.items() if k not in PLACES)
        found.append((*told, values, scale))
    return sorted(found, key=str)
