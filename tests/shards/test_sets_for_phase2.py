"""Every kind of set with pictures trains phase 2: its own pairs come out of the stream, and the loss goes down."""

import numpy as np
import pytest
import torch
from bold5000_world import build as build_bold5000
from tiny_pairs import FMRI, IMAGE

from cadiff.config import Phase2Job
from cadiff.errors import ConfigError
from cadiff.phases import Space, build_phase
from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.dataset import Dataset
from cadiff.shards.god import pack_god
from cadiff.shards.stream import Stream
from cadiff.shards.voxels import padded_width

PATCH, SIDE, BATCH = 4, 16, 4


@pytest.fixture(scope="module")
def sets(god_files, nsd_set, things_set, tiny_set, tmp_path_factory):
    out, raw = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("raw")
    pack_god(god_files.parent, out / "god", val_fraction=0.2)
    build_bold5000(raw / "BOLD5000")
    pack_bold5000(raw, out / "bold5000", val_fraction=0.2)
    packed = {"god": Dataset(out / "god"), "bold5000": Dataset(out / "bold5000"), "table": Dataset(tiny_set)}
    return {**packed, "nsd": nsd_set, "things": things_set}


def stream_of(datasets, **more):
    width = padded_width(max(ds.voxels for ds in datasets), PATCH)
    more = {"width": width, "image_size": SIDE, "seed": 1, **more}
    return Stream(datasets, split="train", batch=BATCH, micro_batch=BATCH, **more)


def job_of(folder):
    return Phase2Job.model_validate(
        {
            "name": "pairs", "phase": "phase2", "data": {"shards": [str(folder)], "image_size": SIDE},
            "model": FMRI, "image": {**IMAGE, "train_encoder": True}, "cross": {"layers": 1},
            "train": {"steps": 8, "batch": BATCH},
        }
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["god", "bold5000", "things", "nsd", "table"])
def test_a_set_is_read_as_the_pairs_it_holds_and_trains(sets, kind):
    ds = sets[kind]
    stream = stream_of([ds])
    batch = {name: value.clone() for name, value in stream.micro(0, 0).items()}
    ids = batch["sample_id"].numpy()
    assert set(ds.table.split[ids].tolist()) == {0}
    np.testing.assert_array_equal(batch["image"].numpy(), ds.images(ds.table.stimulus[ids], SIDE))
    np.testing.assert_array_equal(batch["signal"].numpy(), ds.signals(ids, stream.width))
    torch.manual_seed(0)
    phase = build_phase(job_of(ds.folder), Space(stream.width, len(stream.classes)))
    optimizer = torch.optim.Adam(phase.parameters(), lr=3e-3)
    seen = []
    for _ in range(8):
        loss = sum(phase(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert np.isfinite(seen).all() and seen[-1] < seen[0]


def test_sets_of_different_widths_and_subjects_make_one_batch(sets):
    stream = stream_of([sets["god"], sets["things"]])
    assert {"sbj_1", "sbj_2"} < set(stream.subjects) and stream.width == padded_width(sets["things"].voxels, PATCH)
    seen = {stream.subjects[i] for step in range(6) for i in stream.micro(step, 0)["subject"].tolist()}
    assert seen & {"sbj_1", "sbj_2"} and seen - {"sbj_1", "sbj_2"}


def test_one_subject_of_a_set_is_enough(sets):
    stream = stream_of([sets["nsd"]], subjects=sets["nsd"].subjects[:1])
    numbers = torch.cat([stream.micro(step, 0)["sample_id"] for step in range(4)]).numpy()
    assert set(sets["nsd"].table.subject[numbers].tolist()) == {0}


def test_a_subject_that_no_set_holds_is_refused(sets):
    with pytest.raises(ConfigError, match="sbj_9"):
        stream_of([sets["god"]], subjects=["sbj_9"])
