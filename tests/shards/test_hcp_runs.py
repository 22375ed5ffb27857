"""Runs are found in every layout that HCP's files come in; who goes where is decided by family."""

import os
from pathlib import Path

import numpy as np
import pytest
from hcp_world import CLEAN

from cadiff.errors import ConfigError, DataError
from cadiff.shards.hcp_runs import find_runs
from cadiff.shards.hcp_series import Moments, average, spread_windows, whole_windows
from cadiff.shards.hcp_split import decide, read_families, read_split, read_subjects
from cadiff.shards.voxels import padded_width, wrap_pad


def touch(root, subject, run, *versions):
    folder = root / subject / "MNINonLinear" / "Results" / run
    folder.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (folder / f"{run}{version}.dtseries.nii").write_bytes(b"")


@pytest.fixture
def release(tmp_path):
    """3T and 7T runs by the release's names."""
    touch(tmp_path, "100610", "rfMRI_REST1_LR", "_Atlas", "_Atlas_MSMAll", CLEAN, "_Atlas_hp2000_clean")
    touch(tmp_path, "100610", "tfMRI_WM_RL", "_Atlas_MSMAll", "_Atlas", "_Atlas_hp200_s4")
    touch(tmp_path, "100610", "rfMRI_REST1_7T_PA", CLEAN, "_Atlas_1.6mm_MSMAll_hp2000_clean", "_Atlas_1.6mm")
    touch(tmp_path, "100610", "tfMRI_MOVIE2_7T_PA", "_Atlas_1.6mm_MSMAll_hp2000_clean")
    touch(tmp_path, "100206", "rfMRI_REST1_LR", "_Atlas_MSMAll")
    return tmp_path


def test_the_cleanest_2_mm_version_of_a_run_is_taken(release):
    found = [(run.subject, run.run, run.version, run.session) for run in find_runs(release).runs]
    assert found == [
        ("100206", "rfMRI_REST1_LR", "_Atlas_MSMAll", "REST1"),
        ("100610", "rfMRI_REST1_7T_PA", CLEAN, "7T"),
        ("100610", "rfMRI_REST1_LR", CLEAN, "REST1"),
        ("100610", "tfMRI_MOVIE2_7T_PA", "_Atlas_1.6mm_MSMAll_hp2000_clean", "7T"),
        ("100610", "tfMRI_WM_RL", "_Atlas_MSMAll", "3T"),
    ]


def test_a_version_can_be_asked_for_and_runs_without_it_are_told(release):
    study = find_runs(release, version="_Atlas_MSMAll")
    assert [(run.subject, run.run) for run in study.runs] == [
        ("100206", "rfMRI_REST1_LR"),
        ("100610", "rfMRI_REST1_LR"),
        ("100610", "tfMRI_WM_RL"),
    ]
    assert {run.version for run in study.runs} == {"_Atlas_MSMAll"}
    assert study.dropped[0][0] == "100610/rfMRI_REST1_7T_PA" and f"only {CLEAN}" not in study.dropped[0][0]
    assert len(find_runs(release, version="_Atlas*_clean").runs) == 3


def test_runs_and_subjects_can_be_chosen(release):
    assert len(find_runs(release, None, ["tfMRI*", "rfMRI_REST9*"]).runs) == 2
    told = "no subject '98' here, nor 1 others of those asked for; there are 100206, 100610"
    with pytest.raises(ConfigError, match=told):
        find_runs(release, ["100610", "99", "98"])
    with pytest.raises(ConfigError, match="no runs of subject 100206"):
        find_runs(release, ["100206", "100610"], "tfMRI*")
    study = find_runs(release, ["100610", "99"], skip_absent=True)
    assert study.dropped == [("99", "no run of this subject is there")]
    with pytest.raises(ConfigError, match="5 runs are there"):
        find_runs(release, None, "nothing*")
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs(release / "absent")


def test_one_subjects_folder_and_unzipped_packages_are_understood(release, tmp_path, monkeypatch):
    names = [(run.subject, run.name) for run in find_runs(release / "100206").runs]
    assert names == [("100206", "MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll.dtseries.nii")]
    monkeypatch.chdir(release / "100206")
    assert [run.subject for run in find_runs(Path()).runs] == ["100206"]
    packages = tmp_path / "zip"
    touch(packages / "100307_3T_tfMRI_MOTOR_preproc", "100307", "tfMRI_MOTOR_LR", "_Atlas_MSMAll")
    touch(packages / "100307_3T_rfMRI_REST1_fix", "100307", "rfMRI_REST1_LR", CLEAN)
    touch(packages / "100307_3T_rfMRI_REST1_preproc", "100307", "rfMRI_REST1_LR", "_Atlas_MSMAll")
    assert [(run.subject, run.run, run.version) for run in find_runs(packages).runs] == [
        ("100307", "rfMRI_REST1_LR", CLEAN),
        ("100307", "tfMRI_MOTOR_LR", "_Atlas_MSMAll"),
    ]


def test_flat_folders_and_bids_names_are_understood(tmp_path):
    for name in (
        "100307_rfMRI_REST1_LR_Atlas_MSMAll",
        "100307_rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean",
        "sub-X_ses-func01_task-a",
    ):
        (tmp_path / f"{name}.dtseries.nii").write_bytes(b"")
    runs = find_runs(tmp_path).runs
    assert [(run.subject, run.run, run.session) for run in runs] == [
        ("100307", "rfMRI_REST1_LR", "REST1"),
        ("sub-X", "ses-func01_task-a", "func01"),
    ]
    assert runs[0].name == "100307_rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"


