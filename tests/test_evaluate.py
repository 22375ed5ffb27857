"""Evaluation tells perfect, random and shuffled decoders apart, averages rows of a stimulus, and says so honestly."""

import json

import numpy as np
import pytest

from cadiff import metrics as m
from cadiff.conclusions import conclusions
from cadiff.errors import ConfigError
from cadiff.evaluate import evaluate
from cadiff.judge import Judge, fingerprint, labelled_pictures, train_judge
from cadiff.models.classifier import Classifier
from cadiff.shards.dataset import Dataset
from cadiff.splits import TEST

CLASSES = 6


class ColourReader:
    """Stands in for a classifier: the class is the brightest of six image bands, the features are band means."""

    def __init__(self, labels=range(CLASSES)):
        self.classes, self.card = CLASSES, {"labels": list(labels), "note": "a stand-in"}

    def read(self, images):
        bands = images.reshape(*images.shape[:-3], 3, 6, -1, images.shape[-1]).astype(np.float32)
        means = bands.mean((-1, -2))
        return means.mean(-2), means.reshape(*images.shape[:-3], 18)


def world(count=48, seed=0):
    """Stimuli with one bright band, and the band's number."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    truth = rng.integers(0, 120, (count, 3, 24, 24), dtype=np.uint8)
    for row, label in enumerate(labels):
        truth[row, :, 4 * label : 4 * label + 4] += 110
    return truth, labels


def noisy(truth, samples, amount, seed):
    noise = np.random.default_rng(seed).normal(0, amount, (len(truth), samples, *truth.shape[1:]))
    return (truth[:, None] + noise).clip(0, 255).astype(np.uint8)


def random_pictures(count, samples, seed):
    """Decoding without information: other stimuli of the same kind."""
    truth, _ = world(count * samples, seed)
    order = np.random.default_rng(seed).permutation(count * samples)
    return truth[order].reshape(count, samples, 3, 24, 24)


@pytest.fixture(scope="module")
def result():
    truth, labels = world()
    methods = {
        "cadiff": noisy(truth, 3, 60, 1),
        "ridge": noisy(truth, 1, 250, 2),
        "perfect": truth[:, None],
        "shuffled": random_pictures(48, 2, 3),
    }
    return evaluate(methods, truth, labels, ColourReader(), seed=5, resamples=2000)


def test_result_is_json_and_every_entry_is_complete(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again["main"] == "cadiff" and again["stimuli"] == 48 and again["ways"] == CLASSES
    for name, scores in again["methods"].items():
        assert set(scores) == set(again["definitions"])
        for key, entry in scores.items():
            assert set(entry) == {"value", "low", "high", "chance", "protocol", "n", "samples"}
            assert entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 1e-9, (name, key)
            assert entry["protocol"] == m.METRICS[key].protocol


def test_perfect_reconstruction_scores_one_everywhere(result):
    perfect = result["methods"]["perfect"]
    for key, entry in perfect.items():
        assert entry["value"] == pytest.approx(0 if key == "mse" else 1, abs=1e-6), key


def test_pictures_without_information_score_chance_within_their_interval(result):
    for key, entry in result["methods"]["shuffled"].items():
        if key != "n-way-top1-best-column":  # optimistic by construction
            assert entry["low"] <= entry["chance"] <= entry["high"], (key, entry)


def test_values_are_means_of_the_rows_kept_for_the_report(result):
    for name, scores in result["rows"]["scores"].items():
        for key, rows in scores.items():
            assert len(rows) == 48
            assert np.mean(rows) == pytest.approx(result["methods"][name][key]["value"])


def test_paired_difference_is_the_difference_of_the_values_and_narrower_than_unpaired(result):
    ours, theirs = result["methods"]["cadiff"]["pixcorr"], result["methods"]["ridge"]["pixcorr"]
    difference = result["differences"]["cadiff - ridge"]["pixcorr"]
    assert difference["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert difference["high"] - difference["low"] < (ours["high"] - ours["low"]) + (theirs["high"] - theirs["low"])
    assert set(result["differences"]) == {"cadiff - ridge", "cadiff - perfect", "cadiff - shuffled"}


def test_rows_of_one_stimulus_are_averaged_and_are_never_each_others_distractors():
    truth, labels = world(8)
    twice = np.repeat(truth, 2, 0)
    recon = noisy(twice, 2, 200, 4)
    by_id = evaluate(
        {"one": recon}, twice, np.repeat(labels, 2), ColourReader(), seed=0, stimulus=np.repeat(range(8), 2)
    )
    by_picture = evaluate({"one": recon}, twice, np.repeat(labels, 2), ColourReader(), seed=0)
    assert by_id["stimuli"] == by_picture["stimuli"] == 8
    assert by_id["methods"]["one"]["two-way-pixcorr"] == by_picture["methods"]["one"]["two-way-pixcorr"]
    pairs = m.pair_correlation(recon, truth)
    scores = m.two_way(pairs, np.repeat(range(8), 2))
    assert by_id["methods"]["one"]["two-way-pixcorr"]["value"] == pytest.approx(scores.mean())
    assert by_id["methods"]["one"]["two-way-pixcorr"]["n"] == 8


def test_same_seed_same_result():
    truth, labels = world(6)
    methods = {"a": noisy(truth, 1, 100, 0)}
    one, two, other = (evaluate(methods, truth, labels, ColourReader(), seed=seed, resamples=200) for seed in (1, 1, 2))
    assert one == two
    assert one["methods"]["a"]["pixcorr"]["low"] != other["methods"]["a"]["pixcorr"]["low"]


def test_unknown_classes_leave_class_accuracy_out_and_say_so():
    truth, labels = world(12)
    labels[3] = -1
    found = evaluate({"a": truth[:, None]}, truth, labels, ColourReader(labels=range(5)), seed=0, resamples=100)
    assert "class-accuracy" not in found["methods"]["a"]
    assert "3 of 12 test stimuli have a class that the classifier never saw" in found["notes"][0]
    assert found["notes"][0] in conclusions(found)


def test_constant_reconstructions_give_finite_scores():
    truth, labels = world(6)
    grey = np.full((6, 2, 3, 24, 24), 128, np.uint8)
    found = evaluate({"grey": grey}, truth, labels, ColourReader(), seed=0, resamples=100)["methods"]["grey"]
    assert all(np.isfinite(list(v for v in entry.values() if isinstance(v, float))).all() for entry in found.values())
    assert found["two-way-pixcorr"]["value"] == 0.5 and found["pixcorr"]["value"] == 0


def test_few_stimuli_leave_out_scores_that_need_more():
    truth, labels = world(4)
    found = evaluate({"a": truth[:, None]}, truth, labels, ColourReader(), seed=0, resamples=100)
    assert "retrieval-top1" in found["definitions"] and "retrieval-top5" not in found["definitions"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda methods, truth: ({}, truth), "got no reconstructions"),
        (lambda methods, truth: (methods, truth[:1].repeat(6, 0)), "at least 2 different test stimuli, found 1"),
        (lambda methods, truth: ({"a": methods["a"][:4]}, truth), "'a' has 4 rows"),
        (lambda methods, truth: ({"a": methods["a"].astype(float)}, truth), "'a' is float64"),
        (lambda methods, truth: ({"a": methods["a"][..., :12]}, truth), "Resize them alike"),
        (lambda methods, truth: ({"a": methods["a"][:, 0]}, truth), "expected uint8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, match):
    truth, labels = world(6)
    methods, changed = change({"a": truth[:, None]}, truth)
    with pytest.raises(ConfigError, match=match):
        evaluate(methods, changed, labels, ColourReader(), seed=0)


def entry(value, low, high, chance=0.5):
    return {"value": value, "low": low, "high": high, "chance": chance}


def told(main, shuffled, ridge, stimuli=100, accuracy=0.97):
    key = "two-way-features"
    return {
        "main": "cadiff", "stimuli": stimuli, "notes": [], "definitions": {key: vars(m.METRICS[key])},
        "methods": {"cadiff": {key: main}, "shuffled": {key: shuffled}},
        "differences": {"cadiff - ridge": {key: ridge}, "cadiff - shuffled": {key: entry(0.2, 0.1, 0.3)}},
        "classifier": {"accuracy_on_stimuli": accuracy},
    }  # fmt: skip


def test_sentences_say_what_the_intervals_allow():
    at_chance = entry(0.51, 0.47, 0.55)
    assert conclusions(told(entry(0.71, 0.66, 0.76), at_chance, entry(-0.1, -0.15, -0.05))) == [
        "Two-way identification, features: 0.71 [0.66, 0.76] lies above chance 0.50.",
        "CADiff is below ridge in two-way identification, features by -0.10 [-0.15, -0.05].",
        "Shuffled fMRI is consistent with chance, as it must be.",
    ]
    said = conclusions(told(entry(0.52, 0.46, 0.58), at_chance, entry(0.01, -0.05, 0.07)))
    assert "is consistent with chance" in said[0]
    assert "cannot be told apart" in said[1]
    assert "lies below chance" in conclusions(told(entry(0.3, 0.2, 0.4), at_chance, entry(0.1, 0.05, 0.2)))[0]


def test_a_shuffled_control_away_from_chance_is_called_out():
    above = conclusions(told(entry(0.9, 0.8, 0.95), entry(0.7, 0.6, 0.8), entry(0.1, 0.0, 0.2)))[2]
    assert "Shuffled fMRI lies above chance" in above and "leaks" in above
    below = conclusions(told(entry(0.9, 0.8, 0.95), entry(0.3, 0.2, 0.4), entry(0.1, 0.0, 0.2)))[2]
    assert "Shuffled fMRI lies below chance" in below


def test_few_stimuli_and_a_weak_classifier_are_caveats():
    said = conclusions(told(entry(0.7, 0.6, 0.8), entry(0.5, 0.4, 0.6), entry(0, -1, 1), stimuli=9, accuracy=0.6))
    assert "Only 9 test stimuli" in said[-2] and "only 60%" in said[-1]


def test_the_judge_learns_from_training_pictures_of_known_classes_only(tiny_set, monkeypatch):
    ds, seen = Dataset(tiny_set), {}

    def spy(images, labels, *, classes, split_B, seed):
        seen.update(images=images, labels=labels, classes=classes, split_B=split_B)
        return Classifier(classes)

    monkeypatch.setattr("cadiff.judge.fit_classifier", spy)
    judge = train_judge([ds], size=16, seed=0)
    held_out = {fingerprint(image) for image in labelled_pictures(ds, TEST, ds.classes, 16)[0]}
    assert seen["classes"] == 3 and len(seen["images"]) == len(seen["labels"]) > 0
    assert not held_out & {fingerprint(image) for image in seen["images"]}
    assert (seen["split_B"] == 0).all() and len(seen["split_B"]) == len(seen["images"])
    assert 0 <= judge.card["accuracy_on_validation"] <= 1


def test_labelled_pictures_takes_each_stimulus_once_and_maps_class_names(tiny_set):
    ds = Dataset(tiny_set)
    images, labels, latest = labelled_pictures(ds, 0, ["blue", "red"], 16)
    stimuli = [i for i in range(32) if i % 3 != 1]
    assert np.array_equal(images, ds.images(np.array(stimuli), 16))
    assert labels.tolist() == [{0: 1, 2: 0}[i % 3] for i in stimuli]
    assert (latest == 0).all()
    images, labels, latest = labelled_pictures(ds, 0, [], 16)
    assert len(images) == len(labels) == len(latest) == 0


def test_a_picture_that_a_test_sample_shows_too_never_teaches_the_judge(tiny_set, monkeypatch):
    ds = Dataset(tiny_set)
    shown_twice = ds.table.stimulus[ds.ids(split="test")[0]]
    ds.table.stimulus[ds.ids(split="train")[0]] = shown_twice
    _, _, latest = labelled_pictures(ds, 0, ds.classes, 16)
    assert (latest == TEST).sum() == 1
    monkeypatch.setattr("cadiff.judge.fingerprint", lambda image: object())  # the first guard is blind
    with pytest.raises(ConfigError, match=r"1 of \d+ rows are of the test split"):
        train_judge([ds], size=16, seed=0)


def test_a_set_without_labelled_training_pictures_cannot_teach_a_judge(tiny_set, monkeypatch):
    ds = Dataset(tiny_set)
    monkeypatch.setattr(ds, "classes", ["a", "b", "c"])
    ds.table.label = np.full(len(ds), -1)
    with pytest.raises(ConfigError, match="no labelled training stimuli"):
        train_judge([ds], size=16, seed=0)


def test_ssim_chance_uses_other_stimuli_only():
    truth, labels = world(6)
    judge = Judge(ColourReader(), truth, labels, np.arange(6), np.arange(6), ways=6, seed=0)
    assert 0 not in judge.shifts and len(set(judge.shifts.tolist())) == 4
    _, chance = judge.score(truth[:, None])
    assert chance["ssim_rgb"] < 0.5
