"""The command line: help that reads, mistakes that end in one line, and nothing half-written."""

import json
import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cadiff.launch.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
COMMAND_NAMES = [
    "demo", "pack", "shards", "train", "ablate", "probe", "sample", "eval",
    "report", "plan", "bench", "convert", "revert", "doctor",
]  # fmt: skip


def test_help_is_instant_and_names_every_command(cadiff):
    code, out, _ = cadiff("--help")
    assert code == 0
    for command in COMMAND_NAMES:
        assert command in out
    loaded = "import sys, cadiff.launch.cli; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() == "[]"
    assert len(COMMANDS) == 13


def test_quiet_is_heard_wherever_it_stands(cadiff):
    for words in (["-q", "plan", "demo_phase1"], ["plan", "demo_phase1", "--quiet"]):
        assert cadiff(*words)[0] == 0
        assert logging.getLogger("cadiff").level == logging.WARNING
    assert cadiff("plan", "demo_phase1")[0] == 0
    assert logging.getLogger("cadiff").level == logging.INFO


def test_the_readme_samples_as_the_demo_does():
    plan = tomllib.loads((ROOT / "configs" / "demo.toml").read_text())["sample"]
    wanted = f"--scheduler {plan['scheduler']} --steps {plan['steps']} --guidance {plan['guidance']:g}"
    assert f"{wanted} --count {plan['samples']} --seed 1`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "train",
        "ablate",
        "sample",
        "eval",
        "report",
        "plan",
        "convert",
        "doctor",
        "pack hcp",
        "pack features",
        "shards verify",
    ],
)
def test_each_command_explains_itself(cadiff, command):
    code, out, _ = cadiff(*command.split(), "--help")
    assert code == 0
    assert len(out.splitlines()) > 8


def test_version(cadiff):
    assert cadiff("--version")[1].startswith("cadiff 0.")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["phase1", "-c", "{config}", "optim.lr=abc"], ["optim.lr", "'abc'", "number"]),
        (["phase1", "-c", "{config}", "optim.learning_rate=1"], ["optim.learning_rate", "unknown key"]),
        (["phase1", "-c", "{config}", "model.widht=1"], ["model.widht", "Did you mean 'width'?"]),
        (["phase1", "-c", "{config}", 'data.shards=["{tmp}/nowhere"]'], ["nowhere"]),
        (["phase1", "-c", "{tmp}/none.toml"], ["none.toml", "no such config"]),
        (["phase7", "-c", "{config}"], ["phase7", "phase1, phase2"]),
        (["phase2", "-c", "{config}"], ["configures phase1"]),
    ],
)
def test_a_mistake_is_one_line_and_no_run_folder(cadiff, tmp_path, tiny_job, args, named):
    config = tiny_job(tmp_path / "job.toml", "phase1")
    args = [arg.format(config=config, tmp=tmp_path) for arg in args]
    code, _, err = cadiff("train", *args, "-o", tmp_path / "run")
    assert code in (2, 3)
    assert err.startswith("cadiff: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1
    for text in named:
        assert text in err
    assert not (tmp_path / "run").exists()


def test_usage_mistakes_exit_2(cadiff):
    assert cadiff("train", "phase1")[0] == 2
    assert cadiff("nonsense")[0] == 2


def test_a_truncated_cifti_is_named_and_nothing_is_written(cadiff, tmp_path):
    from cadiff.shards.synthetic.brain import BrainSpec, simulate

    spec = BrainSpec(hcp_subjects=1, hcp_frames=12, hcp_movie_runs=0)
    simulate(tmp_path / "raw", spec, parts=["hcp"])
    path = next((tmp_path / "raw").rglob("*.dtseries.nii"))
    path.write_bytes(path.read_bytes()[:-1000])
    code, _, err = cadiff("pack", "hcp", tmp_path / "raw" / "hcp", tmp_path / "out")
    assert code == 3
    assert path.name in err
    assert "Traceback" not in err
    assert [item.name for item in tmp_path.iterdir()] == ["raw"]


def test_an_npz_without_its_keys_is_named_and_nothing_is_written(cadiff, tmp_path):
    from cadiff.shards.synthetic.brain import BrainSpec, simulate

    spec = BrainSpec(classes=2, voxels=60, train_images=8, test_images=2, test_repeats=1)
    simulate(tmp_path / "raw", spec, parts=["god"])
    np.savez(tmp_path / "raw" / "god" / "sbj_1.npz", arr_0=np.zeros((8, 60)))
    code, _, err = cadiff("pack", "god", tmp_path / "raw" / "god", tmp_path / "out")
    assert code == 3
    assert "sbj_1.npz" in err
    assert "arr_3" in err
    assert err.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["raw"]


def test_print_config_is_a_config(cadiff, tmp_path, tiny_job):
    config = tiny_job(tmp_path / "job.toml", "phase1")
    code, out, _ = cadiff("train", "phase1", "-c", config, "--print-config", "optim.lr=0.5")
    assert code == 0
    assert "lr = 0.5" in out


def test_plan_counts_what_the_paper_trains(cadiff):
    code, out, _ = cadiff("plan", "phase1_hcp", "--samples", "133560", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["parameters"] == 164_419_600
    assert report["steps"] == 140 * (133_560 // 250)
    stages = report["gib_per_rank"]
    assert stages["ZeRO-3"][3] < stages["ZeRO-2"][3] < stages["ZeRO-1"][3] < stages["ZeRO-0"][3]
    assert "164,419,600 parameters" in cadiff("plan", "phase1_hcp")[1]


def test_shards_info_and_verify(cadiff, tiny_set, tmp_path):
    code, out, _ = cadiff("shards", "info", tiny_set, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["samples"] == {"train": 64, "val": 16, "test": 16}
    assert facts["classes"] == ["red", "green", "blue"]
    assert "subjects" in cadiff("shards", "info", tiny_set)[1]
    assert cadiff("shards", "verify", tiny_set)[0] == 0
    import shutil

    damaged = tmp_path / "set"
    shutil.copytree(tiny_set, damaged)
    shard = next(damaged.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    code, _, err = cadiff("shards", "verify", damaged)
    assert code == 3
    assert shard.name in err


def test_doctor_speaks_json(cadiff):
    report = json.loads(cadiff("doctor", "--json")[1])
    assert report["packages"]["torch"].startswith("2.")
    assert report["paths"]["self-check"] == "kernels agree with their references"
    assert "attention" in cadiff("doctor")[1]


def test_convert_and_report_commands(cadiff, tmp_path, tiny_job):
    import torch

    state = {
        "patch_embed.proj.weight": torch.ones(8, 1, 4),
        "pos_embed": torch.zeros(1, 6, 8),
        "blocks.0.attn.qkv.weight": torch.ones(24, 8),
    }
    torch.save({"model": state}, tmp_path / "p.pth")
    code, out, _ = cadiff("convert", tmp_path / "p.pth", tmp_path / "export")
    assert code == 0
    assert "voxels 20" in out
    run = tmp_path / "run"
    run.mkdir()
    tiny_job(run / "job.toml", "phase1")
    code, _, _ = cadiff("report", run, "-o", tmp_path / "r.html")
    assert code == 0
    assert "has not finished" in (tmp_path / "r.html").read_text()
    assert cadiff("report", tmp_path / "nothing")[0] == 3