def test_links_without_contents_are_told_not_packed(release):
    run = release / "100610/MNINonLinear/Results/tfMRI_WM_RL/tfMRI_WM_RL_Atlas_MSMAll.dtseries.nii"
    run.unlink()
    os.symlink("nowhere", run)
    study = find_runs(release, ["100610"], "tfMRI_WM*")
    assert [found.version for found in study.runs] == ["_Atlas"]
    assert study.dropped == [
        (
            "*.dtseries.nii",
            f"1 files skipped, first {run.relative_to(release)}: links to contents that are not here; fetch them first",
        )
    ]


def test_lists_of_subjects_come_in_many_forms(tmp_path):
    path = tmp_path / "ids"
    path.write_text('                           PRE 100206/\n100307\n\n# a note\nsubject\n"100408",train\n100307\n')
    assert read_subjects(path) == ["100206", "100307", "100408"]
    path.write_text("\n")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no subjects|not a readable text file"):
            read_subjects(wrong)


def test_relatives_share_any_parent_or_family(tmp_path):
    path = tmp_path / "restricted.csv"
    path.write_text(
        '"Subject","Age_in_Yrs","ZygosityGT","Family_ID","Mother_ID","Father_ID"\n'
        "3,30,MZ,11_21,11,21\n2,30,MZ,11_21,11,21\n5,29, ,11_22,11,22\n4,30, ,12_22,12,22\n"
        "1,31, ,13_0,13,0\n6,31,,,,0\n"
    )
    # 5 shares the mother of 2 and 3, and the father of 4; unknown fathers make nobody related.
    assert read_families(path) == {"1": "1", "2": "2", "3": "2", "4": "2", "5": "2", "6": "6"}
    path.write_text("subject,family\na,0\nb,0\nc,1\n")
    assert read_families(path) == {"a": "a", "b": "a", "c": "c"}
    for text in ("Subject,Age\n1,2\n", "Who,Family_ID\n1,2\n", "Subject,Family_ID\n1\n", ""):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"restricted\.csv"):
            read_families(path)


def test_whole_families_are_held_out():
    people = [f"{number:03d}" for number in range(200)]
    families = {name: f"{int(name) // 4 * 4:03d}" for name in people[:160]}
    sides = decide(people, 0.2, 0, families)
    for family in set(families.values()):
        assert len({sides.split_of[name] for name in people[:160] if families[name] == family}) == 1
    held = [name for name in people if sides.split_of[name] == "val"]
    assert len({families.get(name, name) for name in held}) == 16 and sides.tail == 0  # of 80 families
    alone = decide(people, 0.2, 0)
    assert alone.split_of == decide(people, 0.2, 0, {name: name for name in people}).split_of
    assert decide(["1", "2"], 0.2, 0, {"1": "1", "2": "1"}).tail == 0.2  # one family: nobody can be held out
    with pytest.raises(ConfigError, match="not one of the 200 subjects"):
        decide(people, 0.2, 0, {"sub-001": "x"})


def test_a_split_file_names_every_subject_once(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("Subject,Split\n1,Train\n2,val\n2,val\n")
    assert read_split(path) == {"1": "train", "2": "val"}
    with pytest.raises(ConfigError, match="no line for subject 3 and 1 others"):
        decide(["1", "3", "4"], 0.1, 0, None, read_split(path))
    for text, message in (
        ("subject,split\n1,train\n1,val\n", "in train and in val"),
        ("subject,split\n1,dev\n", "split 'dev'"),
        ("subject,side\n1,val\n", "expected subject and split"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_split(path)


def test_windows_are_cut_like_array_split():
    for frames in (10, 19, 47, 1200, 1209, 405):
        expected = [len(part) for part in np.array_split(np.arange(frames), frames // 10)]
        parts = spread_windows(frames, 10)
        assert [part.frames for part in parts for _ in range(part.count)] == expected
        assert [part.start for part in parts] == [0, parts[0].count * parts[0].frames][: len(parts)]
        (whole,) = whole_windows(frames, 10)
        assert (whole.start, whole.count, whole.frames) == (0, frames // 10, 10)
    with pytest.raises(DataError, match="9 frames"):
        spread_windows(9, 10)


@pytest.mark.parity
def test_spread_windows_and_padded_statistics_are_the_papers(dataprep, dataprep_widths):
    meta, arrays = dataprep
    cases = {width: (arrays[f"voxts.{width}.in"], arrays[f"voxts.{width}.out"]) for width in dataprep_widths}
    subjects = meta["hcp"]["subject_order_used"]
    each = len(arrays["hcp.data"]) // len(subjects)
    for place, subject in enumerate(subjects):
        regions = np.concatenate([arrays[f"hcp.{subject}.V{number}"] for number in (1, 2, 3, 4)], axis=1)
        cases[subject] = (regions, arrays["hcp.data"][each * place : each * (place + 1), 0])
    assert len(dataprep_widths) >= 1 and len(cases) == len(dataprep_widths) + len(subjects)
    for frames_TV, expected_NW in cases.values():
        windows_NV = average(frames_TV.T, spread_windows(len(frames_TV), 10))
        padded_NW = wrap_pad(windows_NV, padded_width(frames_TV.shape[1], 16, legacy_pad=True))
        moments = Moments()
        moments.add(padded_NW)
        np.testing.assert_allclose(moments.stats("s").apply(padded_NW), expected_NW, atol=3e-6)
