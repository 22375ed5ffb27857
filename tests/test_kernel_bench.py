"""``cadiff bench kernels``: every contender is timed, memory is counted, and what is printed is what was measured."""

import json

import pytest
from typer.testing import CliRunner

from cadiff.launch.cli import app
from cadiff.launch.kernel_bench import lines


@pytest.fixture(scope="module")
def told():
    asked = ["bench", "kernels", "--batch", "2", "--sizes", "2048", "--features", "32", "--rounds", "1", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_every_kernel_stands_beside_what_it_replaces(told):
    assert told["patch_embed"]["median_ms"].keys() == {"convolve and gather", "live"}
    assert [(entry["batch"], entry["symmetric"]) for entry in told["similarity"]] == [(2048, False), (2048, True)]
    for entry in (told["patch_embed"], told["mask"], *told["similarity"]):
        for name, ratio in entry["times_of_live"].items():
            assert ratio == pytest.approx(entry["median_ms"][name] / entry["median_ms"]["live"], rel=0.01)
    assert told["live"]["kernels"] in ("torch", "triton") and told["machine"]["versions"]["torch"]


def test_memory_is_counted_beyond_inputs_and_gradients(told):
    for entry in told["similarity"]:
        dense, live = entry["peak_mib"]["dense"], entry["peak_mib"]["live"]
        assert dense > 16  # at least the whole matrix of 2,048 x 2,048
        assert entry["memory_ratio"] == pytest.approx(live / dense)


def test_people_get_a_line_for_every_measurement(told):
    text = lines(told)
    assert len(text) == 5
    assert text[-1].startswith("loss, 2,048 x 32, symmetric") and "dense" in text[-1] and "x);" in text[-1]


def test_sizes_that_are_no_batches_are_refused():
    done = CliRunner().invoke(app, ["bench", "kernels", "--sizes", "1,x"])
    assert done.exit_code != 0 and "expected batches of 2 or more" in str(done.exception)
