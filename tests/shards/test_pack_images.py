"""Folders of pictures: labels by file or folder, honest splits, undecodable files named; packing in parts."""

import json

import numpy as np
import pytest
from packed_folder import contents
from PIL import Image

from cadiff.errors import ConfigError, DataError
from cadiff.shards import images
from cadiff.shards.dataset import Dataset
from cadiff.shards.images import pack_images
from cadiff.shards.pictures import decode_square, encode_png, read_picture, to_uint8
from cadiff.shards.stream import Stream
from cadiff.shards.verify import verify


@pytest.fixture
def album(tmp_path):
    folder, rng = tmp_path / "album", np.random.default_rng(0)
    for i in range(12):
        path = folder / ("cat" if i % 2 else "dog") / f"{i:02d}.{'jpg' if i % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def test_sub_folders_are_labels(album, tmp_path):
    summary = pack_images(album, tmp_path / "out", val_fraction=0.25)
    ds = Dataset(tmp_path / "out")
    assert summary["samples"] == {"train": 9, "val": 3, "test": 0} and ds.classes == ["cat", "dog"]
    assert len(ds) == len(ds.stimuli) == 12 and ds.voxels == 0 and ds.subjects == [] and ds.kind == "images"
    for i, name in enumerate(ds.stimuli):
        assert ds.classes[ds.table.label[i]] == name.split("/")[0] and ds.table.stimulus[i] == i
    assert verify(tmp_path / "out") == []
    with pytest.raises(ConfigError, match="pictures only"):
        ds.signals(np.array([0]), 16)
    batch = Stream([ds], split="train", batch=4, micro_batch=4, width=64, image_size=16).micro(0, 0)
    assert "signal" not in batch and batch["image"].shape == (4, 3, 16, 16) and batch["subject"].tolist() == [-1] * 4


def test_files_are_stored_as_they_are(album, tmp_path):
    pack_images(album, tmp_path / "out")
    data = (album / "cat/01.jpg").read_bytes()
    assert data in (tmp_path / "out" / "images-000000.tar").read_bytes()


