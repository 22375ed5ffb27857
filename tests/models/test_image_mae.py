"""The image autoencoder: Hugging Face's names, patch orders, and pixels scaled exactly once."""

import pytest
import torch
from torch.nn import functional as F

from cadiff.config import ImageModel
from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.models.image_mae import (
    ImageMae,
    image_from_patches,
    image_patches,
    normalise_image,
    restore_image,
)

TINY = ImageModel(
    patch=4,
    width=16,
    depth=2,
    heads=2,
    mlp_width=24,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_width=12,
)


def tiny(**options):
    torch.manual_seed(0)
    return ImageMae(TINY, 8, **options)


def pictures(batch=2, side=8):
    return torch.randint(0, 256, (batch, 3, side, side), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def layer_names(prefix):
    parts = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    parts += ["attention.output.dense", "intermediate.dense", "output.dense", "layernorm_before", "layernorm_after"]
    return {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_tensors_have_hugging_faces_names_and_shapes():
    state = tiny().state_dict()
    linear = ("vit.embeddings.patch_embeddings.projection", "vit.layernorm")
    linear += tuple(f"decoder.decoder_{name}" for name in ("embed", "norm", "pred"))
    names = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    names |= {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    names |= {"decoder.mask_token", "decoder.decoder_pos_embed"}
    names |= layer_names("vit.encoder.layer.0") | layer_names("vit.encoder.layer.1")
    names |= layer_names("decoder.decoder_layers.0")
    assert state.keys() == names
    assert state["vit.embeddings.patch_embeddings.projection.weight"].shape == (16, 3, 4, 4)
    assert state["decoder.decoder_pred.weight"].shape == (48, 8)


def test_vit_mae_base_has_its_known_size():
    with torch.device("meta"):
        model = ImageMae(ImageModel(decoder_depth=8), 224)
    assert sum(value.numel() for value in model.state_dict().values()) == 111_907_840  # facebook/vit-mae-base
    assert len(model.state_dict()) == 334


def test_pixels_are_scaled_once_to_imagenets_statistics():
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    pixels = normalise_image(white)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor(expected))
    noise = normalise_image(pictures(8, 32))
    assert (noise.std(dim=(0, 2, 3)) > 1).all()  # scaled twice it would be 0.003
    with pytest.raises(TypeError, match="uint8"):
        normalise_image(pixels)


def test_pixels_come_back_exactly():
    assert torch.equal(restore_image(normalise_image(pictures())), pictures())


def test_patches_are_row_column_colour_and_come_back():
    image = torch.arange(3 * 4 * 4).view(1, 3, 4, 4)
    patches = image_patches(image, 2)
    assert patches.shape == (1, 4, 12)
    assert patches[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]  # top right
    assert torch.equal(image_from_patches(patches, 2), image)


def test_tokens_start_as_a_convolution_with_positions():
    model, pixels = tiny(), normalise_image(pictures())
    embeddings = model.vit.embeddings
    projection = embeddings.patch_embeddings.projection
    whole = F.conv2d(pixels, projection.weight, projection.bias, stride=4).flatten(2).transpose(1, 2)
    whole = whole + embeddings.position_embeddings[:, 1:]
    masking = Masking.from_noise(torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.9, 0.8, 0.1, 0.2]]), 0.5)
    tokens = embeddings(pixels, masking)
    torch.testing.assert_close(tokens[0, 1:], whole[0, [1, 0]])
    torch.testing.assert_close(tokens[1, 1:], whole[1, [2, 3]])
    torch.testing.assert_close(tokens[:, :1], embeddings.cls_token.expand(2, 1, 16))


def test_hidden_patches_are_never_seen():
    model, pixels = tiny(), normalise_image(pictures())
    masking = Masking.from_noise(torch.rand(2, 4), 0.5)
    spoiled = image_patches(pixels, 4).masked_fill(masking.hidden_BL.bool()[:, :, None], 7.0)
    torch.testing.assert_close(model(pixels, masking), model(image_from_patches(spoiled, 4), masking))


def test_recomputing_layers_gives_the_same_gradients():
    pixels, masking = normalise_image(pictures()), Masking.from_noise(torch.rand(2, 4), 0.5)
    gradients = []
    for checkpoint in (False, True):
        model = tiny(checkpoint=checkpoint)
        model(pixels, masking).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("change", "size", "word"),
    [({}, 10, "patches of 4"), ({"heads": 3}, 8, "image.heads"), ({"decoder_heads": 3}, 8, "image.decoder_heads")],
)
def test_sizes_that_do_not_divide_are_refused(change, size, word):
    with pytest.raises(ConfigError, match=word):
        ImageMae(TINY.model_copy(update=change), size)
