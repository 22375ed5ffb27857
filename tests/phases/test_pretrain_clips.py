"""Phase 1 beyond the paper: dropped voxels, clips of several frames, and samples of different widths packed."""

import numpy as np
import pytest
import torch
from tiny_pairs import FMRI, SPACE, batch, descend, phase1_job, reached, rows, value
from torch.nn import functional as F

from cadiff.errors import ConfigError
from cadiff.kernels.mask import Masking
from cadiff.kernels.similarity import info_nce_reference
from cadiff.losses import rebuild_loss
from cadiff.phases import Space
from cadiff.phases.pretrain import Pretrain
from cadiff.phases.pretrain_views import drop_voxels, in_every_span, plain_batches
from cadiff.shards.dataset import Dataset
from cadiff.shards.protocol import pack_folder
from cadiff.shards.record import make_records, silent
from cadiff.shards.stream import Reading, Stream

PACKED = {"shards": ["unused"], "pad": "packed"}


def phase(loss=None, **sections):
    torch.manual_seed(0)
    return Pretrain(phase1_job(loss, **sections), SPACE)


# Dropped voxels


def dropping(share=0.3, loss=None, **sections):
    return phase(loss, mask={"voxel_dropout": share}, **sections)


def looks(tiny, tensors):
    """What the network reads of each view."""
    inputs = []
    handle = tiny.fmri.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    tiny(tensors)
    handle.remove()
    return inputs[0].split(len(tensors["signal"]))


def test_an_exact_share_of_voxels_is_zero_in_the_input_anew_for_each_view_and_epoch():
    tiny, tensors = dropping(), batch(50)
    first, second = looks(tiny, tensors)
    for view in (first, second):
        assert ((view == 0).sum(dim=1) == int(0.3 * 24)).all()
        assert torch.equal(view[view != 0], tensors["signal"][view != 0])
    assert not torch.equal(first, second) and not torch.equal(first, looks(tiny, batch(50, epoch=1))[0])
    assert (first == 0).float().mean(0).std() < 0.1  # every voxel has its turn
    assert torch.equal(first, looks(tiny, tensors)[0])


def test_what_is_dropped_belongs_to_the_sample_and_not_to_the_batch():
    tiny, tensors = dropping(), batch(8)
    order = torch.tensor([5, 0, 7])
    for whole, part in zip(looks(tiny, tensors), looks(tiny, rows(tensors, order))):
        assert torch.equal(whole[order], part)


def test_targets_keep_dropped_voxels():
    tiny, tensors = dropping(loss={"cross_contrast": 0.0}), batch()
    masking, [seen] = tiny.mask(tensors, 1), looks(tiny, tensors)
    prediction = tiny.fmri(seen, masking)
    wanted = rebuild_loss(prediction, tensors["signal"].view(6, 6, 4), masking.hidden_BL).item()
    terms = value(tiny(tensors))
    assert terms["rebuild"] == pytest.approx(wanted, rel=1e-5)
    contrast = info_nce_reference(prediction.flatten(1), tensors["signal"], 0.1).item()
    assert terms["self"] == pytest.approx(contrast, rel=1e-5)
    assert terms["rebuild"] != pytest.approx(value(phase({"cross_contrast": 0.0})(tensors))["rebuild"], rel=1e-4)


def test_nothing_is_dropped_in_validation_or_without_a_share():
    plain, tiny, tensors = phase(), dropping(), batch(epoch=-1)
    assert value(dropping(0.0)(tensors)) == value(plain(tensors)) != value(tiny(tensors))
    assert value(tiny.eval()(tensors)) == value(plain.eval()(tensors))


def test_dropout_with_a_whole_batch_contrast_drops_the_same_in_both_passes():
    tiny, tensors = dropping(), {**batch(), "stimulus": torch.full((6,), -1)}
    prediction = tiny.fmri(looks(tiny, tensors)[0], tiny.mask(tensors, 1)).flatten(1)
    torch.testing.assert_close(tiny.features(tensors)["first"], prediction)