def test_labels_csv_wins_and_may_set_the_split(album, tmp_path):
    (album / "labels.csv").write_text("file,class_name,split\ncat/01.jpg,tiger,test\n00.png,wolf,\n")
    pack_images(album, tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    assert ds.classes == ["tiger", "wolf"] and [ds.stimuli[i] for i in ds.ids("test")] == ["cat/01.jpg"]
    assert (ds.table.label < 0).sum() == 10
    for text, message in (
        ("file,colour\na,b\n", "needs a column"),
        ("file,label\ngone.jpg,x\n", "line 2: no picture 'gone.jpg'"),
        ("file,label,split\n00.png,x,dev\n", "split 'dev'"),
        ("", "needs a column"),
    ):
        (album / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            pack_images(album, tmp_path / "no")
    (album / "labels.csv").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="not a readable CSV"):
        pack_images(album, tmp_path / "no")


def test_labels_csv_beside_the_folder_serves_if_it_is_about_its_pictures(album, tmp_path):
    beside = album.parent / "labels.csv"
    beside.write_text("file,label,split\nalbum/cat/01.jpg,tiger,test\n00.png,wolf,\nelsewhere/x.jpg,owl,\n")
    summary = pack_images(album, tmp_path / "out")
    ds = Dataset(tmp_path / "out")
    assert ds.classes == ["tiger", "wolf"] and [ds.stimuli[i] for i in ds.ids("test")] == ["cat/01.jpg"]
    assert summary["notes"] == {"label_lines_of_other_pictures": 1}
    for text in ("file,label\nelsewhere.jpg,owl\n", "name,label\n00.png,wolf\n", ""):
        beside.write_text(text)  # about something else: the sub-folders' names are taken
        pack_images(album, tmp_path / f"other{len(text)}")
        assert Dataset(tmp_path / f"other{len(text)}").classes == ["cat", "dog"]
    beside.write_text("file,label,split\n00.png,wolf,dev\n")
    with pytest.raises(DataError, match="split 'dev'"):
        pack_images(album, tmp_path / "no")


def test_a_label_is_of_one_picture(album, tmp_path):
    Image.new("RGB", (20, 20)).save(album / "cat" / "00.png")
    for text, message in (
        ("file,label\n00.png,x\n", "line 2: several pictures called '00.png'"),
        ("file,label\n01.jpg,x\ncat/01.jpg,y\n", "line 3: already a line for 'cat/01.jpg'"),
    ):
        (album / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            pack_images(album, tmp_path / "no")


def test_the_same_picture_in_two_splits_is_refused_and_in_one_is_noted(album, tmp_path):
    (album / "dog" / "copy.jpg").write_bytes((album / "cat" / "01.jpg").read_bytes())
    lines = "file,label,split\ncat/01.jpg,x,train\ndog/copy.jpg,x,"
    (album / "labels.csv").write_text(f"{lines}test\n")
    with pytest.raises(ConfigError, match=r"dog/copy\.jpg \(test\) and cat/01\.jpg \(train\) are the same picture"):
        pack_images(album, tmp_path / "out", val_fraction=0)
    assert not (tmp_path / "out").exists()
    (album / "labels.csv").write_text(f"{lines}train\n")
    summary = pack_images(album, tmp_path / "out", val_fraction=0)
    assert summary["notes"] == {"duplicates": {"dog/copy.jpg": "cat/01.jpg"}} and summary["samples"]["train"] == 13


def test_slices_and_processes_change_nothing(album, tmp_path, monkeypatch, cadiff):
    pack_images(album, tmp_path / "whole")
    monkeypatch.setattr(images, "SLICE", 5)
    pack_images(album, tmp_path / "one", workers=1)
    code, told, _ = cadiff("pack", "images", album, tmp_path / "two", "--workers", 2, "--json")
    assert code == 0 and json.loads(told)["samples"] == {"train": 11, "val": 1, "test": 0}
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and verify(tmp_path / "two") == []
    one, whole = Dataset(tmp_path / "one"), Dataset(tmp_path / "whole")
    assert [len(list(ds.folder.glob("images-*.tar"))) for ds in (one, whole)] == [3, 1]
    assert (one.stimuli, one.classes) == (whole.stimuli, whole.classes)
    np.testing.assert_array_equal(one.table.split, whole.table.split)
    np.testing.assert_array_equal(one.images(np.arange(12), 16), whole.images(np.arange(12), 16))


def test_an_interrupted_pack_goes_on_and_makes_parts_of_changed_files_anew(album, tmp_path, monkeypatch):
    begun, pack_slice = [], images.pack_slice

    def noted(*arguments):
        begun.append(arguments[-2][0].name)
        pack_slice(*arguments)

    def stopped():
        begun.clear()
        with pytest.raises(DataError, match=r"dog/08\.jpg: not a readable picture"):
            pack_images(album, tmp_path / "out")
        return begun

    monkeypatch.setattr(images, "SLICE", 3)
    monkeypatch.setattr(images, "pack_slice", noted)
    changing, broken, labels = album / "cat" / "11.jpg", album / "dog" / "08.jpg", album / "labels.csv"
    good, before = broken.read_bytes(), changing.read_bytes()
    broken.write_bytes(bytes(len(good)))
    changing.write_bytes(before + b"1")
    labels.write_text("file,label,split\n01.jpg,owl,train\n")
    everything = ["cat/01.jpg", "cat/07.jpg", "dog/00.png", "dog/06.png"]
    assert stopped() == everything and stopped() == everything[3:]
    changing.write_bytes(before + b"2")
    assert stopped() == ["cat/07.jpg", "dog/06.png"]
    labels.write_text("file,label,split\n01.jpg,fox,train\n")
    assert stopped() == everything
    broken.write_bytes(good)
    begun.clear()
    pack_images(album, tmp_path / "out")
    assert begun == ["dog/06.png"] and Dataset(tmp_path / "out").classes == ["fox"]
    pack_images(album, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_the_same_picture_in_two_slices_is_found(album, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SLICE", 2)
    (album / "dog" / "text.jpg").write_bytes(b"no picture")
    (album / "cat" / "text.jpg").write_bytes(b"no picture")  # left out, so that its twin in another split is no leak
    (album / "dog" / "twin.jpg").write_bytes((album / "cat" / "01.jpg").read_bytes())
    lines = "file,label,split\ncat/text.jpg,x,train\ndog/text.jpg,x,val\ncat/01.jpg,x,val\ndog/twin.jpg,x,"
    (album / "labels.csv").write_text(f"{lines}train\n")
    with pytest.raises(ConfigError, match=r"dog/twin\.jpg \(train\) and cat/01\.jpg \(val\) are the same picture"):
        pack_images(album, tmp_path / "out", val_fraction=0, skip_bad=True, workers=2)
    assert not (tmp_path / "out").exists()
    (album / "labels.csv").write_text(f"{lines}val\n")
    summary = pack_images(album, tmp_path / "out", val_fraction=0, skip_bad=True, workers=2)
    assert summary["notes"] == {"duplicates": {"dog/twin.jpg": "cat/01.jpg"}}
    assert [entry["what"] for entry in summary["dropped"]] == ["cat/text.jpg", "dog/text.jpg"]


def test_an_undecodable_file_is_named_or_skipped(album, tmp_path, caplog):
    path = album / "cat" / "01.jpg"
    path.write_bytes(path.read_bytes()[:200])
    (album / "cat" / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"cat/01\.jpg: not a readable picture"):
        pack_images(album, tmp_path / "out")
    summary = pack_images(album, tmp_path / "out", skip_bad=True)
    assert [entry["what"] for entry in summary["dropped"]] == ["cat/01.jpg", "cat/text.png"]
    assert sum(summary["samples"].values()) == 11
    assert not caplog.records  # what is in the summary is not said twice
    with pytest.raises(ConfigError, match="no such folder"):
        pack_images(tmp_path / "nothing", tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="files here"):
        pack_images(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(ConfigError, match="max_side"):
        pack_images(album, tmp_path / "x", max_side=2)


def decoded(data, size):
    square = np.empty((size, size, 3), np.uint8)
    decode_square(data, square, "x")
    return square


def test_other_modes_and_large_pictures_become_small_rgb(tmp_path):
    Image.new("L", (900, 300), 77).save(tmp_path / "grey.png")
    Image.new("CMYK", (10, 10)).save(tmp_path / "print.jpg")
    for name in ("grey.png", "print.jpg"):
        data, kind = read_picture(tmp_path / name, 450)
        assert kind == "jpg" and len(np.unique(decoded(data, 20))) < 5
    data, _ = read_picture(tmp_path / "grey.png", 450)
    assert np.abs(decoded(data, 20).astype(int) - 77).max() <= 1


def test_decoding_takes_the_centre_square():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 250
    assert (decoded(encode_png(pixels), 10) == 250).all()
    assert (decoded(encode_png(pixels), 4) == 250).all()


def test_a_jpeg_of_the_wanted_size_decodes_to_pillows_bytes(tmp_path):
    import io

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for options in ({"quality": 95, "subsampling": 0}, {"quality": 60}, {"progressive": True}):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "JPEG", **options)
        stream.seek(0)
        np.testing.assert_array_equal(decoded(stream.getvalue(), 32), np.asarray(Image.open(stream)))
    with pytest.raises(DataError, match="x: the stored picture does not decode"):
        decoded(stream.getvalue()[:300], 32)


def test_a_picture_bomb_is_refused(tmp_path, monkeypatch):
    from cadiff.shards import pictures

    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    Image.new("RGB", (20, 20)).save(tmp_path / "big.png")
    with pytest.raises(DataError, match="20 x 20 pixels"):
        read_picture(tmp_path / "big.png", 512)


def test_both_conventions_of_pixels_become_uint8():
    floats = np.array([[0.0, 0.5, 1.0]])
    assert to_uint8(floats, 1.0, "x").tolist() == [[0, 128, 255]]
    assert to_uint8(floats * 255, 255.0, "x").tolist() == [[0, 128, 255]]
    for bad in (np.array([-3.0]), np.array([700.0]), np.array([np.nan])):
        with pytest.raises(DataError, match="x: pixels"):
            to_uint8(bad, 255.0, "x")


def test_a_hundred_real_photos_pack(realdata, tmp_path):
    summary = pack_images(realdata / "images" / "jpg256", tmp_path / "out", val_fraction=0.2)  # labels.csv is beside
    ds = Dataset(tmp_path / "out")
    assert summary["samples"] == {"train": 80, "val": 20, "test": 0} and len(ds.classes) == 100
    assert "goldfish" in ds.classes and ds.images(np.arange(100), 64).std() > 40
    assert verify(tmp_path / "out") == []
