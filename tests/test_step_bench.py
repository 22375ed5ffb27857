"""``cadiff bench step``: every amount of work is trained and timed, lines are fitted, and the loader is part of it."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cadiff import telemetry
from cadiff.config import Phase1Job
from cadiff.distributed import Place
from cadiff.engine import stop_processes
from cadiff.errors import ConfigError
from cadiff.launch import step_bench
from cadiff.launch.cli import app
from cadiff.launch.start import free_port
from cadiff.launch.step_bench import MID, Point, apart, job_at, straight_line, time_steps
from cadiff.launch.step_page import lines

TINY = """
phase = "phase1"
name = "tiny"
[data]
shards = ["none"]
[model]
patch = 4
width = 16
depth = 1
heads = 2
decoder_width = 8
decoder_depth = 1
decoder_heads = 2
[train]
steps = 1
batch = 4
[engine]
zero = 0
precision = "fp32"
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A record of tiny shapes, all measured in this process."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.toml").write_text(TINY)
    asked = ["bench", "step", "--config", str(folder / "tiny.toml"), "--batches", "2,4,8", "--voxels", "32,64"]
    asked += ["--widths", "16,32", "--ranks", "1,999", "--seconds", "0.01", "--json"]
    asked += ["--report", str(folder / "page.html")]
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ["MASTER_PORT"] = str(free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "MEASURING_S", 0.01)
        patch.setattr(step_bench, "apart", lambda ranks, work, *rest: work(Place(), *rest))
        done = CliRunner().invoke(app, asked)
    stop_processes()
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(before)
    assert done.exit_code == 0, done.output
    return SimpleNamespace(page=folder / "page.html", **json.loads(done.stdout[done.stdout.index("{") :]))


def test_one_amount_of_work_varies_at_a_time(told):
    values = {axis: [entry["value"] for entry in entries] for axis, entries in told.sweeps.items()}
    assert values == {"batch": [2, 4, 8], "voxels": [32, 64], "width": [16, 32], "ranks": [1]}
    assert told.base == {"batch": 4, "voxels": 64, "width": 16, "ranks": 1}
    assert told.skipped == [f"999 ranks: {told.machine['cores']} processors here"]
    for axis, entries in told.sweeps.items():
        for entry in entries:
            assert {name: entry[name] for name in told.base} == {**told.base, axis: entry["value"]}


def test_shares_follow_from_times_and_work(told):
    for entry in (entry for entries in told.sweeps.values() for entry in entries):
        assert entry["samples_per_s"] == pytest.approx(entry["batch"] / entry["step_s"])
        assert entry["gflop_per_s"] == pytest.approx(entry["gflop_per_sample"] * entry["samples_per_s"])
        assert entry["share_of_matrix_rate"] == pytest.approx(entry["gflop_per_s"] / entry["matrix_gflop_per_s"])
        assert entry["tokens"] == 1 + entry["voxels"] // 4 and entry["steps"] >= 5 and entry["memory_mb"] >= 0
        assert entry["cores_of_others"] >= 0
    width = told.sweeps["width"]
    assert width[1]["gflop_per_sample"] > 2 * width[0]["gflop_per_sample"]
    assert told.fits["step_s"] == straight_line([(e["value"], e["step_s"]) for e in told.sweeps["batch"]])


def test_the_loader_is_part_of_a_whole_job(told):
    loaded = told.with_loader
    assert 0 <= loaded["data_wait"] < 1 and loaded["steps"] >= 20
    assert loaded["share_of_step_alone"] == pytest.approx(
        loaded["samples_per_s"] / told.sweeps["ranks"][0]["samples_per_s"]
    )


def test_people_get_a_line_for_every_point_and_a_page_with_every_plot(told):
    text = lines(vars(told))
    assert [line.split()[0] for line in text[1:9]] == [*["batch"] * 3, *["voxels"] * 2, *["width"] * 2, "ranks"]
    assert text[-2].startswith("A whole job, loader included") and text[-1].startswith("Not measured: 999 ranks")
    page = told.page.read_text()
    assert page.count("<svg") == 8 and page.count("straight line") == 2 and "Memory over width of the encoder" in page


def test_a_line_is_fitted_with_its_worst_deviation(tmp_path):
    fit = straight_line([(1, 3.0), (2, 5.0), (4, 9.0)])
    assert fit == pytest.approx({"start": 1.0, "slope": 2.0, "r2": 1.0, "worst": 0.0}, abs=1e-9)
    bent = straight_line([(0, 1.0), (1, 1.0), (2, 4.0)])
    assert bent["r2"] == pytest.approx(0.75) and bent["worst"] == pytest.approx(0.5)
    assert straight_line([(4, 1.0)]) == {}


@pytest.mark.parametrize("point,problem", [
    (Point(16, 4192, 100), "--widths 100"), (Point(15, 4192, 128, 2), "--ranks 2 does not divide a batch of 15"),
    (Point(16, 1048, 128), "--voxels 1048 is no multiple of the patch of 16"),
])  # fmt: skip
def test_work_that_cannot_be_cut_so_is_refused(point, problem):
    with pytest.raises(ConfigError, match=problem):
        job_at(Phase1Job.model_validate(MID), point)


def test_numbers_that_are_none_are_refused():
    done = CliRunner().invoke(app, ["bench", "step", "--batches", "4,x"])
    assert done.exit_code != 0 and "expected whole numbers above 0" in str(done.exception)


@pytest.mark.multiprocess
def test_two_ranks_share_a_batch_and_their_rates_add_up(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    from cadiff.config import load_job

    point = Point(4, 64, 16, 2)
    entry = apart(2, time_steps, job_at(load_job(tmp_path / "tiny.toml"), point), point, 0.01)
    assert entry["ranks"] == 2 and entry["samples_per_s"] == pytest.approx(4 / entry["step_s"])
    assert 0 < entry["share_of_matrix_rate"] < 1 and entry["memory_mb"] > 0
