"""The UNet and its samplers: shapes, both ways of conditioning, the noise schedule and the paper's time steps."""

import pytest
import torch

from cadiff.config import UNetModel
from cadiff.errors import ConfigError
from cadiff.models.latent_diffusion import (
    SCHEDULERS,
    LatentDiffusion,
    attends_context,
    make_scheduler,
    time_width,
)

TINY = UNetModel(channels=[8, 16], attention=[False, True], layers=1, heads=2, context_width=12)


@pytest.fixture(scope="module")
def diffusion():
    return awake(LatentDiffusion(TINY, 3))


def awake(diffusion):
    """Give every parameter a value: fresh residual branches end in zeros and would hide what they compute."""
    torch.manual_seed(0)
    for parameter in diffusion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return diffusion


def inputs():
    torch.manual_seed(1)
    return [torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12), torch.zeros(2, time_width(TINY))]


def test_the_prediction_has_the_shape_of_the_latents(diffusion):
    assert diffusion(*inputs()).shape == (2, 3, 8, 8)


def test_folding_latents_shrinks_the_network_not_the_latents():
    folded = awake(LatentDiffusion(TINY.model_copy(update={"patch": 2}), 3))
    assert folded.unet.config.in_channels == folded.unet.config.out_channels == 12
    assert folded(*inputs()).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_time_context_and_time_vector_all_reach_the_prediction(diffusion, changed):
    plain, other = inputs(), inputs()
    other[changed] = other[changed] + 1
    assert not torch.allclose(diffusion(*plain), diffusion(*other), atol=1e-5)


def test_a_fresh_network_predicts_no_noise():
    assert LatentDiffusion(TINY, 3)(*inputs()).count_nonzero() == 0


def test_attention_sits_at_the_levels_asked_for(diffusion):
    names = [name for name, _ in diffusion.unet.named_parameters() if ".attn2." in name]
    assert not any(name.startswith(("down_blocks.0.", "up_blocks.1.")) for name in names)
    assert any(name.startswith("down_blocks.1.") for name in names)
    assert any(name.startswith("up_blocks.0.") for name in names)


def test_heads_must_divide_the_channels():
    with pytest.raises(ConfigError, match="does not divide"):
        LatentDiffusion(UNetModel(channels=[8, 18], attention=[False, True], heads=4, layers=1), 3)


def test_the_paper_trains_its_cross_attention_and_the_norm_before_it(diffusion):
    chosen = {name.rsplit(".", 1)[0].split("transformer_blocks.0.")[-1] for name in _chosen(diffusion.unet)}
    assert chosen == {"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "norm2"}


def test_norms_of_residual_blocks_are_not_mistaken_for_it(diffusion):
    assert any("resnets.0.norm2" in name for name, _ in diffusion.unet.named_parameters())
    assert not any("resnets" in name for name in _chosen(diffusion.unet))


def _chosen(unet):
    return [name for name, _ in unet.named_parameters() if attends_context(name)]


def test_the_noise_schedule_is_the_papers():
    kept = make_scheduler("ddim", UNetModel()).alphas_cumprod
    betas = make_scheduler("ddim", UNetModel()).betas
    assert betas[0].item() == pytest.approx(0.0015, rel=1e-5)
    assert betas[-1].item() == pytest.approx(0.0195, rel=1e-5)
    assert kept[-1].item() == pytest.approx(1.423e-4, rel=1e-3)


@pytest.mark.parametrize("predict", ["noise", "velocity"])
def test_a_perfect_prediction_gives_the_clean_latents_back(predict):
    diffusion = LatentDiffusion(TINY.model_copy(update={"predict": predict}), 3)
    latent, time, *_ = inputs()
    noise = torch.randn_like(latent)
    noisy = diffusion.add_noise(latent, noise, time)
    kept = make_scheduler("ddim", TINY).alphas_cumprod[time].view(-1, 1, 1, 1)
    assert torch.allclose(noisy, kept.sqrt() * latent + (1 - kept).sqrt() * noise, atol=1e-6)
    target = diffusion.target(latent, noise, time)
    assert torch.equal(target, noise) is (predict == "noise")
    assert torch.allclose(diffusion.clean(noisy, target, time), latent, atol=1e-4)


def test_plms_with_250_steps_visits_the_papers_times_in_251_calls():
    scheduler = make_scheduler("plms", UNetModel())
    scheduler.set_timesteps(250)
    times = scheduler.timesteps.tolist()
    assert len(times) == 251
    assert sorted(set(times)) == list(range(1, 998, 4))
    assert times[:4] == [997, 993, 993, 989]  # the first step looks twice, as a Heun step does


@pytest.mark.parametrize("predict", ["noise", "velocity"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_samplers_find_the_data_when_the_prediction_is_exact(name, predict):
    scheduler = make_scheduler(name, UNetModel(predict=predict))
    scheduler.set_timesteps(40)
    kept = scheduler.alphas_cumprod
    data, latent = torch.tensor([[0.7, -1.2]]), torch.tensor([[0.3, 1.9]])
    for time in scheduler.timesteps:
        noise = (latent - kept[time].sqrt() * data) / (1 - kept[time]).sqrt()
        velocity = kept[time].sqrt() * noise - (1 - kept[time]).sqrt() * data
        latent = scheduler.step(noise if predict == "noise" else velocity, time, latent).prev_sample
    assert torch.allclose(latent, data, atol=0.08)  # the last step leaves the noise of time 0


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ConfigError, match="Choose one of plms"):
        make_scheduler("euler", UNetModel())


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for checkpoint in (False, True):
        diffusion = awake(LatentDiffusion(TINY, 3, checkpoint=checkpoint)).train()
        diffusion(*inputs()).square().mean().backward()
        gradients.append(diffusion.unet.conv_in.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)
