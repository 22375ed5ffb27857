"""Voxel adapters: they begin as wrap padding, keep subjects apart, and load by name."""

import numpy as np
import pytest
import torch

from cadiff.errors import ConfigError, DataError
from cadiff.exports import save_export
from cadiff.models import adapter
from cadiff.models.adapter import VoxelAdapters, VoxelMap, network_voxels, stored_adapters
from cadiff.shards.voxels import wrap_pad

SUBJECTS = {"sub.01": 7, "sub-02": 10, "keys": 5}  # names that would be no good as names of modules
VOXELS, WIDTH = 12, 12


def adapters(rank=0, subjects=SUBJECTS, width=WIDTH):
    torch.manual_seed(0)
    return VoxelAdapters(subjects, width, rank)


def stirred(rank=0, **changes):
    """Adapters that have learned something."""
    tiny = adapters(rank, **changes)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter)
    return tiny


def batch(subject_B):
    """Signals wrap-padded from each subject's own voxels."""
    rows = [np.random.default_rng(i).standard_normal((1, list(SUBJECTS.values())[s])) for i, s in enumerate(subject_B)]
    return torch.from_numpy(np.concatenate([wrap_pad(row, VOXELS) for row in rows])).float(), torch.tensor(subject_B)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("width", [6, 12, 17])
def test_they_begin_as_wrap_padding_bit_for_bit(rank, width):
    signal, subject = batch([0, 1, 2, 0])
    out = adapters(rank, width=width)(signal, subject)
    for row, number, adapted in zip(signal.numpy(), subject.tolist(), out):
        own = row[: list(SUBJECTS.values())[number]]
        assert np.array_equal(own[np.arange(width) % len(own)], adapted.detach().numpy())


@pytest.mark.parametrize("rank", [0, 3])
def test_a_mixed_batch_is_each_subject_alone(rank):
    tiny, (signal, subject) = stirred(rank), batch([2, 0, 1, 0, 2, 1])
    together = tiny(signal, subject)
    for number, name in enumerate(SUBJECTS):
        mine = subject == number
        torch.testing.assert_close(together[mine], tiny.map_of(name)(signal[mine]))
    torch.testing.assert_close(tiny(signal[:1], subject[:1]), together[:1])


@pytest.mark.parametrize("rank", [0, 3])
def test_everyone_gets_a_gradient_and_it_is_zero_for_the_absent(rank):
    tiny, (signal, subject) = stirred(rank), batch([0, 2, 0])
    tiny(signal, subject).square().sum().backward()
    assert all(p.grad is not None for p in tiny.parameters())
    assert all(p.grad.abs().sum() == 0 for p in tiny.map_of("sub-02").parameters())
    for name in ("sub.01", "keys"):
        assert all(p.grad.abs().sum() > 0 for p in tiny.map_of(name).parameters())


def test_a_map_reads_its_subjects_own_voxels_only():
    tiny, (signal, subject) = stirred(), batch([0])
    changed = signal.clone()
    changed[:, 7:] = 99.0
    assert torch.equal(tiny(signal, subject), tiny(changed, subject))


def test_batches_may_number_subjects_in_another_order_and_strangers_become_nan():
    tiny, (signal, subject) = stirred(), batch([0, 1])
    expected = tiny(signal, subject)
    tiny.number_by(["someone", "sub-02", "sub.01"])
    assert torch.equal(tiny(signal, torch.tensor([2, 1])), expected)
    assert tiny(signal, torch.tensor([0, 1]))[0].isnan().all()


