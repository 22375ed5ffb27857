"""A config is read once, completely, and every mistake in it is named."""

from pathlib import Path

import pytest

from cadiff.config import JOBS, dump_toml, load_job, parse_override
from cadiff.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# demo.toml is a study, and ablation_*.toml are grids of jobs.
SHIPPED = sorted(
    path for path in CONFIGS.glob("*.toml") if path.stem != "demo" and not path.stem.startswith("ablation_")
)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('phase = "phase1"\nname = "x"\n[data]\nshards = ["a"]\n[train]\nsteps = 5\nbatch = 8\n')
    return path


def test_overrides_win_and_keep_their_types(tiny):
    job = load_job(tiny, ["optim.lr=1e-3", "engine.offload=true", 'data.shards=["b", "c"]', "name=y"])
    assert job.optim.lr == 1e-3
    assert job.engine.offload is True
    assert job.data.shards == ["b", "c"]
    assert job.name == "y"


def test_a_resolved_job_reads_back_equal(tiny):
    job = load_job(tiny, ["engine.deepspeed.zero_optimization={overlap_comm = true}", "mask.focus_range=[0, 1500]"])
    tiny.write_text(dump_toml(job))
    assert load_job(tiny) == job


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lr=abc", ["optim.lr=abc", "optim.lr", "'abc'", "number"]),
        ("optim.ler=1", ["optim.ler", "Did you mean 'lr'?"]),
        ("trian.steps=4", ["trian", "Did you mean 'train'?"]),
        ("engine.offload=1", ["engine.offload", "boolean"]),
        ("engine.offload=False", ["engine.offload", "boolean"]),
        ("engine.zero=4", ["engine.zero", "4"]),
        ("optim.lr=-1", ["optim.lr", "greater than 0"]),
        ("train.epochs=3", ["exactly one of steps and epochs"]),
        ("train.batch=true", ["train.batch", "integer"]),
        ("optim.lr", ["section.key=value"]),
        ("name.x=1", ["name", "not a section"]),
        ("data.split=test", ["data.split", "train"]),
    ],
)
def test_each_mistake_names_key_value_and_remedy(tiny, override, named):
    with pytest.raises(ConfigError) as problem:
        load_job(tiny, [override])
    for text in named:
        assert text in str(problem.value)


def test_a_mistake_in_the_file_names_the_file(tiny):
    tiny.write_text(tiny.read_text() + "\n[optim]\nlr = 1e-3\nmomentum = 0.9\n")
    with pytest.raises(ConfigError, match=r"job.toml: unknown key 'optim.momentum'"):
        load_job(tiny)


def test_missing_file_broken_file_and_wrong_phase(tiny, tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_job(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("phase = ")
    with pytest.raises(ConfigError, match=r"broken.toml: not a readable TOML"):
        load_job(tmp_path / "broken.toml")
    with pytest.raises(ConfigError, match="configures phase1, but phase2"):
        load_job(tiny, phase="phase2")
    with pytest.raises(ConfigError, match="phase = 'phase9'"):
        load_job(tiny, ["phase=phase9"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_headed_by_their_command(path):
    job = load_job(path)
    assert job.name == path.stem
    assert job.phase in JOBS
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("cadiff train" in line or "launch/worker.py" in line for line in header)
    assert "xpect" in " ".join(header) or "demo" in path.stem


def test_the_papers_settings_are_what_the_paper_says():
    job = load_job(CONFIGS / "phase1_hcp.toml")
    assert (job.train.batch, job.train.epochs, job.mask.ratio) == (250, 140, 0.75)
    assert (job.loss.self_contrast, job.loss.cross_contrast, job.loss.temperature) == (1.0, 0.5, 0.1)
    tuned = load_job(CONFIGS / "phase2_god.toml")
    assert (tuned.loss.fmri, tuned.loss.image, tuned.loss.fmri_mask, tuned.loss.image_mask) == (0.25, 1.5, 0.75, 0.5)


def test_override_values_are_toml_or_text():
    assert parse_override("a.b=[1, 2]") == (("a", "b"), [1, 2])
    assert parse_override("a=runs/x") == (("a",), "runs/x")
    assert parse_override("a=") == (("a",), "")
