"""The encoding model: receptive fields, orientation, colour and class tuning, and the haemodynamic response."""

import numpy as np
import pytest

from cadiff.shards.synthetic.encoding import AREAS, class_embedding, drive, grow, receptive_fields, respond, retinotopy
from cadiff.shards.synthetic.features import CHANNELS, COLOURS, ENERGY, FIELD_DEG, ORIENTATIONS, SCALES, join, see
from cadiff.shards.synthetic.gallery import SceneGallery
from cadiff.shards.synthetic.hemodynamics import double_gamma, scene_courses

KINDS = ("face", "animal", "place", "place", "object", "vehicle")


def grating(x_deg, y_deg, angle_deg, cycles):
    """A small patch of stripes on grey, uint8 (256, 256, 3)."""
    place = ((np.arange(256) + 0.5) / 256 - 0.5) * FIELD_DEG
    x, y = place[None, :], place[:, None]
    along = (x * np.cos(np.radians(angle_deg)) + y * np.sin(np.radians(angle_deg))) * cycles / FIELD_DEG
    window = np.exp(-((x - x_deg) ** 2 + (y - y_deg) ** 2) / (2 * 0.9**2))
    return np.repeat((127.5 + 120 * window * np.cos(2 * np.pi * along))[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("area", ["V1", "V2", "V3"])
def test_a_voxel_answers_to_its_orientation_in_its_receptive_field_and_nowhere_else(area):
    voxels = grow(0, "s", area, 200, 200, KINDS)
    depth = np.hypot(voxels.x_V, voxels.y_V)
    tuned = voxels.weights_VC[:, :ENERGY].reshape(-1, len(SCALES), len(ORIENTATIONS))
    for voxel in np.flatnonzero((depth > 2.5) & (depth < 4))[::20]:
        scale, best = np.unravel_index(tuned[voxel].argmax(), tuned[voxel].shape)
        x, y, angle = voxels.x_V[voxel], voxels.y_V[voxel], ORIENTATIONS[best]
        pictures = [
            grating(x, y, angle, SCALES[scale]),
            grating(x, y, angle + 90, SCALES[scale]),
            grating(-x, -y, angle, SCALES[scale]),
            np.full((256, 256, 3), 127, np.uint8),
        ]
        here, turned, elsewhere, nothing = drive(voxels, see(np.stack(pictures), np.zeros(4)))[:, voxel]
        assert here > 1.3 * turned
        assert here > 3 * elsewhere
        assert here > 3 * nothing


def test_energy_does_not_depend_on_phase():
    stripes = [np.roll(grating(0, 0, 0, 8.0), shift, axis=1) for shift in (0, 8, 16)]
    maps = see(np.stack(stripes), np.zeros(3)).maps_NCP
    channel = SCALES.index(8.0) * len(ORIENTATIONS)
    energy = maps[:, channel].sum(axis=1)
    assert np.ptp(energy) < 0.02 * energy.mean()
    assert maps[0, :ENERGY].sum(axis=1).argmax() == channel


def test_colour_channels_see_colour_and_energy_does_not():
    flat = np.stack(
        [np.full((256, 256, 3), colour, np.uint8) for colour in ((200, 60, 60), (60, 200, 60), (60, 60, 200))]
    )
    maps = see(flat, np.zeros(3)).maps_NCP
    assert maps.shape == (3, CHANNELS, 1024)
    assert np.abs(maps[:, :ENERGY]).max() < 1e-4
    red_green, blue_yellow = maps[:, COLOURS].mean(axis=2)[:, 1:].T
    assert red_green[0] > 0.5 > 0 > red_green[1]
    assert blue_yellow[2] > 0.5 > 0 > blue_yellow[0]


def test_fields_grow_with_eccentricity_and_from_area_to_area():
    sizes = {}
    for area in ("V1", "V2", "V3", "V4", "LOC"):
        voxels = grow(0, "s", area, 150, 150, KINDS)
        depth = np.hypot(voxels.x_V, voxels.y_V)
        assert voxels.size_V[depth > 4].mean() > voxels.size_V[depth < 1].mean()
        sizes[area] = voxels.size_V.mean()
        assert np.allclose(receptive_fields(voxels).sum(axis=1), 1, atol=1e-4)
    assert list(sizes.values()) == sorted(sizes.values())


def test_hemispheres_see_opposite_sides_and_neighbours_see_neighbouring_places():
    voxels = grow(0, "s", "V1", 300, 280, KINDS)
    assert (voxels.x_V[:300] >= 0).all()
    assert (voxels.x_V[300:] <= 0).all()
    step = np.hypot(np.diff(voxels.x_V[:300]), np.diff(voxels.y_V[:300]))
    shuffled = np.random.default_rng(0).permutation(300)
    far = np.hypot(np.diff(voxels.x_V[shuffled]), np.diff(voxels.y_V[shuffled]))
    assert step.mean() < 0.4 * far.mean()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 331])
