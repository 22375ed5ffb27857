"""A folder of image features: written whole or not at all, gone on with, read by picture, checked, and in batches."""

import fcntl
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cadiff.errors import ConfigError, DataError
from cadiff.shards.dataset import Dataset
from cadiff.shards.feature_writer import FeatureWriter, packed_before
from cadiff.shards.features import Features
from cadiff.shards.manifest import manifest_checksum
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Stream

WHOLE, VISIBLE, WIDTH, MASKS = 3, 2, 4, 2
VALUES = (WHOLE + MASKS * VISIBLE) * WIDTH


def recipe(digests, dtype="float32", **changes):
    fixed = {"format": "cadiff-features/1", "encoder": "a" * 64, "image_size": 16, "precision": "fp32", "dtype": dtype}
    sizes = {"whole": WHOLE, "visible": VISIBLE, "width": WIDTH, "masks": MASKS, "mask_ratio": 0.5, "seed": 1}
    return {**fixed, **sizes, "rows": 7, "digests": sorted(digests), "made_by": {"torch": "1"}, **changes}


def record(digest, dtype="float32"):
    """Stored values of a picture: told apart by its digest."""
    return (np.arange(VALUES) + digest % 1000).astype(dtype)


def write(out, digests, dtype="float32", most=99, **changes):
    about = recipe(digests, dtype, **changes)
    with FeatureWriter(out, about, VALUES * np.dtype(dtype).itemsize) as writer:
        todo = list(writer.missing)
        for number in todo[:most]:
            part = about["digests"][number * 7 :][: writer.records(number)]
            writer.write(number, (record(digest, dtype)[None] for digest in part))
        if most >= len(todo):
            writer.finish()
    return todo


@pytest.fixture(scope="module")
def ds(tiny_set):
    return Dataset(tiny_set)


def seen(ds):
    """Digests of the pictures of training and validation samples."""
    ids = np.concatenate([ds.ids("train"), ds.ids("val")])
    return np.unique(ds.pictures.digest[ds.table.stimulus[ids]]).tolist()


@pytest.fixture(scope="module")
def folder(ds, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "of"
    assert write(out, seen(ds)) == [0, 1, 2, 3, 4, 5]
    return out


def make(ds, folder, **options):
    sizes = {"split": "train", "batch": 16, "micro_batch": 8, "width": 32, "image_size": 16, "seed": 5}
    return Stream(ds if isinstance(ds, list) else [ds], **sizes | {"features": folder and Features(folder)} | options)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_picture_is_found_by_its_content(tmp_path, dtype):
    digests = [5, 2**62 + 1, 17, 100, 8, 9, 10, 11, 12]
    write(tmp_path / "f", digests, dtype)
    features = Features(tmp_path / "f")
    assert features.dtype == getattr(torch, dtype) and features.rounding == (None if dtype == "float32" else dtype)
    wanted = np.array([2**62 + 1, 5, 12, 5, 6])
    row_B = features.rows_of(wanted)
    assert row_B[:4].min() >= 0 and row_B[4] == -1 and row_B[1] == row_B[3]
    whole = torch.empty(4, WHOLE, WIDTH, dtype=features.dtype)
    visible = torch.empty(4, VISIBLE, WIDTH, dtype=features.dtype)
    mask_B = np.array([0, 1, 1, 0])
    features.read_whole(row_B[:4], whole)
    features.read_visible(row_B[:4], mask_B, visible)
    for place, (digest, mask) in enumerate(zip(wanted.tolist()[:4], mask_B.tolist())):
        values = record(digest, dtype)
        np.testing.assert_array_equal(whole[place].flatten(), values[: WHOLE * WIDTH])
        start = (WHOLE + mask * VISIBLE) * WIDTH
        np.testing.assert_array_equal(visible[place].flatten(), values[start : start + VISIBLE * WIDTH])


def test_an_interrupted_pack_goes_on_after_the_finished_shards_and_gives_the_same_bytes(tmp_path):
    digests = list(range(20))
    assert write(tmp_path / "whole", digests) == [0, 1, 2]
    assert write(tmp_path / "cut", digests, most=2) == [0, 1, 2] and not (tmp_path / "cut").exists()
    (tmp_path / ".cut.partial/.features-00002.bin.1.tmp").write_bytes(b"half")
    (tmp_path / ".cut.partial/features-00001.bin").write_bytes(b"cut short")
    assert write(tmp_path / "cut", digests) == [1, 2]
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == [*(f"features-0000{n}.bin" for n in range(3)), "features.json"]
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_parts_of_another_recipe_are_not_taken(tmp_path):
    write(tmp_path / "f", range(20), most=2)
    assert write(tmp_path / "f", range(20), seed=2) == [0, 1, 2]


def test_two_packs_into_one_folder_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    (tmp_path / ".f.partial").mkdir()
    other = os.open(tmp_path / ".f.partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another process is packing features there"):
        write(tmp_path / "f", range(20))
    os.close(other)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**7))
    with pytest.raises(ConfigError, match=r"0\.00 GB are to be written and 0\.01 GB are free there"):
        write(tmp_path / "f", range(20))


def test_packing_again_finds_it_or_says_what_differs(folder, ds, tmp_path):
    assert packed_before(folder, recipe(seen(ds), made_by={"torch": "2"}))
    assert not packed_before(tmp_path, recipe([1])) and not packed_before(tmp_path / "none", recipe([1]))
    with pytest.raises(ConfigError, match=r"seed was 1, now 2; 40 pictures were others than these 1\. Remove it"):
        packed_before(folder, recipe([1], seed=2))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="holds no features"):
        packed_before(tmp_path, recipe([1]))


