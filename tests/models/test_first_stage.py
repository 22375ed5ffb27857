"""The first stage: latents have the promised shape, codes are the nearest ones, and gradients go where they should."""

import pytest
import torch

from cadiff.config import FirstStageModel
from cadiff.models.first_stage import ImageCodec, norm_groups, to_bytes, to_unit

TINY = FirstStageModel(channels=[8, 16], layers=1, latent=3, codes=16)


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return ImageCodec(TINY)


def test_every_level_but_the_last_halves_the_side(codec):
    latent = codec.encode(torch.zeros(2, 3, 16, 24))
    assert latent.shape == (2, 3, 8, 12)
    assert codec.decode(latent).shape == (2, 3, 16, 24)
    assert codec.shrink == 2


def test_folding_pixels_shrinks_the_network_not_the_image():
    codec = ImageCodec(FirstStageModel(channels=[8], layers=1, latent=4, codes=16, patch=4, attention=False))
    latent = codec.encode(torch.zeros(2, 3, 16, 16))
    assert latent.shape == (2, 4, 4, 4)
    assert codec.decode(latent).shape == (2, 3, 16, 16)
    assert codec.shrink == 4
    assert not any("attentions" in name for name, _ in codec.named_parameters())


def test_fresh_residual_branches_end_in_zeros(codec):
    ends = [value for name, value in codec.named_parameters() if ".conv2." in name or ".to_out.0." in name]
    assert ends and all(value.count_nonzero() == 0 for value in ends)


def test_latents_are_not_scaled(codec):
    assert codec.vq.config.scaling_factor == 1.0


def test_quantising_finds_the_nearest_code_and_leaves_codes_alone(codec):
    codes = codec.vq.quantize.embedding.weight.detach()
    on_codes = codes[torch.tensor([3, 5, 3, 1])].T.reshape(1, 3, 2, 2)
    coded = codec.quantise(on_codes)
    assert torch.allclose(coded.latent_BCss, on_codes)
    assert coded.code.item() == pytest.approx(0, abs=1e-12)
    nudged = codec.quantise(on_codes + 1e-3)
    assert torch.allclose(nudged.latent_BCss, on_codes, atol=1e-6)
    assert nudged.commit.item() == pytest.approx(1e-6, rel=1e-2)


def test_quantising_agrees_with_diffusers(codec):
    latent = torch.randn(2, 3, 4, 4)
    theirs, _, _ = codec.vq.quantize(latent)
    assert torch.allclose(codec.quantise(latent).latent_BCss, theirs, atol=1e-6)


def test_gradients_pass_straight_through_and_each_loss_moves_one_side(codec):
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    coded = codec.quantise(latent)
    (gradient,) = torch.autograd.grad(coded.latent_BCss.sum(), latent, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(latent))
    codes = codec.vq.quantize.embedding.weight
    assert torch.autograd.grad(coded.code, codes, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(coded.commit, codes, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(coded.commit, latent)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("channels", "groups"),
    [([128, 256, 512], 32), ([192, 384, 576, 960], 32), ([32, 64], 4), ([16, 32, 48], 2), ([8, 16], 1), ([64, 100], 4)],
)
def test_narrow_networks_normalise_in_wide_groups(channels, groups):
    assert norm_groups(channels) == groups
    assert all(count % groups == 0 for count in channels)


def test_bytes_survive_the_way_to_unit_range_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert to_unit(every).min() == -1 and to_unit(every).max() == 1
    assert torch.equal(to_bytes(to_unit(every)), every)


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-3.0, 3.0, 1.6 / 127.5 - 1, 1.4 / 127.5 - 1])
    assert to_bytes(values).tolist() == [0, 255, 2, 1]


def test_recomputing_activations_changes_no_gradient():
    image = torch.randn(1, 3, 16, 16)
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        codec = ImageCodec(TINY, checkpoint=checkpoint).train()
        codec.decode(codec.encode(image)).square().mean().backward()
        gradients.append(codec.vq.encoder.conv_in.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)
