"""Samples of different widths in one packed batch are what they are alone, forward and backward, without padding."""

import copy

import pytest
import torch

from cadiff.config import FmriModel
from cadiff.kernels.mask import Masking
from cadiff.models.fmri_mae import FmriMae
from cadiff.models.fmri_packed import FmriPackedMae, apart, end_to_end, sequences, stretches

TINY = FmriModel(patch=4, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2)
WIDTHS = (20, 20, 24, 12, 20)  # of five samples; the network is built for 28


def packed(**options):
    torch.manual_seed(0)
    return FmriPackedMae(TINY, 28, **options)


def stretch(count, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, width // 4, generator=generator)
    return torch.randn(count, width, generator=generator, dtype=dtype), Masking.from_noise(noise, 0.5)


def some(dtype=torch.float32):
    return tuple(zip(*(stretch(n, width, width + n, dtype) for n, width in stretches(WIDTHS))))


def gradients(model, patches):
    loss = sum((part.double().sin() * torch.arange(1, part.shape[2] + 1)).sum() for part in patches)
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_neighbours_of_one_width_are_a_stretch():
    assert stretches(WIDTHS) == [(2, 20), (1, 24), (1, 12), (1, 20)]
    parts = [torch.randn(2, 3, 5), torch.randn(1, 7, 5)]
    assert sequences(parts) == [3, 3, 7] and end_to_end(parts).shape == (13, 5)
    for back, part in zip(apart(end_to_end(parts), [tuple(part.shape[:2]) for part in parts]), parts):
        assert torch.equal(back, part)


def test_each_sample_is_predicted_as_if_it_were_alone_and_gradients_add_up():
    model = packed().double()
    signals, maskings = some(torch.float64)
    together = model.rebuild(signals, maskings)
    found = gradients(model, together)

    alone, wanted = [], {}
    for signal_BV, masking in zip(signals, maskings):
        for row in range(len(signal_BV)):
            single = FmriMae(TINY, signal_BV.shape[1]).double()  # a network of this sample's own width
            state = {key: value for key, value in model.state_dict().items() if not key.endswith("pos_embed")}
            assert set(single.load_state_dict(state, strict=False).missing_keys) == {"pos_embed", "decoder_pos_embed"}
            parts = (masking.keep_BK, masking.restore_BL, masking.hidden_BL)
            patches_1LP = single(signal_BV[row : row + 1], Masking(*(part[row : row + 1] for part in parts)))
            alone.append(patches_1LP)
            for name, gradient in gradients(single, [patches_1LP]).items():
                wanted[name] = wanted.get(name, 0) + gradient

    rows = [patches_BLP[i] for patches_BLP in together for i in range(len(patches_BLP))]
    assert [len(patches_LP) * 4 for patches_LP in rows] == list(WIDTHS)
    for one, two in zip(rows, alone, strict=True):
        torch.testing.assert_close(one, two[0], rtol=1e-6, atol=1e-9)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


def test_nothing_is_computed_for_padding():
    model, seen = packed(), []
    for block in (model.blocks[0], model.decoder_blocks[0]):
        block.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    signals, maskings = some()
    model.rebuild(signals, maskings)
    kept = sum(1 + int(width // 4 * 0.5) for width in WIDTHS)
    assert seen == [(kept, 16), (sum(1 + width // 4 for width in WIDTHS), 8)]


def test_samples_of_one_width_are_predicted_as_by_the_plain_network():
    model, plain = packed(), FmriMae(TINY, 28)
    plain.load_state_dict(model.state_dict())  # the same names and shapes
    signal_BV, masking = stretch(3, 28)
    [found] = model.rebuild([signal_BV], [masking])
    wanted = plain(signal_BV, masking)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    one, two = gradients(model, [found]), gradients(plain, [wanted])
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)


def test_hidden_patches_and_other_samples_are_never_seen():
    model, (signals, maskings) = packed(), some()
    before = model.rebuild(signals, maskings)
    hidden = [masking.hidden_BL.bool().repeat_interleave(4, dim=1) for masking in maskings]
    spoilt = [signal.masked_fill(gone, 99.0) for signal, gone in zip(signals, hidden)]
    for one, two in zip(before, model.rebuild(spoilt, maskings)):
        torch.testing.assert_close(one, two)
    louder = [signals[0] * 5, *signals[1:]]
    after = model.rebuild(louder, maskings)
    assert not torch.allclose(after[0], before[0])
    for one, two in zip(after[1:], before[1:]):
        torch.testing.assert_close(one, two)


def test_recomputing_blocks_gives_the_same_gradients():
    signals, maskings = some()
    model, saving = packed(), packed(checkpoint=True)
    one, two = (gradients(net, net.rebuild(signals, maskings)) for net in (model, saving))
    for name in one:
        torch.testing.assert_close(one[name], two[name], msg=name)


def test_bfloat16_autocast_stays_near_float32():
    model, (signals, maskings) = packed(), some()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.rebuild(signals, maskings)
    for one, two in zip(rounded, model.rebuild(signals, maskings)):
        assert (one.float() - two).abs().max() < 0.1
    assert all(gradient.isfinite().all() for gradient in gradients(model, rounded).values())


def test_a_mask_is_wanted_for_every_stretch():
    model, (signals, maskings) = packed(), some()
    with pytest.raises(ValueError, match="zip"):
        model.rebuild(signals, maskings[:-1])
    assert copy.deepcopy(model).state_dict().keys() == FmriMae(TINY, 28).state_dict().keys()
