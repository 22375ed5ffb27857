"""A stage is done once, and again when its inputs or its result change."""

from pathlib import Path

import pytest

from cadiff.errors import ConfigError, DataError
from cadiff.files import sha256
from cadiff.launch.stages import Ledger, Stage


@pytest.fixture
def bench(tmp_path):
    calls = []

    def stage(inputs, fail=False):
        folder = tmp_path / "work"

        def work():
            calls.append(inputs)
            folder.mkdir(exist_ok=True)
            if fail:
                (folder / "half").write_text("half")
                raise KeyboardInterrupt
            (folder / "result").write_text(str(inputs) + str((folder / "half").exists()))

        return Stage("s", inputs, folder, work, lambda: _digest(folder / "result"))

    def run(*args, **kwargs):
        return Ledger(tmp_path / "ledger").run(stage(*args, **kwargs), said.append)

    said = []
    run.calls, run.said, run.folder = calls, said, tmp_path / "work"
    return run


def _digest(path: Path) -> str:
    if not path.exists():
        raise DataError("absent")
    return sha256(path)


def test_same_inputs_run_once(bench):
    assert bench({"a": 1}) == bench({"a": 1})
    assert len(bench.calls) == 1
    assert bench.said == ["s: done before, unchanged"]


def test_other_inputs_start_over_in_an_empty_folder(bench):
    bench({"a": 1})
    (bench.folder / "half").write_text("left over")
    bench({"a": 2})
    assert (bench.folder / "result").read_text() == "{'a': 2}False"


def test_a_damaged_or_missing_result_is_made_again(bench):
    bench({"a": 1})
    (bench.folder / "result").write_text("changed by hand")
    bench({"a": 1})
    (bench.folder / "result").unlink()
    bench({"a": 1})
    assert len(bench.calls) == 3


def test_files_that_no_stage_wrote_are_never_removed(bench):
    bench.folder.mkdir()
    (bench.folder / "my_scan.nii").write_text("precious")
    with pytest.raises(ConfigError, match="not made here"):
        bench({"a": 1})
    assert (bench.folder / "my_scan.nii").read_text() == "precious"


def test_forgetting_deletes_what_stages_wrote_and_nothing_else(bench, tmp_path):
    bench({"a": 1})
    (tmp_path / "thesis").mkdir()
    Ledger(tmp_path / "ledger").forget({"s": bench.folder, "t": tmp_path / "thesis"})
    assert not bench.folder.exists() and (tmp_path / "thesis").is_dir()
    bench({"a": 1})
    assert len(bench.calls) == 2


def test_a_killed_stage_continues_in_its_folder(bench):
    with pytest.raises(KeyboardInterrupt):
        bench({"a": 1}, fail=True)
    bench({"a": 1})
    assert (bench.folder / "result").read_text() == "{'a': 1}True"
