"""The judge learns simple shapes from training pictures, repeats itself, and refuses test pictures."""

import numpy as np
import pytest
import torch

from cadiff.errors import ConfigError, DataError
from cadiff.models.classifier import SIDE, Classifier, as_pixels, augment, fit_classifier, load_classifier

CLASSES = 4


def shapes(count, seed):
    """Discs, squares, crosses and rings of random colour, place and size: uint8 (count, 3, 64, 64)."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:64, :64] / 64 - 0.5
    labels, images = np.arange(count) % CLASSES, np.empty((count, 3, 64, 64), np.uint8)
    for row, label in enumerate(labels):
        a, b, r = *rng.uniform(-0.12, 0.12, 2), rng.uniform(0.2, 0.32)
        across, down = np.abs(x - a), np.abs(y - b)
        distance = np.hypot(across, down)
        inside = (
            distance < r,
            np.maximum(across, down) < r,
            (np.maximum(across, down) < r) & (np.minimum(across, down) < r / 3),
            (distance < r) & (distance > r * 0.6),
        )[label]
        front, back = rng.integers(130, 256, 3), rng.integers(0, 110, 3)
        images[row] = np.where(inside, front[:, None, None], back[:, None, None])
    return images, labels


@pytest.fixture(scope="module")
def fitted():
    images, labels = shapes(320, 0)
    return fit_classifier(images, labels, classes=CLASSES, split_B=np.zeros(320), seed=1, epochs=16)


def test_it_reads_more_than_90_percent_of_unseen_shapes_even_when_blurred(fitted):
    images, labels = shapes(120, 1)
    assert fitted.accuracy(images, labels) > 0.9
    pool = torch.nn.AvgPool2d(7, stride=1, padding=3, count_include_pad=False)
    blurred = pool(torch.from_numpy(images).float()).byte().numpy()
    assert fitted.accuracy(blurred, labels) > 0.9


def test_reading_keeps_leading_axes_and_takes_any_size(fitted):
    images, _ = shapes(6, 2)
    logits, features = fitted.read(images.reshape(2, 3, 3, 64, 64))
    assert logits.shape == (2, 3, CLASSES) and features.shape[:2] == (2, 3)
    assert logits.dtype == features.dtype == np.float32
    small = images[:, :, ::2, ::2]
    assert small.shape[-1] == SIDE and fitted.read(small)[0].shape == (6, CLASSES)
    assert np.isfinite(fitted.read(np.full((1, 3, 64, 64), 9, np.uint8))[0]).all()


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    images, labels = shapes(64, 3)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = (
        fit_classifier(images, labels, classes=CLASSES, split_B=np.zeros(64), seed=seed, epochs=2) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.readout.weight, other.readout.weight)


def test_test_pictures_are_refused():
    images, labels = shapes(8, 0)
    split = np.zeros(8)
    split[5] = 2
    with pytest.raises(ConfigError, match="1 of 8 rows are of the test split"):
        fit_classifier(images, labels, classes=CLASSES, split_B=split, seed=0)


@pytest.mark.parametrize("labels", [np.zeros(8), np.full(8, -1), np.arange(8), np.zeros(0)])
def test_labels_that_cannot_be_learnt_are_refused(labels):
    images, _ = shapes(len(labels), 0)
    with pytest.raises(ConfigError, match=r"labels in 0\.\.3 of at least two classes"):
        fit_classifier(images, labels, classes=CLASSES, split_B=np.zeros(len(labels)), seed=0)


def test_saved_classifier_reads_alike_and_damage_is_found(fitted, tmp_path):
    fitted.save(tmp_path)
    again, (images, _) = load_classifier(tmp_path), shapes(8, 5)
    assert np.array_equal(again.read(images)[0], fitted.read(images)[0])
    assert "not an ImageNet model" in again.card["note"] and again.card["labels"] == list(range(CLASSES))
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(DataError, match="hash differs"):
        load_classifier(tmp_path)


def test_augmentation_changes_pictures_a_little_and_only_by_its_generator():
    pixels = as_pixels(shapes(16, 6)[0])
    one, two, other = (augment(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == pixels.shape and not torch.equal(one, pixels)
    similar = torch.nn.functional.cosine_similarity(one.flatten(1), pixels.flatten(1))
    assert similar.min() > 0.3


def test_the_net_has_one_output_for_each_class():
    logits, features = Classifier(7)(torch.zeros(2, 3, SIDE, SIDE))
    assert logits.shape == (2, 7) and features.shape == (2, 64)