def test_batches_hold_the_features_of_their_pictures(ds, folder):
    stream = make(ds, folder, image_masks=MASKS)
    assert stream.keys[-4:] == ["picture", "image_mask", "image_whole", "image_visible"]
    for _, _, batch in stream.iterate(0, 5):
        digest_B = ds.pictures.digest[ds.table.stimulus[batch["sample_id"].numpy()]]
        np.testing.assert_array_equal(batch["picture"], digest_B)
        for place, (digest, mask) in enumerate(zip(digest_B.tolist(), batch["image_mask"].tolist())):
            values = record(digest)[WHOLE * WIDTH :].reshape(MASKS, VISIBLE, WIDTH)
            np.testing.assert_array_equal(batch["image_visible"][place], values[mask])
            np.testing.assert_array_equal(batch["image_whole"][place].flatten(), record(digest)[: WHOLE * WIDTH])
    plain = make(ds, None).micro(3, 1)
    cached = make(ds, folder).micro(3, 1)
    assert cached.keys() - plain.keys() == {"image_whole"}
    assert all(torch.equal(cached[key], value) for key, value in plain.items())


def test_a_sample_goes_through_its_pictures_masks_in_turn(ds):
    stream, shown = make(ds, None, image_masks=3), {}
    for _, _, batch in stream.iterate(0, 4 * stream.steps_per_epoch):
        for sample, mask in zip(batch["sample_id"].tolist(), batch["image_mask"].tolist()):
            shown.setdefault(sample, []).append(mask)
    assert all(sorted(masks[:3]) == [0, 1, 2] and masks[3] == masks[0] for masks in shown.values())
    assert {masks[0] for masks in shown.values()} == {0, 1, 2}
    val = make(ds, None, image_masks=3, split="val", batch=8)
    assert torch.equal(val.micro(0, 0)["image_mask"], val.micro(2, 0)["image_mask"])
    assert not any(key in make(ds, None).keys for key in ("picture", "image_mask"))


def test_which_picture_and_mask_do_not_depend_on_ranks_or_on_other_sets(ds, folder, tmp_path):
    whole = make(ds, folder, image_masks=2, micro_batch=16).micro(2, 0)
    parts = [make(ds, folder, image_masks=2, rank=rank, world=2).micro(2, 0) for rank in range(2)]
    for key, value in whole.items():
        assert torch.equal(torch.cat([part[key] for part in parts]), value)

    def fill(pack):
        names = [f"s{i:02d}" for i in range(8)]
        pack.add(make_records("C", "r", np.random.default_rng(1).normal(size=(8, 20)), "train", names))
        for i in range(8):
            pack.picture(f"s{i:02d}", ds.pictures.encoded(i), "png")

    pack_folder(tmp_path / "o", "table", {}, {}, fill, silent)
    both = make([ds, Dataset(tmp_path / "o")], folder, image_masks=2, batch=24, micro_batch=24)
    of = dict(zip(np.arange(96).tolist(), ds.pictures.digest[ds.table.stimulus].tolist()))
    for step in range(3):
        batch = both.micro(step, 0)
        for place, sample in enumerate(batch["sample_id"].tolist()):
            digest = of[sample] if sample < 96 else int(ds.pictures.digest[sample - 96])
            assert batch["picture"][place] == digest
            np.testing.assert_array_equal(batch["image_whole"][place].flatten(), record(digest)[: WHOLE * WIDTH])


def test_pictures_without_features_are_one_error_with_the_command(ds, tmp_path):
    write(tmp_path / "f", seen(ds)[:-1])
    lacking = [i for i in range(48) if ds.pictures.digest[i] == seen(ds)[-1]]
    split = "train" if lacking[0] < 32 else "val"
    with pytest.raises(ConfigError, match=rf"stimulus s{lacking[0]:02d} of .*`cadiff pack features .* OUT --vit"):
        make(ds, tmp_path / "f", split=split, batch=8)
    make(ds, tmp_path / "f", split={"train": "val", "val": "train"}[split], batch=8)  # needs the others only


def test_damage_is_named(folder, ds, tmp_path):
    with pytest.raises(DataError, match=r"no features\.json"):
        Features(tmp_path)
    write(tmp_path / "f", range(20))
    shard, manifest = tmp_path / "f/features-00001.bin", tmp_path / "f/features.json"
    features, out = Features(tmp_path / "f"), torch.empty(1, WHOLE, WIDTH)
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    features.read_whole(np.array([3]), out)  # another shard's
    with pytest.raises(DataError, match=r"features-00001\.bin: missing, or its sha256"):
        features.read_whole(np.array([8]), out)
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match="bytes, expected"):
        Features(tmp_path / "f")
    data[5] ^= 1
    shard.write_bytes(data)
    good = json.loads(manifest.read_text())
    for change, told in (
        ({"format": "cadiff-features/9"}, "expected 'cadiff-features/1'"),
        ({"seed": 3}, "not what was written"),
        ({"rows": 0}, "rows: "),
        ({"digests": list(range(19, -1, -1))}, "not what was written"),
    ):
        tree = {**good, **change}
        manifest.write_text(json.dumps(tree | ({"checksum": manifest_checksum(tree)} if "digests" in change else {})))
        with pytest.raises(DataError, match=told):
            Features(tmp_path / "f")


def test_a_shard_cut_short_while_it_is_open_is_an_error_and_no_crash(tmp_path):
    write(tmp_path / "f", range(20))
    features, out = Features(tmp_path / "f"), torch.empty(1, WHOLE, WIDTH)
    features.read_whole(np.array([0]), out)
    os.truncate(tmp_path / "f/features-00000.bin", 8)
    with pytest.raises(DataError, match="ends early"):
        features.read_whole(np.array([0]), out)
