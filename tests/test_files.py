"""Files are whole or absent."""

import pytest

from cadiff.errors import DataError
from cadiff.files import memory_bytes, read_json, sha256, whole_file, write_json, write_text


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def breaks():
        with whole_file(path) as beside:
            beside.write_text("half")
            raise OSError("disk unplugged")

    with pytest.raises(OSError, match="unplugged"):
        breaks()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_ordered_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert list(read_json(tmp_path / "a.json")) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "n.json", {"x": float("nan")})
    assert not (tmp_path / "n.json").exists()


def test_missing_and_damaged_json_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad.json: not readable as JSON"):
        read_json(tmp_path / "bad.json")


def test_sha256_of_a_known_text(tmp_path):
    write_text(tmp_path / "abc", "abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_the_smallest_limit_on_memory_counts(tmp_path):
    def tell(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    most = memory_bytes(tmp_path)  # nothing is said there: the machine's
    assert most > 10**8
    tell("proc/self/cgroup", "0::/job/step\n")
    tell("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert memory_bytes(tmp_path) == most
    tell("sys/fs/cgroup/job/memory.max", "4000000\n")  # a scheduler limits the job, not the step
    assert memory_bytes(tmp_path) == 4_000_000
    tell("proc/self/cgroup", "7:cpu,memory:/slurm/job\n3:devices:/slurm\n")
    tell("sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "3000000\n")
    tell("sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))  # version 1 says "no limit" so
    assert memory_bytes(tmp_path) == 3_000_000
