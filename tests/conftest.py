"""A tiny world that many tests share: one packed set of 48 coloured squares seen by two people."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """Only `-m gpu` sees GPUs: the other tests say what two ranks on a CPU do."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Files whose tests launch jobs or compile kernels, longest first. Run side by side, the others fill up what they leave.
LONGEST = [
    "test_demo.py", "test_triton.py", "test_train.py", "test_train_options.py", "test_drill.py", "test_zero_stages.py",
    "test_bad_steps.py", "test_similarity_ranks.py",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the longest files, and skip what needs a GPU where there is none."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _log_as_at_the_start():
    """A test that ran the command line with --quiet does not silence the next one's log."""
    log = logging.getLogger("cadiff")
    before = log.level
    yield
    log.setLevel(before)


TINY_JOB = """
phase = "{phase}"
name = "tiny"
seed = 3
[data]
shards = ["{shards}"]
image_size = 16
[train]
steps = 12
batch = 8
log_every = 4
save_every = 4
val_every = 4
[optim]
lr = 3e-3
[engine]
precision = "fp32"
[track]
wandb = "off"
"""

TINY_FMRI = """
[model]
patch = 4
width = 16
depth = 2
heads = 2
decoder_width = 8
decoder_depth = 1
decoder_heads = 2
"""


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """A packed set: 2 subjects with 30 and 27 voxels, 48 stimuli of 3 classes; 32 train, 8 val, 8 test each."""
    from cadiff.shards.pictures import encode_png
    from cadiff.shards.protocol import pack_folder
    from cadiff.shards.record import make_records, silent

    rng = np.random.default_rng(0)
    colours = rng.integers(40, 255, (3, 3))
    names = [f"s{i:02d}" for i in range(48)]
    split = ["train"] * 32 + ["val"] * 8 + ["test"] * 8
    folder = tmp_path_factory.mktemp("tiny") / "set"

    def fill(pack):
        pack.split_by = "stimulus"
        pack.declare("label", ["red", "green", "blue"])
        for subject, voxels in (("A", 30), ("B", 27)):
            weights = rng.standard_normal((3, voxels))
            signals = np.eye(3)[np.arange(48) % 3] @ weights + 0.3 * rng.standard_normal((48, voxels))
            labels = [["red", "green", "blue"][i % 3] for i in range(48)]
            pack.add(make_records(subject, "run1", signals.astype(np.float32), split, names, labels))
        for i, name in enumerate(names):
            pixels = np.zeros((16, 16, 3), np.uint8)
            pixels[2 + i % 5 : 12, 3:13] = colours[i % 3]
            pixels[0, 0] = i  # no two stimuli are one picture: that would be a leak
            pack.picture(name, encode_png(pixels), "png")

    pack_folder(folder, "table", {"tiny": 1}, {}, fill, silent)
    return folder


@pytest.fixture(scope="session")
def tiny_job(tiny_set):
    """Write a tiny job's TOML to a path and return that."""

    def write(path: Path, phase: str, text: str = TINY_FMRI) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TINY_JOB.format(phase=phase, shards=tiny_set) + text)
        return path

    return write


@pytest.fixture(scope="session")
def warm():
    """Ranks that start at once, for tests of what ranks do; test_train.py tests how they are started."""
    from warm_ranks import WarmRanks

    ranks = WarmRanks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Path:
    """The folder of three tiny phases on pictures, which nobody changes."""
    from diffusion_world import build_chain

    return build_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def cadiff(capsys):
    """Run one command in this process; returns exit code, stdout, stderr."""
    from cadiff.launch.cli import main

    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def write_dtseries():
    """Write a cortical dense time series of HCP's 59,412 vertices: (path, frames (T, 59412), tr_s) -> path."""
    import nibabel as nib
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis

    from cadiff.shards.mmp import parcellation

    table = parcellation()
    left = BrainModelAxis.from_surface(table.vertex_C[: table.left], 32492, "CortexLeft")
    right = BrainModelAxis.from_surface(table.vertex_C[table.left :], 32492, "CortexRight")

    def write(path: Path, frames: np.ndarray, tr_s: float = 0.72, axis=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        axes = (SeriesAxis(0, tr_s, len(frames)), left + right if axis is None else axis)
        image = nib.Cifti2Image(frames.astype(np.float32), header=axes)
        image.update_headers()
        nib.save(image, path)
        return path

    write.left, write.right = left, right
    return write
