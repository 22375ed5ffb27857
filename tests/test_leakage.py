"""Subject leakage: a pure signature of the subject scores 1, features that ignore subjects score chance."""

import numpy as np
import pytest
import torch

from cadiff.errors import ConfigError
from cadiff.leakage import confusions, nearest_subject, stimulus_retrieval, validation_leak

SUBJECT = np.repeat(np.arange(4), 6)  # four people, six samples each
STIMULUS = np.tile(np.arange(6), 4)  # all see the same six pictures


def one_hot(numbers):
    return np.eye(numbers.max() + 1)[numbers]


def features(signature, shown, noise=0.0, seed=0):
    """What tells who somebody is and what he saw, side by side, with these weights."""
    rng = np.random.default_rng(seed)
    parts = [signature * one_hot(SUBJECT), shown * one_hot(STIMULUS)]
    return np.concatenate(parts, 1) + noise * rng.standard_normal((24, 10))


def test_a_pure_signature_is_found_and_chance_is_the_share_of_the_subject():
    score = nearest_subject(features(1, 0), SUBJECT)
    assert score.value == 1 and score.lift == 1
    assert score.expected == pytest.approx(5 / 23)


def test_features_that_are_all_alike_score_exactly_chance():
    score = nearest_subject(np.ones((24, 3)), SUBJECT)
    assert score.value == pytest.approx(5 / 23) and score.lift == pytest.approx(0)


def test_noise_scores_about_chance_and_subjects_that_repel_score_below():
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(4), 200)
    assert nearest_subject(rng.standard_normal((800, 20)), subject).lift == pytest.approx(0, abs=0.05)
    assert nearest_subject(features(0, 1, 0.01), SUBJECT).value == 0  # the nearest saw the same picture, and is another


def test_subjects_of_different_size_have_their_own_chance():
    subject = np.array([0, 0, 0, 1, 1, 2])
    score = nearest_subject(np.ones((6, 2)), subject)
    assert score.row.tolist() == [0, 1, 2, 3, 4]  # nobody else is subject 2
    np.testing.assert_allclose(score.chance, [2 / 5, 2 / 5, 2 / 5, 1 / 5, 1 / 5])


def test_frames_of_ones_own_run_can_be_kept_out():
    # All frames of a run are one; runs, also those of one person, have nothing in common.
    run = np.tile(np.repeat([0, 1], 3), 4)
    of_run = one_hot(SUBJECT * 2 + run)
    assert nearest_subject(of_run, SUBJECT).value == 1  # looks like a signature
    score = nearest_subject(of_run, SUBJECT, run)
    assert score.value == pytest.approx(score.expected) and score.expected == pytest.approx(3 / 21)
    signed = np.concatenate([of_run, 20 * one_hot(SUBJECT)], 1)
    assert nearest_subject(signed, SUBJECT, run).value == 1
    assert len(nearest_subject(of_run, SUBJECT, np.zeros(24)).row) == 0  # one run each: there is nothing to find


def test_predictions_that_only_tell_the_subject_stay_with_it_and_guess_within_it():
    target = features(1, 0, 0.3)
    prediction = features(1, 0)
    found = confusions(prediction, prediction, SUBJECT, temperature=0.1)
    assert found.found.value == pytest.approx(1 / 6) and found.found_within.value == pytest.approx(1 / 6)
    assert found.stays == 1 and found.stays_chance == pytest.approx(5 / 23)
    assert found.leak == pytest.approx(1, abs=1e-2)
    assert confusions(prediction, target, SUBJECT, temperature=0.01).leak > 0.9


def test_predictions_that_ignore_the_subject_leak_nothing():
    shown = features(0, 1)
    found = confusions(shown, shown, SUBJECT, temperature=0.1)
    assert found.found.value == pytest.approx(1 / 4)  # four people saw the same
    assert found.found_within.value == 1
    assert found.stays == 0 and found.leak < 0  # who is taken for another is taken for another subject
    alike = np.ones((24, 3))
    guessing = confusions(alike, alike, SUBJECT, temperature=0.1)
    assert guessing.stays == pytest.approx(guessing.stays_chance) and guessing.leak == pytest.approx(0, abs=1e-6)
    assert guessing.found.value == pytest.approx(1 / 24) and guessing.found.lift == pytest.approx(0)


