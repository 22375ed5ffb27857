"""Training the first stage: five terms, weights that weigh, and a picture that is learned."""

import pytest
import torch
from diffusion_world import FIRST_STAGE, SPACE, tiny_batch, tiny_job

from cadiff.phases import build_phase
from cadiff.phases.first_stage import spread


def build(**loss):
    torch.manual_seed(0)
    return build_phase(tiny_job("first_stage", model=FIRST_STAGE, loss=loss), SPACE)


def test_terms_are_finite_scalars():
    terms = build()(tiny_batch())
    assert list(terms) == ["pixel", "edge", "code", "commit", "spread"]
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())


def test_weights_scale_their_terms():
    plain, weighted = build()(tiny_batch()), build(pixel=2.0, edge=0.0, commit=0.5, spread=0.3)(tiny_batch())
    assert weighted["pixel"].item() == pytest.approx(2 * plain["pixel"].item(), rel=1e-5)
    assert weighted["edge"] == 0
    assert weighted["commit"].item() == pytest.approx(2 * plain["commit"].item(), rel=1e-5)
    assert weighted["spread"].item() == pytest.approx(3 * plain["spread"].item(), rel=1e-5)


def test_spread_is_zero_for_unit_latents_only():
    latent = torch.randn(4, 3, 8, 8)
    unit = (latent - latent.mean((0, 2, 3), keepdim=True)) / latent.std((0, 2, 3), keepdim=True)
    assert spread(unit).item() == pytest.approx(0, abs=1e-10)
    assert spread(2 * unit).item() == pytest.approx(1, rel=1e-4)
    assert spread(unit + 3).item() == pytest.approx(9, rel=1e-4)


def test_training_rebuilds_a_picture_better_and_reaches_every_parameter():
    phase, batch = build(), tiny_batch()
    batch["image"][:] = 30
    batch["image"][:, 0, 4:12, 4:12] = 220
    optimizer = torch.optim.AdamW(phase.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = sum(phase(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in phase.parameters())


def test_preview_holds_pictures_and_their_reconstructions():
    preview = build().preview(tiny_batch())
    assert preview["rebuilt"].shape == preview["image"].shape == (4, 3, 16, 16)
    assert preview["rebuilt"].dtype == torch.uint8


def test_the_exported_part_loads_into_diffusers_own_model():
    from diffusers import VQModel

    part = build().parts()["first_stage"]
    VQModel.from_config(part.config).load_state_dict(part.state_dict())
