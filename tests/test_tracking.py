"""Reports: metrics.jsonl is whole whatever the mirrors do, and a mirror that fails is told once and left out."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cadiff.config import load_job
from cadiff.tracking import Tracker, read_metrics


class FakeRun:
    """A wandb run, or a TensorBoard writer, that remembers its calls and fails from a certain step on."""

    def __init__(self, fails_at=10**9, **made_with):
        self.fails_at, self.made_with = fails_at, made_with
        self.told, self.shown, self.closed = [], [], False

    def define_metric(self, *_, **__):
        pass

    def log(self, values):
        if values["step"] >= self.fails_at:
            raise RuntimeError("no space left")
        self.told.append(values)

    def add_scalar(self, name, value, step):
        if step >= self.fails_at:
            raise RuntimeError("no space left")
        self.told.append((name, value, step))

    def add_image(self, name, pixels, step, dataformats):
        self.shown.append((name, pixels.shape, step, dataformats))

    def finish(self):
        self.closed = True

    close = finish


@pytest.fixture
def job(tiny_job, tmp_path):
    path = tiny_job(tmp_path / "job.toml", "phase1")
    return lambda *overrides: load_job(path, list(overrides))


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place; its only run appears in ``runs`` once it has been started."""
    module = ModuleType("wandb")
    module.runs, module.fails_at = [], 10**9
    module.Settings, module.Image = SimpleNamespace, lambda pixels: ("picture", pixels.shape)

    def init(**options):
        module.runs.append(FakeRun(module.fails_at, **options))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def board(monkeypatch):
    """A module in TensorBoard's place, with the writers it has made."""
    module = ModuleType("torch.utils.tensorboard")
    module.writers, module.fails_at = [], 10**9

    def make(folder, **options):
        module.writers.append(FakeRun(module.fails_at, folder=folder, **options))
        return module.writers[-1]

    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return module


BOTH = ("track.wandb=offline", "track.tensorboard=true")


def test_without_mirrors_there_is_the_file_alone(job, tmp_path, wandb, board):
    tracker = Tracker(tmp_path, job(), 0)
    tracker.log(4, {"train/loss": 0.5})
    tracker.log_picture(4, "preview", tmp_path / "there is none.png")
    tracker.close()
    assert read_metrics(tmp_path) == [{"step": 4, "train/loss": 0.5}]
    assert wandb.runs == board.writers == []


def test_mirrors_get_numbers_and_pictures(job, tmp_path, wandb, board):
    tracker = Tracker(tmp_path, job(*BOTH), 0)
    tracker.log(4, {"train/loss": 0.5, "note": "not a number"})
    Image.new("L", (5, 3)).save(tmp_path / "000004.png")
    tracker.log_picture(4, "preview", tmp_path / "000004.png")
    tracker.log_picture(8, "preview", np.zeros((3, 5, 3), np.uint8))
    tracker.close()
    (run,), (writer,) = wandb.runs, board.writers
    assert run.told[0] == {"train/loss": 0.5, "step": 4} and run.made_with["mode"] == "offline"
    assert [entry["preview"] for entry in run.told[1:]] == [("picture", (3, 5, 3))] * 2
    assert writer.told == [("train/loss", 0.5, 4)] and writer.made_with["folder"] == str(tmp_path / "tensorboard")
    assert writer.shown == [("preview", (3, 5, 3), 4, "HWC"), ("preview", (3, 5, 3), 8, "HWC")]
    assert run.closed and writer.closed
    assert read_metrics(tmp_path)[0]["note"] == "not a number"


def test_a_mirror_that_fails_is_told_once_and_the_other_goes_on(job, tmp_path, wandb, board, caplog):
    wandb.fails_at = 2
    tracker = Tracker(tmp_path, job(*BOTH), 0)
    for step in range(1, 5):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert caplog.messages == ["wandb stopped mirroring: no space left"]
    assert len(wandb.runs[0].told) == 1 and [step for _, _, step in board.writers[0].told] == [1, 2, 3, 4]


def test_a_missing_package_is_one_line_with_the_remedy(job, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracker = Tracker(tmp_path, job(*BOTH), 0)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert len(caplog.messages) == 2 and len(read_metrics(tmp_path)) == 1
    assert "track.wandb=off" in caplog.messages[0] and "pip install 'cadiff[tensorboard]'" in caplog.messages[1]


def test_a_picture_that_cannot_be_read_costs_no_mirror(job, tmp_path, wandb, board, caplog):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    tracker = Tracker(tmp_path, job(*BOTH), 0)
    for name in ("none.png", "broken.png"):
        tracker.log_picture(1, "preview", tmp_path / name)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert len(caplog.messages) == 2 and all("preview is not shown at step 1" in line for line in caplog.messages)
    assert len(wandb.runs[0].told) == 1 and len(board.writers[0].told) == 1


def test_what_will_be_trained_again_is_dropped_after_a_resume_and_after_going_back(job, tmp_path, board):
    tracker = Tracker(tmp_path, job(BOTH[1]), 0)
    for step in (1, 4, 8, 12):
        tracker.log(step, {"train/loss": float(step)})
    tracker.go_back(8)
    tracker.log(10, {"train/loss": 10.0})
    tracker.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 4, 8, 10]
    Tracker(tmp_path, job(BOTH[1]), 4).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 4]
    assert [writer.made_with["purge_step"] for writer in board.writers] == [1, 9, 5]
    assert all(writer.closed for writer in board.writers)


def test_a_last_line_cut_by_a_kill_is_left_out(job, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    Tracker(tmp_path, job(), 5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.0}\n'


def test_real_tensorboard_reads_what_was_mirrored(job, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra cadiff[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    tracker = Tracker(tmp_path, job(BOTH[1]), 0)
    for step in (1, 4, 8):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.go_back(4)
    tracker.log(6, {"train/loss": 0.25})
    tracker.log_picture(6, "preview", np.full((4, 6, 3), 128, np.uint8))
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (4, 0.25), (6, 0.25)]
    (picture,) = events.Images("preview")
    assert (picture.step, picture.width, picture.height) == (6, 6, 4)
