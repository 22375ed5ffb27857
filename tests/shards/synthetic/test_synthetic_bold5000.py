"""Simulated BOLD5000 files: betas, picture dictionary and presentation lists in the published form."""

import re

import numpy as np
import pytest

from cadiff.shards.bold5000 import pack_bold5000
from cadiff.shards.synthetic.bold5000_files import presented

BETAS = "bold5000/BOLD5000_GLMsingle_ROI_betas/py"
STIMULI = "bold5000/BOLD5000_Stimuli"
NAME = re.compile(r"(rep_)?(n\d{8}_\d+\.JPEG|COCO_train2014_\d{12}\.jpg|[a-zA-Z_]+\d*\.(jpg|jpeg))")


@pytest.fixture(scope="module")
def lines(study):
    paths = sorted((study / STIMULI / "Stimuli_Presentation_Lists/CSI1").glob("*/*.txt"))
    assert paths[0].relative_to(study / STIMULI).as_posix().endswith("CSI1/CSI1_sess01/CSI1_sess01_run01.txt")
    return [line for path in paths for line in path.read_text().splitlines()]


def test_lists_mark_repetitions_after_the_first_showing(study, lines):
    repeated = (study / STIMULI / "Scene_Stimuli/repeated_stimuli_113_list.txt").read_text().splitlines()
    plain = [line.removeprefix("rep_") for line in lines]
    assert len(lines) == 80
    assert len(repeated) == 6
    assert all(plain.count(name) == 4 for name in repeated)
    assert all(plain.count(name) == 1 for name in set(plain) - set(repeated))
    assert sum(line.startswith("rep_") for line in lines) == 6 * 3
    assert presented(["a", "b", "a", "a"]) == ["a", "b", "rep_a", "rep_a"]


def test_names_have_the_three_published_styles(lines):
    assert all(NAME.fullmatch(line) for line in lines)
    assert {line.removeprefix("rep_")[:4] == "COCO" for line in lines} == {True, False}


def test_real_lists_have_the_same_styles(realdata):
    folder = realdata / "bold5000/official_scripts/Subject_Img_Lists/Subj01/Sess01"
    real = [line for path in sorted(folder.glob("*.txt")) for line in path.read_text().split()]
    assert all(NAME.fullmatch(line) for line in real)
    assert any(line.startswith("rep_") for line in real)


def test_betas_have_one_row_per_line_and_repeat_for_repeated_pictures(study, lines):
    files = sorted(path.name for path in (study / BETAS).glob("*.npy"))
    ending = [f"{side}{area}" for side in ("LH", "RH") for area in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")]
    assert files == sorted(f"CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{part}.npy" for part in ending)
    betas = np.concatenate([np.load(study / BETAS / name) for name in files], axis=1)
    assert len(betas) == len(lines)
    assert betas.dtype == np.float32
    assert betas.shape[1] == pytest.approx(60, abs=5)
    plain = np.array([line.removeprefix("rep_") for line in lines])
    similarity = np.corrcoef(betas)
    same = (plain[:, None] == plain) & ~np.eye(len(plain), dtype=bool)
    assert similarity[same].mean() > similarity[~same].mean() + 0.15


def test_dictionary_holds_every_picture(study, lines):
    path = study / STIMULI / "Scene_Stimuli/Presented_Stimuli/img_dict.npy"
    pictures = np.load(path, allow_pickle=True).item()
    assert set(pictures) == {line.removeprefix("rep_") for line in lines}
    assert all(picture.shape == (256, 256, 3) and picture.dtype == np.uint8 for picture in pictures.values())


def test_the_real_packer_reads_it(study, tmp_path):
    from cadiff.shards.dataset import Dataset

    pack_bold5000(study / "bold5000", tmp_path / "packed")
    packed = Dataset(tmp_path / "packed")
    assert len(packed.ids("test")) == 6
    assert len(packed.ids("train")) + len(packed.ids("val")) == 80 - 24


def test_truth_stands_apart_from_what_packers_read(study):
    with np.load(study / "truth/bold5000/CSI1/simulator_truth.npz") as truth:
        assert truth["LHLOC_repeated_responses"].shape[0] == 6
        assert len(truth["order"]) == 80
    assert not list((study / "bold5000").rglob("*truth*"))
