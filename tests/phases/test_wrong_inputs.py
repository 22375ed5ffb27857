"""Wrong inputs of phase 2 are refused on the way a user takes, by a message that says what is wrong and what to do."""

import json
import re

import numpy as np
import pytest
import torch
from tiny_pairs import FMRI, phase1_job
from tuned_world import TINY_PAIR, train_alone, write_vit

from cadiff.errors import ConfigError, DataError
from cadiff.exports import save_export
from cadiff.models.image_mae import normalise_image
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain

CONFIG, DATA = 2, 3  # exit codes


@pytest.fixture
def god(tmp_path):
    """Write GOD's files of one subject, 12 training rows of 6 pictures and 4 test pictures; keywords replace arrays."""

    def write(**changes):
        folder, rng = tmp_path / "god", np.random.default_rng(0)
        folder.mkdir()
        for half, count in (("training", 6), ("testing", 4)):
            ids = [f"{1518878 + (half == 'testing')}.{i:06d}" for i in range(count)]
            (folder / f"imagenet_{half}_label.csv").write_text("".join(f"{one},x\n" for one in ids))
        classes = {"0": ["n01518878", "one"], "1": ["n01518879", "two"]}
        (folder / "imagenet_class_index.json").write_text(json.dumps(classes))
        pictures = rng.integers(0, 256, (10, 24, 24, 3)).astype(np.uint8)
        images = {"train_images": pictures[:6], "test_images": pictures[6:]}
        rows = {"arr_0": rng.normal(size=(12, 30)), "arr_2": rng.normal(size=(4, 30)), "VC": np.ones(30, bool)}
        rows["arr_3"] = np.repeat(np.arange(6), 2)
        np.savez(folder / "images_256.npz", **{key: changes.get(key, value) for key, value in images.items()})
        np.savez(folder / "sbj_1.npz", **{key: changes.get(key, value) for key, value in rows.items()})
        return folder

    return write


@pytest.fixture
def refused(tiny_job, warm, tmp_path):
    """Train phase 2 on the tiny set with these overrides; what it was refused with."""

    def run(error, *overrides):
        config = tiny_job(tmp_path / "job.toml", "phase2", TINY_PAIR)
        with pytest.raises(error) as problem:
            train_alone(warm, config, tmp_path / "run", "image.train_encoder=true", *overrides)
        assert not (tmp_path / "run" / "identity.json").exists()  # the folder was not claimed
        assert "Traceback" not in str(problem.value)
        return str(problem.value)

    return run


def test_the_files_themselves_are_fine(god, cadiff, tmp_path):
    code, _, err = cadiff("pack", "god", god(), tmp_path / "packed")
    assert code == 0, err


PIXELS = np.random.default_rng(1).integers(0, 256, (6, 24, 24, 3)).astype(np.uint8)
MISCOUNTED = {
    "a response too few": ({"arr_2": np.zeros((3, 30))}, "arr_2 has 3 rows for 4 pictures"),
    "a number too few": ({"arr_3": np.arange(11) % 6}, r"arr_3 is int64 \(11,\), expected 12 whole numbers"),
    "a picture too few": ({"train_images": PIXELS[:5]}, r"\(5, 24, 24, 3\), expected \(6, height, width, 3\)"),
    "colours before rows": ({"train_images": PIXELS.transpose(0, 3, 1, 2)}, r"\(6, 3, 24, 24\), expected \(6, height"),
    "numbers from 1": ({"arr_3": 1 + np.arange(12) % 6}, "runs from 1 to 6, but there are 6 pictures, numbered from 0"),
}


@pytest.mark.parametrize("case", MISCOUNTED)
def test_counts_and_shapes_that_do_not_fit_together_are_not_packed(god, cadiff, tmp_path, case):
    change, message = MISCOUNTED[case]
    code, _, err = cadiff("pack", "god", god(**change), tmp_path / "packed")
    assert code == DATA and not (tmp_path / "packed").exists()
    assert re.search(message, " ".join(err.split())), err


@pytest.mark.parametrize("scaled", [PIXELS / 255.0**2, (PIXELS / 255).astype(np.uint8)])
def test_pictures_that_were_scaled_twice_are_not_trained_on(god, cadiff, refused, tmp_path, scaled):
    code, _, err = cadiff("pack", "god", god(train_images=scaled), tmp_path / "packed")
    assert code == 0, err
    told = refused(DataError, f'data.shards=["{tmp_path / "packed"}"]', "train.batch=4")
    assert "standard deviations of 0.0" in told and "scaled twice" in told and "Pack the originals" in told


def test_only_whole_numbers_of_three_colours_before_rows_become_network_input():
    with pytest.raises(TypeError, match="expected uint8 images"):
        normalise_image(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"colours before rows, found \(2, 8, 8, 3\)"):
        normalise_image(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))


def test_a_subject_that_is_not_there_is_named(god, cadiff, refused, tmp_path):
    code, _, err = cadiff("pack", "god", god(), tmp_path / "packed", "--subjects", "sbj_9")
    assert code == CONFIG and "no subject 'sbj_9'; there are sbj_1" in " ".join(err.split())
    assert "data.subjects: no subject 'C' in" in refused(ConfigError, 'data.subjects=["C"]')


@pytest.fixture
def export(tmp_path):
    """Write the export of a phase-1 run of other sizes."""

    def write(**sizes):
        torch.manual_seed(0)
        pretrain = Pretrain(phase1_job(model={**FMRI, **sizes}), Space(voxels=32, classes=0))
        return save_export(tmp_path / "phase1", {"fmri": pretrain.fmri.state_dict()}, {"phase": "phase1"})

    return write


@pytest.mark.parametrize("size", [{"width": 32}, {"patch": 8}, {"depth": 3}, {"decoder_width": 16}])
def test_a_phase_1_of_other_sizes_is_refused(export, refused, size):
    told = refused(ConfigError, f"init.fmri={export(**size)}")
    assert "init.fmri" in told and "tensors differ in shape or exist on one side" in told
    assert "Give [model] the sizes that the export was trained with" in told


def test_an_image_network_of_another_width_is_refused(refused, tmp_path):
    vit = write_vit(tmp_path / "vit", hidden_size=32)
    told = refused(ConfigError, f"init.image={vit}")
    assert "hidden_size is 32, but image.width is 16" in told


def test_an_export_of_another_kind_is_refused(refused, tmp_path):
    folder = save_export(tmp_path / "prior", {"unet": {"weight": torch.zeros(2)}}, {"phase": "prior"})
    assert "holds unet, not 'fmri'. Name a run of the right phase" in refused(DataError, f"init.fmri={folder}")
    assert "no finished export here" in refused(DataError, f"init.fmri={tmp_path / 'nothing'}")
