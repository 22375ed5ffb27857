"""The benchmark of phase 2: its count of operations is what is computed, and what is kept is not computed."""

import pytest
import torch
from shared_files import benchmarks_importable
from torch.utils.flop_counter import FlopCounterMode

from cadiff.phases import crosstune

benchmarks_importable()
from phase1_contenders import Clock  # noqa: E402
from phase2_contenders import KINDS, README, asked_for  # noqa: E402
from plain_image import ImageSizes  # noqa: E402
from plain_phase1 import Sizes  # noqa: E402
from plain_phase2 import PlainPair  # noqa: E402

SIZES = Sizes(96, 8, 24, 2, 3, 16, 1, 2, 2.0)
IMAGE = ImageSizes(24, 4, 16, 2, 2, 24, 8, 3, 2, 12, 3)
BATCH = 2


def test_operations_are_those_of_the_baseline_but_what_it_computes_too_often():
    network = PlainPair(SIZES, IMAGE, README)
    x_B1V, pixels_BCSS = torch.randn(BATCH, 1, 96), torch.randn(BATCH, 3, 24, 24)
    with FlopCounterMode(display=False) as forward:
        loss = network(x_B1V, pixels_BCSS, network.drawn(BATCH))["loss"]
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    parts = asked_for(SIZES, IMAGE)
    hidden_patches, hidden_places = 12 - 3, 36 - 18
    of_voxels, of_pixels = 2 * hidden_patches * 8 * 24, 2 * hidden_places * 48 * 16
    maps = (IMAGE.cross_layers - 1) * 2 * (1 + 12) * 24 * 16
    wanted = sum(part[0] for part in parts.values()) + of_voxels + of_pixels + maps
    assert forward.get_total_flops() == BATCH * wanted
    wanted = sum(part[1] for part in parts.values()) + of_voxels + 2 * maps
    assert backward.get_total_flops() == BATCH * wanted


@pytest.mark.parametrize(
    ("kind", "runs"), [("plain", {1 + 36, 1 + 18}), ("ours", {1 + 36, 1 + 18}), ("whole", {1 + 18}), ("cached", set())]
)
def test_every_contender_trains_and_runs_the_image_encoder_as_often_as_it_must(kind, runs, monkeypatch):
    monkeypatch.setattr(crosstune, "normalise_image", crosstune.normalise_image)  # it is put back; a clock wraps it
    torch.manual_seed(0)
    contender = KINDS[kind]((SIZES, IMAGE), BATCH, "fp32")
    network = contender.network.img if kind == "plain" else contender.phase.image
    seen = set()
    network.vit.encoder.layer[0].register_forward_hook(lambda _, tokens, __: seen.add(tokens[0].shape[1]))
    before = {name: p.clone() for name, p in network.named_parameters()}
    given = contender.given(torch.randn(BATCH, 96), torch.randint(0, 256, (BATCH, 3, 24, 24), dtype=torch.uint8))
    clock = Clock()
    contender.part_steps(clock)(given, 1)

    assert seen == runs
    assert {"masking", "fmri_encoder", "cross", "fmri_decoder", "image_decoder", "backward"} <= set(clock.spent_s)
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert "decoder.decoder_pred.weight" in moved
    assert not any(name.startswith(("vit.encoder.layer.", "vit.embeddings")) for name in moved)
