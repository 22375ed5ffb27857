"""Read a pre-trained ViT-MAE from a local Hugging Face folder: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cadiff.config import ImageModel
from cadiff.errors import ConfigError, DataError
from cadiff.exports import load_into
from cadiff.files import read_json
from cadiff.layers import VIT_EPS
from cadiff.models.image_mae import ImageMae


def load_vit(model: ImageMae, folder: str | Path, image: ImageModel, image_size: int) -> dict[str, list[str]]:
    """Load encoder and decoder by name; decoder layers beyond the own depth are left out, cross parts stay fresh.

    Returns:
        The report of ``load_into``.

    Raises:
        ConfigError: the folder's config.json has other sizes than the job.
        DataError: a file is missing, damaged, or lacks tensors of a ViT-MAE.
    """
    folder = Path(folder)
    _check_sizes(folder / "config.json", image, image_size)
    state = _read(folder / "model.safetensors")
    report = load_into(model, state, what=str(folder / "model.safetensors"))
    lacking = [name for name in report["missing"] if "cross" not in name] + report["resized"]
    if lacking:
        raise DataError(
            f"{folder}/model.safetensors: {lacking[0]} and {len(lacking) - 1} more tensors are absent or have another "
            "shape than config.json says. Save the model again with its own library."
        )
    return report


def _check_sizes(path: Path, image: ImageModel, image_size: int) -> None:
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a model's config. Expected a JSON object.")
    usual = ImageModel()  # what a config.json leaves out has facebook/vit-mae-base's value
    for key, name, value, absent in (
        ("hidden_size", "image.width", image.width, usual.width),
        ("num_hidden_layers", "image.depth", image.depth, usual.depth),
        ("num_attention_heads", "image.heads", image.heads, usual.heads),
        ("intermediate_size", "image.mlp_width", image.mlp_width, usual.mlp_width),
        ("patch_size", "image.patch", image.patch, usual.patch),
        ("image_size", "data.image_size", image_size, 224),
        ("decoder_hidden_size", "image.decoder_width", image.decoder_width, usual.decoder_width),
        ("decoder_num_attention_heads", "image.decoder_heads", image.decoder_heads, usual.decoder_heads),
        ("decoder_intermediate_size", "image.decoder_mlp_width", image.decoder_mlp_width, usual.decoder_mlp_width),
        ("hidden_act", "the activation here", "gelu", "gelu"),
        ("num_channels", "the number of colours here", 3, 3),
        ("layer_norm_eps", "the eps of LayerNorm here", VIT_EPS, VIT_EPS),
        ("qkv_bias", "the bias of attention here", True, True),
    ):
        if found.get(key, absent) != value:
            raise ConfigError(
                f"{path}: {key} is {found.get(key, absent)}, but {name} is {value}. Make the job's value agree."
            )
    layers = found.get("decoder_num_hidden_layers", 8)
    if layers < image.decoder_depth:
        raise ConfigError(
            f"{path}: has {layers} decoder layers, but image.decoder_depth is {image.decoder_depth}. Lower it."
        )


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path}: no such file. Save the model as safetensors; pickled weights are not read.")
    try:
        return load_file(path)
    except SafetensorError as problem:
        raise DataError(f"{path}: not a readable safetensors file ({problem}). Copy or save it again.") from None
