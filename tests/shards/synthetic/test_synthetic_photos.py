"""Photos as stimuli: where labels come from, what is held out, how few photos make many pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from cadiff.errors import ConfigError, DataError
from cadiff.shards.synthetic.brain import BrainSpec, simulate
from cadiff.shards.synthetic.gallery import PhotoGallery
from cadiff.shards.synthetic.photos import crop, open_album, read_square
from cadiff.shards.synthetic.scenes import render
from cadiff.shards.synthetic.wordnet import group_of


def photo(path, index, size=(300, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(index % 12, index, 8, 64)).resize(size).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten photos of cats, five of dogs and one of a fox, in sub-folders."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(16):
        kind = "cat" if index < 10 else "dog" if index < 15 else "fox"
        photo(root / kind / f"{index:02d}.jpg", index)
    return root


def test_sub_folders_are_labels_and_one_photo_in_five_is_held_out(folder):
    album = open_album(folder)
    assert album.classes == ("cat", "dog", "fox")
    assert np.bincount(album.labels).tolist() == [10, 5, 1]
    assert np.bincount(album.labels[album.held_out], minlength=3).tolist() == [2, 1, 0]


def test_file_names_give_wnids_and_labels(tmp_path):
    for index in range(8):
        photo(tmp_path / f"n0209977{index % 2}_red_{'wolf' if index % 2 else 'fox'}_{index % 2}.png", index)
    for index in range(8):
        photo(tmp_path / f"{index}_a_lamp.png", index)
    with pytest.raises(ConfigError, match="no label"):
        photo(tmp_path / "lamp.png", 1)
        open_album(tmp_path)
    (tmp_path / "lamp.png").unlink()
    album = open_album(tmp_path)
    assert "a lamp" in album.classes
    assert {p.wnid for p in album.photos} == {"", "n02099770", "n02099771"}


def test_a_table_beside_the_photos_gives_labels(tmp_path):
    for index in range(8):
        photo(tmp_path / "jpg" / f"{index}.jpg", index)
    rows = "".join(f"{index}.jpg,{'even' if index % 2 == 0 else 'odd'}\r\n" for index in range(8))
    (tmp_path / "labels.csv").write_text("file,label\r\n" + rows)
    album = open_album(tmp_path / "jpg")
    assert album.classes == ("even", "odd")
    assert [album.photos[i].path.name for i in np.flatnonzero(album.labels == 0)] == [f"{i}.jpg" for i in (0, 2, 4, 6)]
    (tmp_path / "labels.csv").write_text("file,label\nmissing.jpg,x\n")
    with pytest.raises(ConfigError, match=r"missing\.jpg"):
        open_album(tmp_path / "jpg")
    (tmp_path / "labels.csv").write_text("name,label\n0.jpg,x\n")
    with pytest.raises(ConfigError, match="expected file and label"):
        open_album(tmp_path / "jpg")


def test_too_many_labels_are_grouped_by_warmth_without_wnids(tmp_path):
    for index in range(16):
        colour = np.full((8, 8, 3), (index * 16, 100, 255 - index * 16), np.uint8)
        Image.fromarray(colour).save(tmp_path / f"{index}_thing{index}.png")
    album = open_album(tmp_path)
    assert len(album.classes) == 8
    assert np.bincount(album.labels).tolist() == [2] * 8
    assert sorted(album.photos[i].label for i in np.flatnonzero(album.labels == 0)) == ["thing0", "thing1"]


@pytest.mark.parametrize(
    ("wnid", "name", "group"),
    [
        ("n01443537", "goldfish", "fish"),
        ("n02087394", "Rhodesian ridgeback", "dog"),
        ("n02124075", "Egyptian cat", "mammal"),
        ("n01514859", "hen", "bird"),
        ("n04146614", "school bus", "vehicle"),
        ("n03388183", "fountain pen", "tool"),
        ("n03345487", "fire_engine", "vehicle"),
        ("n07734744", "mushroom", "food"),
        ("n09193705", "alp", "place"),
    ],
)
def test_wordnet_numbers_tell_groups_apart(wnid, name, group):
    assert group_of(wnid, name) == group


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        open_album(tmp_path / "none")
    with pytest.raises(ConfigError, match="found 0 labelled photos"):
        open_album(tmp_path)
    for index in range(4):
        (tmp_path / f"{index % 2}_x{index % 2}.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match="found 2 labelled"):
        open_album(tmp_path)
    with pytest.raises(DataError, match="not readable"):
        read_square(tmp_path / "0_x0.png", 32)


def test_a_folder_of_single_photos_cannot_be_split(tmp_path):
    for index, wnid in enumerate(["n01443537", "n01514859", "n02087394", "n04146614"]):
        photo(tmp_path / f"{wnid}_x{index}.png", index)
    with pytest.raises(ConfigError, match="every class has one photo"):
        open_album(tmp_path)


def test_the_middle_square_of_a_photo_is_used(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    square = read_square(tmp_path / "wide.png", 40)
    assert square.shape == (40, 40, 3)
    assert (square[5:35, 5:35] == 200).all()


def test_crops_differ_and_stay_within_the_photo():
    square = np.zeros((64, 64, 3), np.uint8)
    square[..., 0] = np.arange(64)[None, :] * 3
    crops = [crop(square, np.random.default_rng(seed)) for seed in range(12)]
    assert all(picture.shape == (64, 64, 3) for picture in crops)
    assert len({picture.tobytes() for picture in crops}) == 12
    directions = {bool(picture[0, 0, 0] < picture[0, -1, 0]) for picture in crops}
    assert directions == {True, False}


def test_held_out_photos_never_appear_in_training(folder):
    gallery = PhotoGallery(1, open_album(folder))
    test = gallery.held_out("any", 99)
    assert len(test.labels) == gallery.limit(99) == 3
    assert sorted(test.labels) == [0, 0, 1]
    training = {photo.path for photo, out in zip(gallery.album.photos, gallery.album.held_out) if not out}
    assert len(training) == 13
    rows = gallery.training("any", 26)
    assert np.bincount(rows.labels).tolist() == [16, 8, 2]
    first, later = gallery.training("any", 4), gallery.training("any", 2, first=2)
    assert np.array_equal(first.images[2:], later.images)
    assert not np.array_equal(gallery.training("other", 4).images, first.images)


def test_a_study_of_photos_is_written_as_the_real_one(folder, tmp_path):
    spec = BrainSpec(
        photos=str(folder),
        voxels=60,
        train_images=26,
        test_images=10,
        test_repeats=2,
        bold_trials=30,
        bold_repeated=5,
        bold_voxels=20,
        extra_images=5,
    )
    simulate(tmp_path, spec, ["god", "bold5000", "images"])
    with np.load(tmp_path / "god/images_256.npz") as pictures, np.load(tmp_path / "god/sbj_1.npz") as scan:
        assert pictures["train_images"].shape == (26, 256, 256, 3)
        assert pictures["test_images"].shape == (3, 256, 256, 3)
        assert scan["arr_2"].shape[0] == 3
    index = json.loads((tmp_path / "god/imagenet_class_index.json").read_text())
    assert [entry[-1] for entry in index.values()] == ["cat", "dog", "fox"]
    repeated = tmp_path / "bold5000/BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt"
    assert len(repeated.read_text().splitlines()) == 3
    assert {path.name for path in (tmp_path / "images").iterdir() if path.is_dir()} <= {"cat", "dog", "fox"}
    changed = folder / "cat/00.jpg"
    original = changed.read_bytes()
    photo(changed, 11)
    try:
        with pytest.raises(ConfigError, match="another simulated study"):
            simulate(tmp_path, spec, ["god"])
    finally:
        changed.write_bytes(original)


def test_a_hundred_imagenet_photos_of_a_hundred_classes_become_a_dozen_groups(realdata, tmp_path):
    photos = realdata / "images/jpg256"
    album = open_album(photos)
    assert len(album.photos) == 100
    assert 8 <= len(album.classes) <= 16
    assert 15 <= album.held_out.sum() <= 25
    spec = BrainSpec(photos=str(photos), voxels=60, train_images=90, test_images=60, test_repeats=2)
    simulate(tmp_path, spec, ["god"])
    index = json.loads((tmp_path / "god/imagenet_class_index.json").read_text())
    assert sum(len(entry) - 1 for entry in index.values()) == 100
    assert "n02087394" in index[str(album.classes.index("dog"))]