def test_perfect_predictions_have_no_wrong_choice_and_still_a_leak():
    own = np.eye(24)
    perfect = confusions(own, own, SUBJECT, temperature=0.1)
    assert perfect.found.value == 1 and np.isnan(perfect.stays)
    assert perfect.leak == pytest.approx(0, abs=1e-6)  # all wrong candidates are equally far
    signed = np.concatenate([own, 0.5 * one_hot(SUBJECT)], 1)
    assert confusions(signed, signed, SUBJECT, temperature=0.1).leak > 0.5


def test_a_stimulus_is_found_in_other_subjects_whatever_the_signature():
    for signature in (0, 1, 10):
        assert stimulus_retrieval(features(signature, 1), SUBJECT, STIMULUS).value == 1
    score = stimulus_retrieval(features(1, 0), SUBJECT, STIMULUS)
    assert score.value == pytest.approx(1 / 6) and score.expected == pytest.approx(3 / 18)


def test_among_the_own_subjects_samples_a_signature_costs_what_it_hides():
    assert stimulus_retrieval(features(0.1, 1), SUBJECT, STIMULUS, own_subject=True).value == 1
    assert stimulus_retrieval(features(10, 1), SUBJECT, STIMULUS, own_subject=True).value == 0


def test_samples_that_saw_nothing_are_candidates_and_not_asked():
    stimulus = np.where(STIMULUS == 0, -1, STIMULUS)
    score = stimulus_retrieval(features(0, 1), SUBJECT, stimulus)
    assert set(stimulus[score.row]) == {1, 2, 3, 4, 5}
    assert score.value == 1 and score.expected == pytest.approx(3 / 18)


def test_what_cannot_be_asked_is_said():
    with pytest.raises(ConfigError, match="at least 2 subjects"):
        confusions(np.eye(4), np.eye(4), np.zeros(4), temperature=0.1)
    with pytest.raises(ConfigError, match="give one each"):
        nearest_subject(np.eye(4), np.zeros(3))
    with pytest.raises(ConfigError, match="at least 2 samples"):
        nearest_subject(np.eye(1), np.zeros(1))


def batches(**changed):
    """Two batches as a phase's ``features`` gives them: predictions that carry the subject and the picture."""
    values = {
        "first": torch.tensor(features(1, 1, 0.1), dtype=torch.bfloat16),
        "signal": torch.tensor(features(1, 1, 0.1, seed=1), dtype=torch.float32),
        "subject": torch.tensor(SUBJECT),
        "stimulus": torch.tensor(STIMULUS),
    } | changed
    return [{name: value[part] for name, value in values.items()} for part in (slice(0, 10), slice(10, 24))]


def test_validation_reports_everything_by_name():
    told = validation_leak(batches(), 0.1)
    assert set(told) == {
        f"val/{name}"
        for name in (
            "subject_leak", "subject_stays", "subject_stays_chance", "own_top1", "own_top1_within", "subject_nearest",
            "subject_nearest_chance", "stimulus_top1", "stimulus_top1_chance",
        )
    }  # fmt: skip
    assert told["val/own_top1"] > 0.9 and told["val/stimulus_top1"] > 0.9
    assert told["val/subject_nearest_chance"] == pytest.approx(5 / 23)


def test_validation_copies_each_batch_and_stops_at_its_limit(monkeypatch):
    def reused():
        held = None
        for batch in batches():
            if held is not None:
                held["subject"].zero_()  # a stream that fills its memory again
            held = {name: value.clone() for name, value in batch.items()}
            yield held
        held["subject"].zero_()

    assert validation_leak(reused(), 0.1) == pytest.approx(validation_leak(batches(), 0.1), nan_ok=True)
    monkeypatch.setattr("cadiff.leakage.MOST", 12)
    endless = (batch for _ in iter(int, 1) for batch in batches())
    assert validation_leak(endless, 0.1)["val/subject_nearest_chance"] == pytest.approx(5 / 11)


def test_validation_is_silent_where_there_is_no_question():
    assert validation_leak(batches(subject=torch.zeros(24, dtype=torch.int64)), 0.1) == {}
    assert validation_leak([], 0.1) == {}
    assert "val/stimulus_top1" not in validation_leak(batches(stimulus=torch.full((24,), -1)), 0.1)
