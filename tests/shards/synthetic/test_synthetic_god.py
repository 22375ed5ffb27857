"""Simulated GOD files: arrays, masks and label tables in the published form."""

import csv
import json
import re

import numpy as np
import pytest

from cadiff.shards.god import pack_god

LINE = re.compile(r'(\d+)\.(\d{6}),"(n\d{8})_(\d+)\.JPEG"')


@pytest.fixture(scope="module")
def scan(study):
    with np.load(study / "god" / "sbj_1.npz") as opened:
        return {name: opened[name] for name in opened.files}


@pytest.fixture(scope="module")
def pictures(study):
    with np.load(study / "god" / "images_256.npz") as opened:
        return {name: opened[name] for name in opened.files}


def test_arrays_have_the_published_shapes_and_types(scan, pictures):
    voxels = scan["arr_0"].shape[1]
    assert scan["arr_0"].shape == (48, voxels)
    assert scan["arr_1"].shape == (12 * 6, voxels)
    assert scan["arr_2"].shape == (12, voxels)
    assert all(scan[name].dtype == np.float32 for name in ("arr_0", "arr_1", "arr_2", "arr_5", "arr_6"))
    assert sorted(scan["arr_3"]) == list(range(48))
    assert scan["arr_3"].tolist() != list(range(48))
    assert np.bincount(scan["arr_4"]).tolist() == [6] * 12
    assert scan["arr_5"].shape == scan["arr_6"].shape == (voxels,)
    assert pictures["train_images"].shape == (48, 256, 256, 3)
    assert pictures["test_images"].shape == (12, 256, 256, 3)
    assert pictures["train_images"].dtype == np.uint8


def test_averages_are_means_of_the_trials_of_each_picture(scan):
    for image in range(12):
        assert np.allclose(scan["arr_2"][image], scan["arr_1"][scan["arr_4"] == image].mean(axis=0), atol=1e-5)


def test_masks_nest_as_in_god(scan):
    sizes = {name: int(mask.sum()) for name, mask in scan.items() if mask.dtype == bool}
    assert set(sizes) == {"V1", "V2", "V3", "V4", "LOC", "FFA", "PPA", "LVC", "HVC", "VC"}
    assert sizes["LVC"] == sizes["V1"] + sizes["V2"] + sizes["V3"]
    assert sizes["HVC"] == sizes["LOC"] + sizes["FFA"] + sizes["PPA"]
    assert sizes["VC"] == sizes["LVC"] + sizes["V4"] + sizes["HVC"] == pytest.approx(120, rel=0.06)
    assert sizes["VC"] < len(scan["VC"])


@pytest.mark.parametrize(("name", "rows"), [("training", 48), ("testing", 12)])
def test_label_tables_parse_and_point_to_known_classes(study, name, rows):
    folder = study / "god"
    index = json.loads((folder / "imagenet_class_index.json").read_text())
    known = {wnid: int(number) for number, entry in index.items() for wnid in entry[:-1]}
    assert [entry[-1] for entry in index.values()] == ["ball", "bird", "boat", "box"]
    lines = (folder / f"imagenet_{name}_label.csv").read_text().splitlines()
    assert len(lines) == rows
    for row, line in enumerate(lines):
        offset, number, wnid, same = LINE.fullmatch(line).groups()
        assert (f"n{int(offset):08d}", int(number)) == (wnid, int(same))
        assert known[wnid] == row % 4
    assert len(set(lines)) == rows


def test_real_tables_have_the_same_form(realdata):
    table = realdata / "god/imageID_training.csv"
    assert all(LINE.fullmatch(line) for line in table.read_text().splitlines())
    assert len(next(csv.reader(table.open()))) == 2


def test_the_real_packer_reads_it(study, tmp_path):
    from cadiff.shards.dataset import Dataset

    pack_god(study / "god", tmp_path / "packed")
    packed = Dataset(tmp_path / "packed")
    assert packed.classes == ["ball", "bird", "boat", "box"]
    assert len(packed.ids("test")) == 12


def test_voxels_carry_the_pictures(scan, pictures):
    # Ridge from all of VC to 8 x 8 pixels, then each test picture looked up among the twelve.
    def small(images):
        return images.reshape(len(images), 8, 32, 8, 32, 3).mean(axis=(2, 4)).reshape(len(images), -1)

    train, test = small(pictures["train_images"])[scan["arr_3"]], small(pictures["test_images"])
    x, y = scan["arr_0"][:, scan["VC"]], train - train.mean(axis=0)
    weights = x.T @ np.linalg.solve(x @ x.T + 100 * np.eye(len(x)), y)
    guess = scan["arr_2"][:, scan["VC"]] @ weights
    match = np.corrcoef(np.concatenate([guess, test - train.mean(axis=0)]))[:12, 12:]
    better = (match < np.diag(match)[:, None]).sum(axis=1) / 11
    assert better.mean() > 0.75
