"""THINGS-fMRI's files: pickles are never loaded, and what does not fit together is refused by name."""

import pickle
import shutil

import numpy as np
import pytest
from things_world import rewrite

from cadiff.errors import ConfigError, DataError
from cadiff.shards.synthetic.things_files import write_fixed, write_table
from cadiff.shards.things import pack_things


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_names_are_never_loaded(things_copy):
    import h5py

    target = things_copy / "created_by_pickle"
    with h5py.File(things_copy / "sub-01_ResponseData.h5", "r+") as file:
        for key in ("axis0", "block0_items"):
            file["ResponseData"][key][0] = np.frombuffer(pickle.dumps(Evil(target)), dtype=np.uint8)
    assert pack_things(things_copy, things_copy / "out")["samples"]["test"] == 3
    assert not target.exists()


def infinite(betas):
    betas[5, 2] = np.nan
    return betas


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path, betas: write_fixed(path, infinite(betas)), "trial 2 of voxel 5 is nan"),
        (lambda path, betas: write_fixed(path, betas[:, 1:]), r"90 x 26 \(f\).*expected 90 x 27"),
        (lambda path, betas: write_fixed(path, betas[1:]), r"89 x 27 \(f\).*expected 90 x 27"),
        (lambda path, betas: write_fixed(path, betas.astype(int)), r"90 x 27 \(i\).*expected 90 x 27"),
        (lambda path, betas: write_table(path, betas[1:]), r"89 x 27 \(f\).*expected 90 x 27"),
        (lambda path, betas: write_fixed(path, betas, [str(i) for i in range(27)][::-1]), "not named 0 to 26"),
        (lambda path, betas: path.write_bytes(path.read_bytes()[:-3000]), "not a readable HDF5 file"),
        (lambda path, betas: path.write_bytes(b"junk"), "not a readable HDF5 file"),
    ],
)  # fmt: skip
def test_responses_that_do_not_fit_are_refused(things_files, things_copy, spoil, said):
    spoil(things_copy / "sub-01_ResponseData.h5", things_files[1]["sub-01"].copy())
    with pytest.raises(DataError, match=said) as refused:
        pack_things(things_copy, things_copy / "out", roi="all")
    assert "sub-01_ResponseData.h5" in str(refused.value) and "\n" not in str(refused.value)
    assert not list(things_copy.glob("*out*"))


def test_hdf5_that_points_elsewhere_or_holds_no_frame_is_refused(things_files, things_copy):
    import h5py

    path, secret = things_copy / "sub-01_ResponseData.h5", things_copy / "secret.bin"
    betas = things_files[1]["sub-01"]
    betas.tofile(secret)
    with h5py.File(path, "r+") as file:
        del file["ResponseData/block0_values"]
        layout = {"shape": betas.shape, "dtype": "f8", "external": [(str(secret), 0, h5py.h5f.UNLIMITED)]}
        file["ResponseData"].create_dataset("block0_values", **layout)
    with pytest.raises(DataError, match="points to another file"):
        pack_things(things_copy, things_copy / "out")
    write_fixed(things_copy / "other.h5", betas)
    with h5py.File(path, "w") as file:
        file["ResponseData"] = h5py.ExternalLink(str(things_copy / "other.h5"), "ResponseData")
    with pytest.raises(DataError, match="points to another file"):
        pack_things(things_copy, things_copy / "out")
    with h5py.File(path, "w") as file:
        file.create_group("other")
    with pytest.raises(DataError, match=r"0 pandas frames \(other\)"):
        pack_things(things_copy, things_copy / "out")


def first_test(rows):
    return next(row for row in rows if row["trial_type"] == "test")


def one_repeat_more(rows):
    test = first_test(rows)
    train = next(row for row in rows if row["trial_type"] == "train")
    train.update({name: test[name] for name in ("trial_type", "stimulus", "concept")})