def test_dropping_works_on_many_voxels_and_whole_clips():
    signal = torch.randn(2, 3, 5000) + 9
    seen = drop_voxels(signal, 1, "x", torch.zeros(2, dtype=torch.int64), torch.tensor([4, 2**40]), 0.999)
    gone = seen == 0
    assert (gone.sum(2) == 4995).all() and torch.equal(gone[:, :1].expand_as(gone), gone)
    assert not torch.equal(gone[0], gone[1])


# Clips


def clip_phase(loss=None, frames=4, patch_frames=2, **mask):
    data = {"shards": ["unused"], "clip_frames": frames}
    return phase(loss, model={**FMRI, "patch_frames": patch_frames}, data=data, mask=mask)


def clips(count=6, frames=4, epoch=0):
    generator = torch.Generator().manual_seed(1)
    return {**batch(count, epoch), "signal": torch.randn(count, frames, 24, generator=generator)}


@pytest.mark.parametrize(("frames", "patch_frames"), [(4, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("tube", [False, True])
def test_a_clip_is_rebuilt_and_told_apart_as_one_sample(frames, patch_frames, tube):
    tiny, tensors = clip_phase(frames=frames, patch_frames=patch_frames, tube=tube), clips(frames=frames)
    spans = frames // patch_frames
    masks = [tiny.mask(tensors, view) for view in (1, 2)]
    first, second = (tiny.fmri(tensors["signal"], mask) for mask in masks)
    cut = tensors["signal"].view(6, spans, patch_frames, 6, 4).transpose(2, 3).reshape(6, spans * 6, -1)
    wanted = {
        "rebuild": rebuild_loss(first, cut, masks[0].hidden_BL),
        "self": info_nce_reference(first.flatten(1), cut.flatten(1), 0.1),
        "cross": 0.5 * info_nce_reference(first.flatten(1), second.flatten(1), 0.1),
    }
    terms = tiny(tensors)
    assert value(terms) == pytest.approx(value(wanted), rel=1e-5)
    sum(terms.values()).backward()
    assert reached(tiny) == {name for name, _ in tiny.named_parameters()}


def test_training_on_clips_lowers_the_loss():
    before, after = descend(clip_phase(), clips())
    assert after < 0.8 * before


def test_a_tube_hides_the_same_places_in_all_frames_and_no_tube_does_not():
    tensors = clips(50)
    tube, free = (clip_phase(tube=tube, ratio=0.5).mask(tensors, 1).hidden_BL.view(50, 2, 6) for tube in (True, False))
    assert torch.equal(tube[:, 0], tube[:, 1]) and not torch.equal(free[:, 0], free[:, 1])
    assert (tube.sum((1, 2)) == 6).all() and (free.sum((1, 2)) == 6).all()
    single = phase(mask={"ratio": 0.5}).mask(batch(50), 1).hidden_BL
    assert torch.equal(tube[:, 0], single)  # the places are those of a single frame


def test_a_tube_is_a_mask_like_any_other():
    places = Masking.from_noise(torch.rand(3, 7, generator=torch.Generator().manual_seed(2)), 0.6)
    whole = in_every_span(places, 3)
    kept, length = whole.keep_BK.shape[1], whole.hidden_BL.shape[1]
    assert (kept, length) == (6, 21)
    for row in range(3):
        order = torch.cat([whole.keep_BK[row], whole.hidden_BL[row].nonzero()[:, 0]])
        assert sorted(order.tolist()) == list(range(21))
        assert torch.equal(whole.restore_BL[row][whole.keep_BK[row]], torch.arange(6))
        assert sorted(whole.restore_BL[row].tolist()) == list(range(21))
        assert torch.equal(whole.restore_BL[row] >= 6, whole.hidden_BL[row].bool())


@pytest.mark.parametrize("tube", [False, True])
def test_a_focus_region_is_one_of_places_in_every_frame(tube):
    tiny = clip_phase(tube=tube, ratio=0.5, focus_range=[0, 8], focus_rate=0.9)
    often = tiny.mask(clips(400), 1).hidden_BL.mean(0).view(2, 6)
    assert often[:, :2].min() > 0.75 and often[:, 2:].max() < 0.5


@pytest.mark.parametrize("patch_frames", [1, 4])
def test_preview_draws_a_clips_first_frame(patch_frames):
    tiny, tensors = clip_phase(patch_frames=patch_frames, ratio=0.5), clips()
    shown, masking = tiny.preview(tensors), tiny.mask(rows(clips(), slice(4)), 1)
    hidden = masking.hidden_BL[:, :6].bool().repeat_interleave(4, dim=1)
    assert torch.equal(shown["signal"], tensors["signal"][:4, 0])
    assert torch.equal(shown["visible"].isnan(), hidden)
    whole = tiny.fmri(tensors["signal"][:4], masking)[:, :6].view(4, 6, patch_frames, 4)
    torch.testing.assert_close(shown["prediction"], whole[:, :, 0].reshape(4, 24))


def test_frames_that_do_not_fill_a_patch_are_refused():
    with pytest.raises(ConfigError, match="patch_frames"):
        clip_phase(frames=3)


# Packed


def pack(tensors, widths):
    """The beginnings of the rows, end to end."""
    signal = torch.cat([row[:width] for row, width in zip(tensors["signal"], widths)])
    return {**tensors, "signal": signal, "lengths": torch.tensor(widths), "stimulus": torch.full((len(widths),), -1)}


WIDTHS = [12, 12, 20, 24, 24, 16]


def packed_phase(loss=None, **mask):
    return phase(loss, mask={"ratio": 0.5, **mask}, data=PACKED)


def test_a_packed_batch_falls_into_stretches_of_one_width():
    tensors = batch()
    parts = plain_batches(pack(tensors, WIDTHS))
    assert [tuple(part["signal"].shape) for part in parts] == [(2, 12), (1, 20), (2, 24), (1, 16)]
    assert torch.equal(torch.cat([part["sample_id"] for part in parts]), tensors["sample_id"])
    for row, width, part in ((1, 12, parts[0]["signal"][1]), (5, 16, parts[3]["signal"][0])):
        assert torch.equal(part, tensors["signal"][row, :width])
    assert plain_batches(tensors) == [tensors]


@pytest.mark.parametrize("loss", [{}, {"self_on_both_views": True, "learn_temperature": True, "symmetric": True}])
def test_samples_of_one_width_have_the_same_losses_packed_and_padded(loss):
    mask = {"ratio": 0.5, "voxel_dropout": 0.2, "focus_range": [0, 12]}
    padded, packed = phase(loss, mask=mask), packed_phase(loss, **mask)
    one, two = padded(batch()), packed(pack(batch(), [24] * 6))
    assert value(one) == pytest.approx(value(two), rel=1e-6)
    for terms in (one, two):
        sum(terms.values()).backward()
    for (name, p), q in zip(padded.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def alone(width):
    """A phase for samples of one width alone."""
    return Pretrain(phase1_job(mask={"ratio": 0.5, "voxel_dropout": 0.2}), Space(width, 0))


def test_samples_of_several_widths_have_the_masks_and_losses_that_they_have_alone():
    packed = packed_phase(voxel_dropout=0.2)
    first, second, rebuilt = [], [], []
    for row, width in enumerate(WIDTHS):
        single, mine = alone(width), rows(batch(), slice(row, row + 1))
        mine["signal"] = mine["signal"][:, :width]
        state = {key: kept for key, kept in packed.state_dict().items() if not key.endswith("pos_embed")}
        single.load_state_dict(state, strict=False)
        rebuilt.append(value(single(mine))["rebuild"])
        for rows_of_view, view, seen in zip((first, second), (1, 2), looks(single, mine)):
            patches = single.fmri(seen, single.mask(mine, view))
            rows_of_view.append(F.pad(patches.flatten(1), (0, 24 - width)))
    signal = torch.cat([F.pad(row[None, :width], (0, 24 - width)) for row, width in zip(batch()["signal"], WIDTHS)])
    first, second = torch.cat(first), torch.cat(second)
    wanted = {
        "rebuild": sum(rebuilt) / 6,  # each sample counts alike
        "self": info_nce_reference(first, signal, 0.1).item(),
        "cross": 0.5 * info_nce_reference(first, second, 0.1).item(),
    }
    terms = packed(pack(batch(), WIDTHS))
    assert value(terms) == pytest.approx(wanted, rel=1e-5)
    sum(terms.values()).backward()
    assert reached(packed) == {name for name, _ in packed.named_parameters()}


@pytest.mark.parametrize("parts", [2, 3])
def test_packed_micro_batches_add_up_to_the_whole_batch(parts):
    packed, tensors = packed_phase({"learn_temperature": True}), batch()
    whole = packed(pack(tensors, WIDTHS))
    sum(whole.values()).backward()
    wanted = {name: p.grad.clone() for name, p in packed.named_parameters()}
    packed.zero_grad()
    micro = 6 // parts
    slices = [slice(i * micro, (i + 1) * micro) for i in range(parts)]
    pieces = [pack(rows(tensors, part), WIDTHS[part]) for part in slices]
    known, rebuilt = [packed.features(piece) for piece in pieces], []
    assert all(kept.shape[1:] in ((24,), ()) for feature in known for kept in feature.values())
    for i, piece in enumerate(pieces):
        others = {
            f"others/{name}": torch.cat([feature[name] for j, feature in enumerate(known) if j != i])
            for name in known[0]
        }
        terms = packed({**piece, **others})
        (sum(terms.values()) / parts).backward()
        rebuilt.append(terms["rebuild"].item())
        assert terms["self"].item() == pytest.approx(whole["self"].item(), rel=1e-5)
        assert terms["cross"].item() == pytest.approx(whole["cross"].item(), rel=1e-5)
    assert sum(rebuilt) / parts == pytest.approx(whole["rebuild"].item(), rel=1e-5)
    for name, p in packed.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_order_of_a_packed_batch_does_not_matter():
    packed, order = packed_phase(), torch.tensor([3, 0, 5, 2, 4, 1])
    shuffled = pack(rows(batch(), order), [WIDTHS[i] for i in order])
    assert value(packed(shuffled)) == pytest.approx(value(packed(pack(batch(), WIDTHS))), rel=1e-5)


def test_training_on_packed_samples_lowers_the_loss():
    before, after = descend(packed_phase(), pack(batch(), WIDTHS))
    assert after < 0.8 * before


def test_preview_draws_packed_records_of_one_width():
    shown = packed_phase().preview(pack(batch(), WIDTHS))
    assert {name: tuple(array.shape) for name, array in shown.items()} == dict.fromkeys(
        ("signal", "visible", "prediction"), (2, 12)
    )
    assert torch.equal(shown["signal"], batch()["signal"][:2, :12])


def test_a_focus_region_beyond_a_narrow_sample_is_refused():
    packed = packed_phase(focus_range=[12, 20])
    assert packed(pack(batch(), [24] * 6))
    with pytest.raises(ConfigError, match="focus_range"):
        packed(pack(batch(), WIDTHS))


def test_a_streams_packed_batch_has_one_stretch_for_each_width(tiny_set):
    reading = Reading(pad="packed", patch=4)
    stream = Stream([Dataset(tiny_set)], split="train", batch=32, micro_batch=16, width=32, reading=reading)
    torch.manual_seed(0)
    packed = Pretrain(phase1_job(mask={"ratio": 0.5}, data=PACKED), Space(32, 3))
    for index in range(2):
        batch = stream.micro(0, index)
        widths = [part["signal"].shape[1] for part in plain_batches(batch)]
        assert widths == [28, 32] and batch["lengths"].device.type == "cpu"  # 27 and 30 voxels in whole patches
        assert all(term.isfinite() for term in packed(batch).values())


def test_a_streams_clips_are_what_the_phase_takes(tmp_path):
    def fill(pack):
        signals = np.random.default_rng(0).normal(size=(20, 21)).astype(np.float32)
        pack.add(make_records("A", "r", signals, "train", start=list(range(20)), frames=1))

    pack_folder(tmp_path / "set", "table", {}, {}, fill, silent)
    stream = Stream([Dataset(tmp_path / "set")], split="train", batch=8, micro_batch=8, width=24, frames=4)
    terms = clip_phase()(stream.micro(0, 0))
    assert terms.keys() == {"rebuild", "self", "cross"} and all(term.isfinite() for term in terms.values())
