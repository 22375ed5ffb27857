"""The one pickle that is read, a saved dictionary of arrays: nothing in it is called."""

import pickle

import numpy as np
import pytest

from cadiff.errors import DataError
from cadiff.shards.arrays import load_npy_dict


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path):
    target = tmp_path / "created_by_pickle"
    for name, value in (("a", {"p": Evil(target)}), ("b", Evil(target))):
        np.save(tmp_path / name, np.array(value, dtype=object), allow_pickle=True)
        with pytest.raises(DataError, match="not admitted"):
            load_npy_dict(tmp_path / f"{name}.npy")
    assert not target.exists()


def test_other_contents_of_the_dictionary_file_are_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(3))
    np.save(tmp_path / "list.npy", np.array([1, "a"], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array({"a": "b"}, dtype=object), allow_pickle=True)
    good = tmp_path / "good.npy"
    np.save(good, np.array({"a": np.arange(4, dtype=np.uint8)}, dtype=object), allow_pickle=True)
    assert load_npy_dict(good)["a"].tolist() == [0, 1, 2, 3]
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    for name in ("numbers", "list", "text", "cut", "junk", "absent"):
        with pytest.raises(DataError, match=name):
            load_npy_dict(tmp_path / f"{name}.npy")


def test_protocol_two_pickles_written_by_python_2_are_read(tmp_path):
    value = np.empty((), dtype=object)
    value[()] = {"a": np.arange(200, 204, dtype=np.uint8)}
    with open(tmp_path / "old.npy", "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(value, handle, protocol=2)
    assert load_npy_dict(tmp_path / "old.npy")["a"].tolist() == [200, 201, 202, 203]
