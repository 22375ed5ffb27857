"""The image decoder's position table is fixed, or trained as the paper's code does; weights load both ways."""

import torch

from cadiff.config import ImageModel
from cadiff.kernels.mask import Masking
from cadiff.models.image_mae import ImageMae

TABLE = "decoder.decoder_pos_embed"


def tiny(**more):
    torch.manual_seed(0)
    sizes = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "mlp_width": 24, "decoder_width": 8, "decoder_depth": 1}
    return ImageMae(ImageModel(**sizes, decoder_heads=2, decoder_mlp_width=12, **more), 8)


def rebuilt(model):
    generator = torch.Generator().manual_seed(1)
    pixels_BCSS, noise_BL = torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 4, generator=generator)
    return model(pixels_BCSS, Masking.from_noise(noise_BL, 0.5))


def test_the_table_is_trained_only_where_that_is_asked_for():
    fixed, trained = tiny(), tiny(train_positions=True)
    assert {name for name, _ in trained.named_parameters()} - {name for name, _ in fixed.named_parameters()} == {TABLE}
    for model in (fixed, trained):
        rebuilt(model).square().mean().backward()
    assert trained.decoder.decoder_pos_embed.grad.abs().sum() > 0 and fixed.decoder.decoder_pos_embed.grad is None


def test_both_start_alike_and_weights_load_both_ways():
    fixed, trained = tiny(), tiny(train_positions=True)
    assert torch.equal(rebuilt(fixed), rebuilt(trained))
    with torch.no_grad():
        trained.decoder.decoder_pos_embed.add_(1.0)
    moved = rebuilt(trained)
    fixed.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(rebuilt(fixed), moved)
    fresh = tiny(train_positions=True)
    fresh.load_state_dict(fixed.state_dict(), strict=True)
    assert torch.equal(rebuilt(fresh), moved) and not torch.equal(moved, rebuilt(tiny()))