def both_trial_types(rows):
    name = first_test(rows)["stimulus"]
    next(row for row in rows if row["trial_type"] == "train").update(stimulus=name, concept=name.split("_")[0])


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("Stimulus", lambda rows: rows[4].update(trial_type="catch"), "line 6: trial_type 'catch'"),
        ("Stimulus", lambda rows: rows[::-1], "line 2: trial_id 26, expected 0"),
        ("Stimulus", lambda rows: rows[0].update(session="one"), "line 2: session: 'one'"),
        ("Stimulus", lambda rows: rows[3].update(stimulus="../../etc/passwd"), "line 5: stimulus: '../../etc/passwd'"),
        ("Stimulus", lambda rows: rows[3].update(concept=".."), "line 5: concept: '..'"),
        ("Stimulus", lambda rows: [row | {"trial_type": "train"} for row in rows], "21 training and 0 test stimuli"),
        ("Stimulus", both_trial_types, "is a training and a test stimulus"),
        ("Stimulus", lambda rows: first_test(rows).update(concept="x"), "a stimulus has one concept"),
        ("Stimulus", one_repeat_more, "4 times; every test stimulus has the same number of repeats"),
        ("Voxel", lambda rows: rows[7].update(V1="0.3"), "line 9: V1: '0.3', expected 0 or 1"),
        ("Voxel", lambda rows: rows[7].update(voxel_id="3"), "voxel_id occurs twice"),
        ("Voxel", lambda rows: rows[7].update(voxel_id="900"), "its voxel_id differ"),
        ("Voxel", lambda rows: rows[7].update(voxel_x="left", V1="1"), "line 9: voxel_x: 'left'"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(things_copy, table, change, said):
    rewrite(things_copy / f"sub-01_{table}Metadata.csv", change)
    with pytest.raises(DataError, match=said) as refused:
        pack_things(things_copy, things_copy / "out", roi=["V1", "V2", "LOC"])
    assert "sub-01_" in str(refused.value) and "\n" not in str(refused.value)


def test_a_stimulus_that_tests_one_subject_and_trains_another_is_refused(things_files, tmp_path):
    shutil.copytree(things_files[0] / "betas_csv", tmp_path, dirs_exist_ok=True)
    swap = {"thing0_04s.jpg": "thing0_04s.jpg.tmp", "thing0_01s.jpg": "thing0_04s.jpg"}
    rewrite(
        tmp_path / "sub-02_StimulusMetadata.csv",
        lambda rows: [row | {"stimulus": swap.get(row["stimulus"], row["stimulus"])} for row in rows],
    )
    with pytest.raises(DataError, match=r"thing0_04s\.jpg is a test stimulus of one subject and a training stimulus"):
        pack_things(tmp_path, tmp_path / "out")


def test_what_is_missing_is_named(things_files, things_copy, tmp_path):
    pictures = shutil.copytree(things_files[0] / "object_images", tmp_path / "pictures")
    (pictures / "thing2/thing2_01s.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 21 pictures are missing, first .*thing2/thing2_01s\.jpg"):
        pack_things(things_copy, things_copy / "out", images=pictures)
    with pytest.raises(ConfigError, match="no such folder"):
        pack_things(things_copy, things_copy / "out", images=tmp_path / "nowhere")
    for option in ({"subjects": ["sub-09"]}, {"normalise": "no"}, {"test": "no"}, {"min_noise_ceiling": -1.0}):
        with pytest.raises(ConfigError):
            pack_things(things_files[0], things_copy / "out", **option)
    with pytest.raises(ConfigError, match=r"no sub-<k>_ResponseData\.h5"):
        pack_things(tmp_path / "pictures", things_copy / "out")
    path = things_copy / "sub-01_VoxelMetadata.csv"
    path.write_text(path.read_text().replace("nc_testset", "ncx"))
    with pytest.raises(DataError, match="no column nc_testset"):
        pack_things(things_copy, things_copy / "out")
    path.unlink()
    with pytest.raises(ConfigError, match=r"sub-01_VoxelMetadata\.csv: missing"):
        pack_things(things_copy, things_copy / "out")