def test_maps_of_subjects_who_cannot_come_do_not_run():
    tiny, (signal, subject) = stirred(), batch([0, 2, 0])
    expected, ran = tiny(signal, subject), []
    for name in SUBJECTS:
        tiny.map_of(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    tiny.number_by(list(SUBJECTS), only=["keys", "sub.01"])
    assert torch.equal(tiny(signal, subject), expected) and sorted(ran) == ["keys", "sub.01"]


def test_known_subjects_take_their_maps_by_name_and_new_ones_begin_fresh():
    before, after = stirred(), adapters(subjects={"keys": 5, "new": 8})
    report = after.load(before.state_dict(), "there")
    assert torch.equal(after.map_of("keys").weight, before.map_of("keys").weight)
    assert after.map_of("new").weight.abs().sum() == 0 and after.map_of("new").keep == 1
    assert report["matched"] == [f"maps.of_keys.{name}" for name in ("bias", "keep", "weight")]
    assert {name.split(".")[1] for name in report["missing"]} == {"of_new"}
    assert {name.split(".")[1] for name in report["unused"]} == {"of_sub%2E01", "of_sub-02"}


@pytest.mark.parametrize("change", [{"subjects": {"keys": 6}}, {"width": 8}, {"rank": 2}])
def test_a_known_subject_of_another_shape_is_refused(change):
    with pytest.raises(ConfigError, match="of_keys"):
        adapters(**{"subjects": {"keys": 5}, **change}).load(stirred().state_dict(), "there")


def test_an_export_gives_back_all_maps_and_a_torn_one_is_refused(tmp_path):
    tiny = stirred(3)
    card = {"phase": "phase2", "space": {"voxels": 99}, "architecture": {"adapter": tiny.describe()}}
    save_export(tmp_path, {"adapters": tiny.state_dict()}, card)
    again = stored_adapters(tmp_path)
    signal, subject = batch([1, 2, 0])
    again.number_by(list(SUBJECTS))
    assert torch.equal(again(signal, subject), tiny(signal, subject))
    assert network_voxels(card) == WIDTH and network_voxels({"space": {"voxels": 99}}) == 99
    save_export(tmp_path, {"adapters": adapters().state_dict()}, card)
    with pytest.raises(DataError, match="does not fit its own card"):
        stored_adapters(tmp_path)
    save_export(tmp_path, {}, {"phase": "phase2", "architecture": {}})
    assert stored_adapters(tmp_path) is None


@pytest.mark.parametrize("rank", [0, 3])
def test_only_the_maps_of_asked_subjects_are_read(tmp_path, monkeypatch, rank):
    tiny, read = stirred(rank), []
    save_export(tmp_path, {"adapters": tiny.state_dict()}, {"architecture": {"adapter": tiny.describe()}})
    whole = adapter.load_part

    def spy(export, part, names):
        read.append({name.split(".")[1] for name in names})
        return whole(export, part, names)

    monkeypatch.setattr(adapter, "load_part", spy)
    drawn = torch.get_rng_state()
    one = stored_adapters(tmp_path, only=["keys", "nobody"])
    assert one.subjects == {"keys": 5} and one.width == WIDTH and torch.equal(torch.get_rng_state(), drawn)
    for name, value in one.map_of("keys").state_dict().items():
        assert torch.equal(value, tiny.map_of("keys").state_dict()[name])
    here, other = (adapters(rank, subjects={"keys": 5, "new": 8}) for _ in range(2))
    assert here.load_stored(tmp_path) == other.load(tiny.state_dict(), "there")
    assert read == [{"of_keys"}] * 2
    for name, value in here.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_data_of_strangers_and_of_other_voxels_is_refused():
    with pytest.raises(DataError, match=r"'x' has no voxel adapter.*only sub\.01, sub-02, keys"):
        adapters().require({"keys": 5, "x": 5}, "data")
    with pytest.raises(DataError, match="'keys' has 6 voxels, its voxel adapter reads 5"):
        adapters().require({"keys": 6}, "data")


def test_a_map_can_become_any_affine_map_and_with_a_rank_the_nearest():
    weight, bias, signal = torch.randn(12, 7), torch.randn(12), torch.randn(4, 7)
    full, low = VoxelMap(7, 12, 0), VoxelMap(7, 12, 3)
    full.become(weight, bias)
    torch.testing.assert_close(full(signal), signal @ weight.T + bias)
    low.become(weight, bias)
    left, size, right = torch.linalg.svd(weight)
    nearest = left[:, :3] @ size[:3].diag() @ right[:3]
    torch.testing.assert_close(low(signal), signal @ nearest.T + bias, atol=1e-5, rtol=1e-5)


def test_a_large_map_of_low_rank_is_nearly_the_nearest_and_the_same_every_time():
    torch.manual_seed(0)
    weight = (torch.randn(90, 40) * 0.8 ** torch.arange(40)) @ torch.randn(40, 70)
    low, again, drawn = VoxelMap(70, 90, 6), VoxelMap(70, 90, 6), torch.get_rng_state()
    for one in (low, again):
        one.become(weight, torch.zeros(90))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(low.up @ low.down, again.up @ again.down)
    left_over = torch.linalg.svdvals(weight)[6:].square().sum().sqrt()
    assert (weight - low.up @ low.down).norm() < 1.001 * left_over
