"""The entry point: same bytes from the same specification, restarts, refusals, progress and markers."""

import json
import subprocess
import sys

import numpy as np
import pytest
from packed_folder import contents
from PIL import Image
from pydantic import ValidationError

from cadiff.errors import ConfigError
from cadiff.shards.synthetic.brain import PARTS, BrainSpec, simulate, spec_hash


def test_the_same_specification_gives_the_same_bytes_in_any_order(study, tiny_spec, tmp_path):
    for part in reversed(PARTS):
        simulate(tmp_path, tiny_spec, [part])
    assert contents(tmp_path) == contents(study)


def test_another_process_writes_the_same_bytes(study, tiny_spec, tmp_path):
    code = (
        "import sys; from cadiff.shards.synthetic.brain import BrainSpec, simulate;"
        "simulate(sys.argv[1], BrainSpec.model_validate_json(sys.argv[2]), ['god', 'bold5000'])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), tiny_spec.model_dump_json()], check=True)
    expected = {name: value for name, value in contents(study).items() if "hcp" not in name and "images/" not in name}
    assert contents(tmp_path) == expected


def test_another_seed_gives_other_data(study, tiny_spec, tmp_path):
    simulate(tmp_path, tiny_spec.model_copy(update={"seed": 6}), ["god"])
    with np.load(tmp_path / "god/sbj_1.npz") as other, np.load(study / "god/sbj_1.npz") as scan:
        assert not np.array_equal(other["arr_3"], scan["arr_3"])
        assert not np.array_equal(other["arr_4"], scan["arr_4"])


def test_folders_are_returned_and_progress_is_told(tiny_spec, tmp_path):
    told = []
    folders = simulate(tmp_path, tiny_spec, ["images", "god"], progress=lambda *call: told.append(call))
    assert folders == {"images": tmp_path / "images", "god": tmp_path / "god"}
    assert told == [*(("images", i, 6) for i in range(1, 7)), ("god", 1, 2), ("god", 2, 2)]


def test_extra_pictures_lie_in_class_folders_and_are_not_stimuli(study):
    paths = sorted((study / "images").rglob("*.jpg"))
    assert len(paths) == 6
    assert {path.parent.name for path in paths} == {"ball", "bird", "boat", "box"}
    with np.load(study / "god/images_256.npz") as opened:
        stimuli = np.concatenate([opened["train_images"], opened["test_images"]]).astype(int)
    for path in paths:
        picture = np.asarray(Image.open(path)).astype(int)
        assert picture.shape == (256, 256, 3)
        assert np.abs(stimuli - picture).mean(axis=(1, 2, 3)).min() > 3


def test_a_finished_part_is_left_alone_and_a_lost_file_is_made_again(tiny_spec, tmp_path):
    simulate(tmp_path, tiny_spec, ["god"])
    path = tmp_path / "god/sbj_1.npz"
    before, born = path.read_bytes(), path.stat().st_mtime_ns
    told = []
    simulate(tmp_path, tiny_spec, ["god"], progress=lambda *call: told.append(call))
    assert told == []
    assert path.stat().st_mtime_ns == born
    path.unlink()
    simulate(tmp_path, tiny_spec, ["god"])
    assert path.read_bytes() == before


def test_a_part_killed_half_way_has_no_marker_and_is_made_again(study, tiny_spec, tmp_path):
    class Killed(Exception):
        pass

    def kill(part, done, total):
        if done == 1:
            raise Killed

    with pytest.raises(Killed):
        simulate(tmp_path, tiny_spec, ["god"], progress=kill)
    assert not (tmp_path / "god/.simulated.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ConfigError, match="unfinished"):
        simulate(tmp_path, tiny_spec.model_copy(update={"seed": 6}), ["god"])
    simulate(tmp_path, tiny_spec, ["god"])
    expected = {name: value for name, value in contents(study).items() if name.startswith(("god/", "truth/god"))}
    assert contents(tmp_path) == expected


def test_the_marker_names_every_file_with_its_size(study, tiny_spec):
    for part in PARTS:
        marker = json.loads((study / part / ".simulated.json").read_text())
        assert marker["identity"] == spec_hash(tiny_spec, "")
        assert BrainSpec(**marker["spec"]) == tiny_spec
        for name, size in marker["files"].items():
            assert (study / name).stat().st_size == size
        on_disk = {str(path.relative_to(study)) for path in (study / part).rglob("*") if path.is_file()}
        assert on_disk - set(marker["files"]) == {f"{part}/.simulated.json"}


def test_files_of_somebody_else_are_never_overwritten(tiny_spec, tmp_path):
    (tmp_path / "god").mkdir()
    (tmp_path / "god/sbj_1.npz").write_bytes(b"years of work")
    with pytest.raises(ConfigError, match="did not write"):
        simulate(tmp_path, tiny_spec, ["god"])
    assert (tmp_path / "god/sbj_1.npz").read_bytes() == b"years of work"


def test_another_study_in_the_folder_is_refused(study, tiny_spec):
    with pytest.raises(ConfigError, match="another simulated study"):
        simulate(study, tiny_spec.model_copy(update={"snr": 0.5}), ["god"])


def test_an_unknown_part_is_refused(tiny_spec, tmp_path):
    with pytest.raises(ConfigError, match="'nsd'"):
        simulate(tmp_path, tiny_spec, ["god", "nsd"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"classes": 1}, {"classes": 13}, {"snr": 0.0}, {"colour": 3}, {"bold_trials": 60, "bold_repeated": 20}]
)
def test_an_impossible_specification_is_refused(wrong):
    with pytest.raises(ValidationError):
        BrainSpec(**wrong)


def test_the_identity_depends_on_every_key_and_on_the_photos_not_on_their_path(tiny_spec):
    known = {spec_hash(tiny_spec, ""), spec_hash(tiny_spec, "photos")}
    numbers = {key: value for key, value in tiny_spec.model_dump().items() if key != "photos"}
    for key, value in numbers.items():
        known.add(spec_hash(tiny_spec.model_copy(update={key: value + 1}), ""))
    assert len(known) == 2 + len(numbers)
    assert spec_hash(tiny_spec.model_copy(update={"photos": "/elsewhere"}), "photos") in known
