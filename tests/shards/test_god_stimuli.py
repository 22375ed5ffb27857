"""GOD's label files: ids read as text, a class for each, and what is refused."""

import json
import shutil

import pytest

from cadiff.errors import DataError
from cadiff.shards.god_stimuli import read_stimuli


@pytest.fixture
def broken(god_files, tmp_path):
    return shutil.copytree(god_files, tmp_path / "god")


def test_labels_must_have_classes_and_be_unique(broken):
    labels = broken / "imagenet_testing_label.csv"
    good = labels.read_text()
    for text, message in (
        ("1443537.022563\n1443537.022563\n", "expected each once"),
        ("9999999.000001\n", "1 categories are not in imagenet_class_index.json, first n09999999"),
        ("1518878.010042\n", "listed for training and for test"),
        ("id\n", "expected a stimulus number"),
        ("", "expected each once"),
    ):
        labels.write_text(text)
        with pytest.raises(DataError, match=message):
            read_stimuli(broken)
    labels.write_text(good)
    (broken / "imagenet_class_index.json").write_text('{"0": ["n01518878"]}')
    with pytest.raises(DataError, match="expected a dictionary of entries"):
        read_stimuli(broken)


def test_a_class_name_used_twice_gets_its_id(broken):
    table = json.loads((broken / "imagenet_class_index.json").read_text())
    (broken / "imagenet_class_index.json").write_text(json.dumps({k: [e[0], "crane"] for k, e in table.items()}))
    assert read_stimuli(broken)["train"].labels[0] == "crane (n01518878)"


def test_the_real_label_files_are_read_as_text(realdata, tmp_path):
    for half, name in (("training", "training"), ("testing", "test")):
        shutil.copy(realdata / f"god/imageID_{name}.csv", tmp_path / f"imagenet_{half}_label.csv")
    lines = [(tmp_path / f"imagenet_{half}_label.csv").read_text().splitlines() for half in ("training", "testing")]
    wnids = sorted({f"n{int(line.split('.')[0]):08d}" for line in lines[0] + lines[1]})
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps({i: [w, w] for i, w in enumerate(wnids)}))
    stimuli = read_stimuli(tmp_path)
    assert (len(stimuli["train"].ids), len(stimuli["test"].ids)) == (1200, 50)
    assert len(set(stimuli["train"].labels)) == 150 and not set(stimuli["train"].labels) & set(stimuli["test"].labels)
    assert "1621127.019020" in stimuli["test"].ids
