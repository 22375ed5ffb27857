"""A tiny pair of networks for phase 2, a ViT-MAE to start its image branch from, and training by one rank."""

import json
import os

import torch
from safetensors.torch import save_file

from cadiff.config import ImageModel
from cadiff.errors import ConfigError, DataError
from cadiff.models.image_mae import ImageMae

IMAGE = {
    "patch": 4, "width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "decoder_width": 8, "decoder_depth": 1,
    "decoder_heads": 2, "decoder_mlp_width": 12,
}  # fmt: skip
TINY_PAIR = """
[model]
patch = 4
width = 16
depth = 2
heads = 2
decoder_width = 8
decoder_depth = 1
decoder_heads = 2
[cross]
layers = 1
[image]
""" + "".join(f"{key} = {value}\n" for key, value in IMAGE.items())

# Under ZeRO-3: every tensor is split however small, and none stays whole longer than its module's forward.
ALL_SPLIT = [
    f"engine.deepspeed.zero_optimization.stage3_{key}=0"
    for key in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
]


def write_vit(folder, **changes):
    """A pre-trained ViT-MAE as Hugging Face saves it; ``changes`` go into its config.json only."""
    folder.mkdir(parents=True)
    torch.manual_seed(42)
    model = ImageMae(ImageModel(**IMAGE), 16)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_file(model.state_dict(), folder / "model.safetensors")
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4,
        "image_size": 16, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**sizes, **changes}))
    return folder


def train_alone(warm, config, run, *overrides):
    """Train a job by one rank, as ``cadiff train`` does; what it said.

    Raises:
        ConfigError, DataError: what the command would exit with, with all it said.
    """
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    words = ["--config", str(config), "--out", str(run), "--phase", "phase2", *overrides]
    (code,) = warm.run("tuned_world:one_thread", [words], log, 1)
    said = log.read_bytes()[before:].decode()
    if code:
        raise {2: ConfigError, 3: DataError}.get(code, AssertionError)(said)
    return said


def one_thread(words):
    """A rank that leaves the other cores to other tests, as if there were ranks for them."""
    from cadiff.launch.worker import main

    os.environ["LOCAL_SIZE"] = str(os.cpu_count())
    return main(words)
