"""The fMRI autoencoder: its size, its names, and what it may and may not see."""

import numpy as np
import pytest
import torch

from cadiff.config import FmriModel
from cadiff.errors import ConfigError
from cadiff.exports import load_into
from cadiff.kernels.mask import Masking
from cadiff.models.fmri_mae import FmriEncoder, FmriMae, clip_patches, clip_positions
from cadiff.shards.voxels import padded_width, wrap_pad

TINY = FmriModel(patch=4, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return FmriMae(TINY, 24, **options)


def some_masking(batch=3, length=6, ratio=0.5):
    return Masking.from_noise(torch.rand(batch, length, generator=torch.Generator().manual_seed(1)), ratio)


def state_size(module):
    return sum(value.numel() for value in module.state_dict().values())


@pytest.mark.parametrize(("length", "total"), [(262, 164_823_568), (291, 164_868_112)])
def test_the_papers_model_has_the_papers_size(length, total):
    with torch.device("meta"):
        model = FmriMae(FmriModel(), length * 16)
    assert state_size(model) == total
    assert sum(p.numel() for p in model.parameters()) == total - (length + 1) * (1024 + 512)  # positions are fixed
    assert len(model.state_dict()) == 398


def block_names(prefix):
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return {f"{prefix}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_tensors_have_the_names_and_shapes_of_the_papers_weights():
    state = tiny().state_dict()
    linear = ("patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred")
    names = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")}
    names |= {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
    names |= block_names("blocks.0") | block_names("blocks.1") | block_names("decoder_blocks.0")
    assert state.keys() == names
    assert state["patch_embed.proj.weight"].shape == (16, 1, 4)
    assert state["pos_embed"].shape == (1, 7, 16) and state["mask_token"].shape == (1, 1, 8)
    assert state["blocks.0.attn.qkv.weight"].shape == (48, 16) and state["decoder_pred.weight"].shape == (4, 8)


def test_fresh_weights_follow_the_papers_rule():
    model = FmriMae(FmriModel(patch=16, width=128, depth=1, heads=2, decoder_width=64, decoder_depth=1), 256)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    bound = (6 / (128 + 384)) ** 0.5
    assert model.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert all(p.abs().max() == 0 for name, p in model.named_parameters() if name.endswith("bias"))
    assert model.norm.eps == 1e-5


def test_hidden_patches_are_never_seen():
    model, masking = tiny(), some_masking()
    signal = torch.randn(3, 24)
    hidden = masking.hidden_BL.bool().repeat_interleave(4, dim=1)
    torch.testing.assert_close(model(signal, masking), model(signal.masked_fill(hidden, 99.0), masking))
    assert not torch.allclose(model(signal, masking), model(signal.masked_fill(~hidden, 99.0), masking))


def test_predictions_are_in_the_order_of_the_signal():
    model, masking = tiny(), some_masking()
    order = torch.randperm(3)
    shuffled = Masking(masking.keep_BK[:, order], masking.restore_BL, masking.hidden_BL)
    position = torch.cat([order.argsort(), torch.arange(3, 6)])  # where each kept patch went
    shuffled = Masking(shuffled.keep_BK, position[masking.restore_BL], masking.hidden_BL)
    signal = torch.randn(3, 24)
    torch.testing.assert_close(model(signal, masking), model(signal, shuffled))


def test_encoding_everything_ignores_the_order_of_patches():
    model, signal = tiny(), torch.randn(2, 24)
    order = torch.randperm(6).expand(2, 6)
    shuffled = model.encode(signal, Masking(order, order.argsort(1), torch.zeros(2, 6)))
    whole = model.encode(signal)
    assert whole.shape == (2, 7, 16)
    torch.testing.assert_close(shuffled[:, 1:], whole[:, 1:][:, order[0]])
    torch.testing.assert_close(shuffled[:, 0], whole[:, 0])


def test_the_encoder_alone_takes_the_autoencoders_weights_by_name():
    model, encoder, signal = tiny(seed=0), FmriEncoder(TINY, 24), torch.randn(2, 24)
    report = load_into(encoder, model.state_dict(), what="phase 1")
    assert report["missing"] == [] and all("decoder" in name or name == "mask_token" for name in report["unused"])
    torch.testing.assert_close(encoder(signal), model.encode(signal))
    assert encoder(signal, cls=False).shape == (2, 6, 16)


def test_without_class_token_patches_do_not_attend_to_it():
    encoder, signal = FmriEncoder(TINY, 24), torch.randn(2, 24)
    encoder(signal, cls=False).square().sum().backward()
    assert encoder.cls_token.grad is None


def test_recomputing_blocks_gives_the_same_gradients():
    masking, signal = some_masking(), torch.randn(3, 24)
    gradients = []
    for checkpoint in (False, True):
        model = tiny(seed=3, checkpoint=checkpoint)
        model(signal, masking).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_bfloat16_autocast_stays_near_float32():
    model, masking, signal = tiny(), some_masking(), torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(signal, masking)
    assert (rounded.float() - model(signal, masking)).abs().max() < 0.1
    rounded.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "voxels", "word"),
    [
        ({}, 25, "patches of 4"),
        ({}, 0, "patches of 4"),
        ({"heads": 3}, 24, "heads"),
        ({"decoder_heads": 3}, 24, "heads"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(change, voxels, word):
    with pytest.raises(ConfigError, match=word):
        FmriMae(TINY.model_copy(update=change), voxels)


def clip_net(frames, patch_frames, seed=0):
    torch.manual_seed(seed)
    return FmriMae(TINY.model_copy(update={"patch_frames": patch_frames}), 24, frames)


def test_a_patch_of_a_clip_is_some_voxels_of_some_frames():
    clip = torch.arange(4 * 24.0).view(1, 4, 24)
    patches = clip_patches(clip, patch=4, frames=2)
    assert patches.shape == (1, 2 * 6, 2 * 4)
    assert patches[0, 7].tolist() == [*clip[0, 2, 4:8].tolist(), *clip[0, 3, 4:8].tolist()]  # span 1, place 1
    assert torch.equal(clip_patches(clip[:, 0], 4, 1), clip[:, 0].view(1, 6, 4))


@pytest.mark.parametrize(("patch_frames", "weight"), [(1, (16, 1, 4)), (2, (16, 1, 2, 4)), (4, (16, 1, 4, 4))])
def test_patches_of_clips_are_embedded_span_after_span(patch_frames, weight):
    model, clip = clip_net(4, patch_frames), torch.randn(3, 4, 24)
    assert model.patch_embed.proj.weight.shape == weight
    assert (model.spans, model.places, model.length) == (4 // patch_frames, 6, 24 // patch_frames)
    masking = some_masking(3, model.length)
    flat = clip_patches(clip, 4, patch_frames) @ model.patch_embed.proj.weight.flatten(1).T
    wanted = (flat + model.patch_embed.proj.bias + model.pos_embed[:, 1:]).gather(
        1, masking.keep_BK[:, :, None].expand(-1, -1, 16)
    )
    torch.testing.assert_close(model.embed(clip, masking)[:, 1:], wanted, rtol=1e-5, atol=1e-6)
    patches = model(clip, masking)
    assert patches.shape == (3, model.length, patch_frames * 4)
    patches.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("patch_frames", [1, 2])
def test_hidden_patches_of_clips_are_never_seen(patch_frames):
    model, clip = clip_net(4, patch_frames), torch.randn(3, 4, 24)
    masking = some_masking(3, model.length)
    hidden = masking.hidden_BL.bool().view(3, model.spans, 1, 6, 1).expand(-1, -1, patch_frames, -1, 4)
    hidden = hidden.reshape(3, 4, 24)
    torch.testing.assert_close(model(clip, masking), model(clip.masked_fill(hidden, 99.0), masking))
    assert not torch.allclose(model(clip, masking), model(clip.masked_fill(~hidden, 99.0), masking))


def test_positions_tell_spans_and_places_apart():
    table = clip_positions(places=30, spans=20, width=32)[0]
    assert table.shape == (601, 32) and table[0].abs().max() == 0
    apart = torch.cdist(table[1:].double(), table[1:].double()) + 9 * torch.eye(600)
    assert apart.min() > 0.1
    both = table[1:].view(20, 30, 32)  # a row for the span and one for the place
    assert torch.equal(both[0], clip_positions(30, 1, 32)[0, 1:])  # the first span is a single frame
    torch.testing.assert_close(both - both[:1], (both - both[:1])[:, :1].expand(-1, 30, -1), rtol=0, atol=1e-5)


def test_one_span_of_frames_has_the_papers_positions():
    single, whole = tiny(), clip_net(4, 4)
    assert torch.equal(single.pos_embed, whole.pos_embed)
    assert torch.equal(single.decoder_pos_embed, whole.decoder_pos_embed)


@pytest.mark.parametrize(("frames", "patch_frames"), [(4, 3), (1, 2)])
def test_clips_that_do_not_divide_into_patches_are_refused(frames, patch_frames):
    with pytest.raises(ConfigError, match=f"clip of {frames} frames does not divide into patches of {patch_frames}"):
        clip_net(frames, patch_frames)


@pytest.mark.parametrize(("grayordinates", "tokens"), [(59_412, 3_714), (91_282, 5_706)])
def test_the_cortex_and_all_grayordinates_go_through(grayordinates, tokens):
    width = padded_width(grayordinates, 16)
    signal = torch.from_numpy(wrap_pad(np.random.default_rng(0).normal(size=(1, grayordinates)), width)).float()
    sizes = {"width": 8, "depth": 1, "heads": 1, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 1}
    model = FmriMae(FmriModel(patch=16, **sizes), width)
    assert model.length == tokens and width - grayordinates in (12, 14)
    masking = some_masking(1, tokens, 0.75)
    assert masking.keep_BK.shape == (1, int(tokens * 0.25))
    patches = model(signal, masking)
    assert patches.shape == (1, tokens, 16) and patches.isfinite().all()
    (patches[0, -1] - signal[0, -16:]).square().sum().backward()  # the padded patch is predicted like any other
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
