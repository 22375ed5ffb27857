"""``cadiff plan data``: formulas checked by hand and against a real pack; ``cadiff plan CONFIG`` works as before."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cadiff.errors import ConfigError
from cadiff.launch.commands.plan_data import PRESETS, PackSpeed, Scan, Study, choose, duration, estimate, raw_bytes

PLAIN = {
    "voxels": 4183, "window": 10, "dtype": "float16", "cores": 1, "read_gbps": 1.0, "samples_per_s_per_gpu": 2000.0,
    "gpus": 8, "shard_mb": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def run_file(write_dtseries, tmp_path_factory):
    """A run of 40 frames whose file holds the vertices of V1 to V4 alone."""
    from cadiff.shards.mmp import roi_columns

    path = tmp_path_factory.mktemp("raw") / "100001_rfMRI_REST1_LR_Atlas.dtseries.nii"
    left, right, columns = write_dtseries.left, write_dtseries.right, roi_columns("VC")
    axis = left[columns[columns < len(left)]] + right[columns[columns >= len(left)] - len(left)]
    values = np.random.default_rng(0).normal(1e4, 50, (40, len(columns)))
    return write_dtseries(path, values, axis=axis)


def test_the_whole_of_hcp_rest_has_its_published_size():
    report = estimate(PRESETS["hcp-rest"], **PLAIN)
    assert (report["runs"], report["frames"], report["samples"]) == (4452, 5_342_400, 534_240)
    assert raw_bytes(1200, 91_282) == 438_782_416  # as such a file is, byte for byte
    assert report["raw_bytes"] == 4452 * 438_782_416
    assert report["packed_bytes"] == pytest.approx(4.5e9, rel=0.01)
    whole = estimate(PRESETS["hcp-rest"], **{**PLAIN, "window": 1})
    assert whole["packed_bytes"] == pytest.approx(44.8e9, rel=0.01)
    assert whole["archive_bytes"] == report["archive_bytes"] == 5_342_400 * 4183 * 2
    assert report["hours"] == pytest.approx(4452 * 1200 * 0.72 / 3600)


def test_pack_time_is_that_of_the_cores_or_of_the_storage():
    study = Study(2, (Scan("a", 1, 100), Scan("b", 3, 50)), 1.0, 1000)
    speed = PackSpeed(0.5, 1e-6, 1e-4, "x")
    options = {**PLAIN, "voxels": 10, "read_gbps": 0.001}
    raw = 2 * raw_bytes(100, 10) + 6 * raw_bytes(50, 10)
    cpu_s = 8 * 0.5 + raw * 1e-6 + (2 * 100 + 6 * 50) * 10 * 1e-4
    one, many = (estimate(study, **{**options, "cores": cores}, speed=speed) for cores in (1, 100))
    assert one["pack_s"] == pytest.approx(cpu_s + raw / 1e6) and one["pack_limit"] == "cores"
    assert many["pack_s"] == pytest.approx(raw / 1e6) and many["pack_limit"] == "storage"
    assert one["cpu_s_per_run"] == pytest.approx(cpu_s / 8)


def test_windows_are_whole_and_widths_follow_the_type():
    study = Study(1, (Scan("a", 1, 1289),), 1.0)
    report = estimate(study, **{**PLAIN, "voxels": 100, "dtype": "int8", "shard_mb": 1})
    assert report["samples"] == 128 and report["packed_bytes"] == 128 * 100 + 2 * 3000 and report["shards"] == 1
    sizes = [estimate(study, **{**PLAIN, "dtype": name})["sample_bytes"] for name in ("float32", "int16", "int8")]
    assert sizes == [4 * 4183, 2 * 4183, 4183]
    assert estimate(study, **PLAIN)["read_bytes_per_s_per_gpu"] == 2000 * 4183 * 2
    assert estimate(study, **PLAIN)["read_bytes_per_s"] == 8 * 2000 * 4183 * 2
    assert estimate(study, **{**PLAIN, "voxels": 91_282, "window": 1})["shards"] == 1


def test_presets_know_the_lengths_of_their_runs():
    every, seven = estimate(PRESETS["hcp-all"], **PLAIN), estimate(PRESETS["hcp-7t"], **PLAIN)
    assert every["frames"] == 1113 * (4 * 1200 + 2 * (405 + 253 + 284 + 316 + 274 + 232 + 176))
    assert seven["frames"] == 184 * (4 * 900 + 921 + 918 + 915 + 901 + 6 * 300) and seven["runs"] == 184 * 14
    assert choose("hcp-rest", 10, 2, 600, 0.5, 64_984) == Study(10, (Scan("REST", 2, 600),), 0.5, 64_984)
    assert choose("hcp-7t", subjects=3) == replace(PRESETS["hcp-7t"], subjects=3)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--preset", "hcp"], "hcp-rest, hcp-all, hcp-7t"),
        (["--preset", "hcp-all", "--frames", "100"], "leave out --runs-per-subject and --frames"),
        (["--dtype", "bfloat16"], "float16, float32"),
        (["--voxels", "91283"], "91,282 grayordinates"),
        (["--window", "1201"], "the longest run has 1200 frames"),
        (["--measure", "none.dtseries.nii"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(cadiff, args, named):
    code, out, err = cadiff("plan", "data", *args)
    assert (code, out, err.count("\n")) == (2, "", 1) and named in err


def test_the_estimate_is_near_a_real_pack(run_file, tmp_path):
    from cadiff.shards.hcp import pack_hcp

    summary = pack_hcp(run_file, tmp_path / "out", window=5, val_fraction=0)
    study = Study(1, (Scan("REST", 1, 40),), 0.72)
    report = estimate(study, **{**PLAIN, "window": 5, "voxels": summary["voxels"]})
    assert sum(summary["samples"].values()) == report["samples"] == 8
    tars = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert tars == pytest.approx(report["packed_bytes"], abs=10_240 + 3000)  # a tar is padded to 10 kB
    kept = sum(path.stat().st_size for path in (tmp_path / "out" / "scans.zarr").rglob("c/*/*"))
    assert kept == report["archive_bytes"]


def test_measuring_uses_the_speed_of_this_machine(cadiff, run_file, tmp_path):
    code, out, _ = cadiff("plan", "data", "--measure", run_file, "--json")
    report = json.loads(out)
    assert code == 0 and list(report["steps"]) == [
        "header", "read ROI", "hash", "z-score", "window average", "float16"
    ]  # fmt: skip
    assert min(report["steps"].values()) > 0 and run_file.name in report["speed"]["source"]
    assert report["speed"]["hash_s_per_byte"] == pytest.approx(report["steps"]["hash"] / (40 * 4183 * 4))
    short = tmp_path / run_file.name
    short.write_bytes(run_file.read_bytes()[:-500])
    assert cadiff("plan", "data", "--measure", short)[0] == 3


def test_the_table_is_aligned(cadiff):
    code, out, _ = cadiff("plan", "data", "--gpus", "4")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 12 and all(line[28:31] == "   " and line[27] != " " for line in lines)
    told = {line[:16].strip(): line[16:28].strip() for line in lines}
    assert told["packed"] == "4.50 GB" and told["runs"] == "4,452" and told["read in all"] == "66.9 MB/s"
    assert [duration(seconds) for seconds in (0.5, 130, 8000, 1e6)] == ["0.5 s", "2.2 min", "2.2 h", "11.6 d"]


def test_a_config_is_still_planned_without_a_sub_command(cadiff):
    direct, spelled = cadiff("plan", "demo_phase1", "--json"), cadiff("plan", "job", "demo_phase1", "--json")
    assert direct[0] == 0 and direct == spelled == cadiff("plan", "--json", "demo_phase1")
    assert cadiff("plan", "demo_phase1", "optim.learning_rate=1")[0] == 2
    assert "no such config" in cadiff("plan", "nowhere.toml")[2]
    text = cadiff("plan", "--help")[1]
    assert "plan CONFIG" in text and "plan data" in text
    assert "--samples" in cadiff("plan", "demo_phase1", "--help")[1]


def test_the_arithmetic_needs_no_torch():
    run = "cli.app(['plan', 'data'], standalone_mode=False)"
    code = f"import sys, cadiff.launch.cli as cli; {run}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_unknown_presets_are_config_errors():
    with pytest.raises(ConfigError, match="use one of"):
        choose("hcp-9t")


def test_the_documented_table_is_what_is_printed(cadiff):
    docs = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text()
    assert f"```\n{cadiff('plan', 'data')[1]}```\n" in docs