def test_any_number_of_voxels_has_places_in_the_field(count):
    x, y = retinotopy(count, 1.0, np.random.default_rng(0))
    assert x.shape == y.shape == (count,)
    assert (np.abs(x) <= FIELD_DEG / 2).all()
    assert (np.abs(y) <= FIELD_DEG / 2).all()


def test_subjects_differ_but_find_the_same_classes_similar():
    one, two = (grow(0, name, "LOC", 300, 300, KINDS) for name in ("one", "two"))
    assert not np.allclose(one.weights_VC, two.weights_VC)
    similarity = np.mean([np.corrcoef(class_embedding(seed, KINDS)) for seed in range(100)], axis=0)
    assert similarity[2, 3] == pytest.approx(0.5, abs=0.1)  # two classes of one kind
    assert abs(similarity[0, 1]) < 0.1
    brains = [np.corrcoef(voxels.tuning_VK.T)[np.triu_indices(6, 1)] for voxels in (one, two)]
    assert np.corrcoef(*brains)[0, 1] > 0.5


def test_face_and_place_areas_prefer_their_kinds():
    face = grow(0, "s", "FFA", 200, 200, KINDS).tuning_VK.mean(axis=0)
    place = grow(0, "s", "PPA", 200, 200, KINDS).tuning_VK.mean(axis=0)
    assert set(np.argsort(face)[-2:]) == {0, 1}
    assert set(np.argsort(place)[-3:]) == {2, 3, 5}


def test_responses_are_standard_over_the_reference_pictures_and_classes_separate_in_higher_areas():
    gallery = SceneGallery(1, 6)
    train, test = gallery.training("train", 90), gallery.held_out("test", 36)
    features = join(see(train.images, train.labels), see(test.images, test.labels))
    assert len(features) == 126
    accuracy = {}
    for area in ("V1", "LOC", "FFA", "PPA"):
        answers = respond(grow(3, "s", area, 40, 40, gallery.kinds), features, 90)
        assert answers.dtype == np.float32
        assert np.allclose(answers[:90].mean(axis=0), 0, atol=1e-4)
        assert np.allclose(answers[:90].std(axis=0), 1, atol=1e-3)
        centres = np.stack([answers[:90][train.labels == c].mean(axis=0) for c in range(6)])
        nearest = ((answers[90:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        accuracy[area] = (nearest == test.labels).mean()
    assert min(accuracy["LOC"], accuracy["FFA"], accuracy["PPA"]) > 0.9
    assert accuracy["V1"] < accuracy["LOC"]


def test_every_area_has_a_known_share_of_class():
    assert all(AREAS[area].class_share == 0 for area in ("V1", "V2", "V3", "EarlyVis"))
    assert all(AREAS[area].class_share >= 0.5 for area in ("LOC", "FFA", "PPA", "OPA", "RSC"))


def test_haemodynamic_response_peaks_at_five_seconds_and_undershoots_later():
    time_s = np.arange(0, 32, 0.05)
    response = double_gamma(time_s)
    assert 4.5 < time_s[response.argmax()] < 5.5
    assert response.max() == pytest.approx(1, abs=0.01)
    assert double_gamma(np.array([-1.0, 0.0])).tolist() == [0, 0]
    assert 12 < time_s[response.argmin()] < 18
    assert -0.2 < response.min() < -0.02


@pytest.mark.parametrize("tr_s", [0.72, 1.0])
def test_a_scene_peaks_seven_seconds_after_its_onset_at_any_repetition_time(tr_s):
    courses = scene_courses(20, 4.0, round(80 / tr_s), tr_s)
    times = (np.arange(len(courses)) + 0.5) * tr_s
    for scene in (0, 5, 12):
        assert times[courses[:, scene].argmax()] == pytest.approx(4 * scene + 7, abs=1.1)
        assert (courses[times < 4 * scene, scene] == 0).all()
    values = courses @ np.random.default_rng(0).standard_normal((20, 500))
    assert values.var() == pytest.approx(1, abs=0.1)
