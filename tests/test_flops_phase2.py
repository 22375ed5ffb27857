"""Phase 2's formula counts what PyTorch counts, with every switch that changes what a step asks for."""

import pytest
import torch
from tiny_pairs import phase2_job
from torch.utils.flop_counter import FlopCounterMode

from cadiff import layers
from cadiff.attention import attention_reference
from cadiff.flops import formula_of, phase2_flops, phase2_parts
from cadiff.kernels import dispatch
from cadiff.phases import Space, build_phase
from cadiff.telemetry import sample_flops

BATCH = 3
SPACE = Space(24, 1)


@pytest.fixture(autouse=True)
def definitions(monkeypatch):
    """Kernels and attention by their definitions, whose matrix products PyTorch's counter sees."""
    monkeypatch.setenv("CADIFF_KERNELS", "reference")
    monkeypatch.setattr(layers, "attention", attention_reference)
    dispatch.forget()
    yield
    dispatch.forget()


def counted(job, space=SPACE):
    """Operations per sample of one forward and backward, as PyTorch counts them, and the phase.

    The image encoder is frozen as the job says.
    """
    frozen = not job.image.train_encoder
    fresh = job.model_copy(update={"image": job.image.model_copy(update={"train_encoder": True})})
    phase = build_phase(fresh, space)
    if frozen:
        phase.image.freeze_encoder()
    generator = torch.Generator().manual_seed(1)
    batch = {
        "signal": torch.randn(BATCH, 24, generator=generator),
        "image": torch.randint(0, 256, (BATCH, 3, 16, 16), generator=generator, dtype=torch.uint8),
        **{name: torch.arange(BATCH) for name in ("epoch", "sample_id")},
        "subject": torch.arange(BATCH) % 2,
    }
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(phase(batch).values())).sum().backward()
    return counter.get_total_flops() / BATCH, phase


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("loss", [
    {}, {"fmri": 0.0}, {"image": 0.0}, {"fmri_mask": 0.0, "image_mask": 0.75},
])  # fmt: skip
def test_the_formula_counts_what_pytorch_counts(frozen, loss):
    job = phase2_job(loss, {"train_encoder": not frozen})
    assert phase2_flops(job, 24, 24, BATCH) == pytest.approx(counted(job)[0], rel=1e-9)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("loss", [{}, {"fmri": 0.0}, {"image": 0.0}])
def test_all_subjects_maps_are_counted_and_the_network_behind_them_at_its_own_width(frozen, rank, loss):
    job = phase2_job(loss, {"train_encoder": not frozen}, adapter={"kind": "linear", "width": 36, "rank": rank})
    wanted, phase = counted(job, Space(24, 1, {"A": (24,), "B": (21,)}))
    assert phase2_flops(job, 24, 24, BATCH, phase.adapters) == pytest.approx(wanted, rel=1e-9)
    assert sample_flops(job, {24: 1}, BATCH, phase.adapters) == pytest.approx(wanted, rel=1e-9)


def test_kept_features_spare_the_frozen_passes_and_nothing_else():
    job = phase2_job({"image_masks": 4}, {"train_encoder": False})
    cached = job.model_copy(update={"data": job.data.model_copy(update={"features": "kept"})})
    whole, spared = phase2_parts(job, 24), phase2_parts(cached, 24)
    assert whole.keys() - spared.keys() == {"image_whole", "image_visible"}
    assert all(whole[name] == spared[name] for name in spared)


def test_nothing_is_said_where_only_adapters_are_trained():
    job = phase2_job(adapter={"kind": "linear"})
    only = job.model_copy(update={"adapter": job.adapter.model_copy(update={"only": True})})
    assert formula_of(job) is phase2_flops and formula_of(only) is None
