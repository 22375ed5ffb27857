"""Scratch files have their space before they are used, and what cannot be written or read back is an error."""

import errno
import os

import numpy as np
import pytest

from cadiff.shards.scratch import Scratch, reserve


@pytest.fixture
def descriptor(tmp_path):
    handle = os.open(tmp_path / "scratch", os.O_RDWR | os.O_CREAT)
    yield handle
    os.close(handle)


def refuse(number):
    def refusing(*_):
        raise OSError(number, os.strerror(number))

    return refusing


def without(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)


def unable(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP), raising=False)


@pytest.mark.parametrize("platform", [lambda monkeypatch: None, without, unable])
def test_a_reserved_file_is_on_disk_in_full(descriptor, monkeypatch, platform):
    platform(monkeypatch)
    size = 2 * 1024**2 + 1000
    reserve(descriptor, size)
    told = os.fstat(descriptor)
    assert told.st_size == size and told.st_blocks * 512 >= size
    assert os.pread(descriptor, size + 1, 0) == bytes(size)


def test_a_full_disk_is_an_error_before_anything_is_written(descriptor, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        Scratch(descriptor, 5, 7)
    assert os.fstat(descriptor).st_size == 0


def test_slabs_of_columns_come_back_as_rows_even_if_the_system_takes_and_gives_a_part_at_a_time(
    descriptor, monkeypatch
):
    write, read, calls = os.pwrite, os.preadv, []
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: calls.append("w") or write(file, data[:3], at))
    monkeypatch.setattr(os, "preadv", lambda file, into, at: calls.append("r") or read(file, [into[0][:5]], at))
    values_NV = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    scratch = Scratch(descriptor, 5, 7)
    for start, stop in ((0, 4), (4, 7)):
        scratch.put(start, np.ascontiguousarray(values_NV[:, start:stop]))
    np.testing.assert_array_equal(scratch.take([4, 0, 2]), values_NV[[4, 0, 2]])
    assert calls.count("w") == 5 * (6 + 4) and calls.count("r") == 3 * 6


def test_what_cannot_be_written_is_an_error(descriptor, monkeypatch):
    scratch, write, left = Scratch(descriptor, 2, 4), os.pwrite, [10]

    def filling(file, data, at):
        done = write(file, data[: left[0]], at)
        left[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as told:
        scratch.put(0, np.ones((2, 4), np.float32))
    assert told.value.errno == errno.ENOSPC and left == [0]


def test_what_is_gone_is_not_read_back_as_anything(descriptor):
    scratch = Scratch(descriptor, 2, 4)
    scratch.put(0, np.ones((2, 4), np.float32))
    os.ftruncate(descriptor, 20)
    np.testing.assert_array_equal(scratch.take([0]), np.ones((1, 4)))
    with pytest.raises(OSError, match="a scratch file ends at byte 20, before what was written to it"):
        scratch.take([1])
