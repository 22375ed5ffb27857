"""The simulated visual cortex: receptive fields over feature maps, and class tuning in the higher areas.

Shape suffixes: V voxels, C feature channels, P map positions, K classes, N pictures. Lengths are in degrees of
visual angle, x to the right and y down from the centre of gaze.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cadiff.shards.synthetic.features import (
    CHANNELS,
    COLOUR,
    COLOURS,
    CURVATURE,
    ENERGY,
    FIELD_DEG,
    MAP,
    ORIENTATIONS,
    SCALES,
    Features,
)
from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.noise import ar1
from cadiff.shards.synthetic.steady import product


@dataclass(frozen=True)
class Area:
    """How one area differs from the others.

    Receptive-field sizes follow Dumoulin & Wandell (NeuroImage 2008): sigma = base + slope x eccentricity, growing
    from V1 to the object areas. ``exponent`` < 1 is the compressive summation of Kay et al. (J Neurophysiol 2013).
    """

    base: float
    slope: float
    energy: float  # weight of oriented energy
    curvature: float
    colour: float
    scale: float  # preferred spatial frequency, as an index into SCALES
    exponent: float
    class_share: float  # share of the response's variance that comes from the object's class
    liked: tuple[str, ...] = ()  # kinds of class that drive the area as a whole


AREAS: dict[str, Area] = {
    "V1": Area(0.25, 0.10, 1.0, 0.0, 0.0, 1.6, 0.7, 0.0),
    "V2": Area(0.35, 0.15, 1.0, 0.0, 0.0, 1.2, 0.7, 0.0),
    "V3": Area(0.50, 0.22, 1.0, 0.0, 0.0, 0.8, 0.7, 0.0),
    "EarlyVis": Area(0.30, 0.13, 1.0, 0.0, 0.0, 1.4, 0.7, 0.0),
    "V4": Area(0.80, 0.30, 0.3, 0.5, 1.0, 0.6, 1.0, 0.1),
    "LOC": Area(1.80, 0.40, 0.3, 0.7, 0.4, 0.4, 1.0, 0.6),
    "FFA": Area(2.20, 0.40, 0.2, 0.7, 0.4, 0.4, 1.0, 0.7, ("face", "animal", "person", "dog", "mammal", "bird")),
    "PPA": Area(2.50, 0.50, 0.5, 0.3, 0.6, 0.6, 1.0, 0.6, ("place", "vehicle")),
    "OPA": Area(2.00, 0.40, 0.6, 0.3, 0.5, 0.6, 1.0, 0.5, ("place", "plant")),
    "RSC": Area(3.00, 0.50, 0.4, 0.3, 0.6, 0.4, 1.0, 0.6, ("place",)),
}
EMBEDDING = 16  # dimensions of the class structure
SMOOTHNESS = 0.9  # correlation of preferences between neighbouring voxels


@dataclass(frozen=True)
class Population:
    """The voxels of one area in one subject, left hemisphere first."""

    area: str
    x_V: np.ndarray
    y_V: np.ndarray
    size_V: np.ndarray
    weights_VC: np.ndarray  # float32
    tuning_VK: np.ndarray  # float32, mean 0 and variance 1 over classes

    def __len__(self) -> int:
        return len(self.x_V)


def grow(seed: int, subject: str, area: str, left: int, right: int, kinds: tuple[str, ...]) -> Population:
    """Draw one subject's voxels of an area: ``left`` of the left hemisphere (right visual field), then ``right``."""
    traits = AREAS[area]
    rng = generator(seed, "voxels", subject, area)
    halves = [retinotopy(count, side, rng) for count, side in ((left, 1.0), (right, -1.0))]
    x_V, y_V = (np.concatenate([half[axis] for half in halves]) for axis in (0, 1))
    size_V = (traits.base + traits.slope * np.hypot(x_V, y_V)) * np.exp(rng.normal(0, 0.12, left + right))
    weights_VC = _weights(traits, left + right, rng)
    return Population(area, x_V, y_V, size_V, weights_VC, _tuning(seed, traits, left + right, kinds, rng))


def retinotopy(count: int, side: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Receptive-field centres of one hemisphere, x and y in degrees, each (count,).

    A log-polar lattice over half the visual field, walked like a ploughed field, so that neighbouring voxels see
    neighbouring places, as neighbouring grayordinates do; jittered per subject.
    """
    rows = max(1, round(np.sqrt(count * 1.6)))
    angle_row, step = np.divmod(np.arange(count), -(-count // rows) or 1)
    steps = max(1, -(-count // rows))
    ahead = np.where(angle_row % 2 == 0, step, steps - 1 - step)
    angle = -90 + 180 * (angle_row + 0.5 + rng.normal(0, 0.3, count)) / rows
    depth = (ahead + 0.5 + rng.normal(0, 0.3, count)) / steps
    radius = 0.4 * (1.3 * FIELD_DEG / 2 / 0.4) ** np.clip(depth, 0, 1)
    half = FIELD_DEG / 2
    x = np.clip(side * np.abs(radius * np.cos(np.radians(angle))), -half, half)
    return x, np.clip(radius * np.sin(np.radians(angle)), -half, half)


def _weights(traits: Area, count: int, rng: np.random.Generator) -> np.ndarray:
    """Channel weights (V, C): bell-shaped preference for one orientation and scale; colour and curvature signed."""
    best = np.degrees(np.arctan2(*_wander(rng, count, 2).T))[:, None] / 2
    turn = np.exp(2.0 * (np.cos(np.radians(2 * (np.array(ORIENTATIONS)[None] - best))) - 1))
    favourite = traits.scale + 0.4 * _wander(rng, count, 1)
    scale = np.exp(-((np.arange(len(SCALES))[None] - favourite) ** 2) / (2 * 0.6**2))
    weights = np.zeros((count, CHANNELS))
    weights[:, :ENERGY] = traits.energy * (scale[:, :, None] * turn[:, None, :]).reshape(count, ENERGY)
    weights[:, ENERGY : ENERGY + CURVATURE] = traits.curvature * _wander(rng, count, CURVATURE)
    colour = _wander(rng, count, COLOUR)
    # Opponent signals are some twenty times larger than filter amplitudes.
    weights[:, COLOURS] = 0.06 * traits.colour * colour / np.linalg.norm(colour, axis=1, keepdims=True)
    return weights.astype(np.float32)


def _wander(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Unit normal numbers (count, columns) that drift from voxel to voxel: neighbours prefer similar things."""
    return ar1(rng.standard_normal((columns, count)), SMOOTHNESS).T


def class_embedding(seed: int, kinds: tuple[str, ...]) -> np.ndarray:
    """One vector per class (K, 16): a part shared by classes of a kind and a part of its own, equally strong.

    It belongs to the world, not to a subject: all subjects find the same classes similar.
    """
    shared = [generator(seed, "kind", kind).standard_normal(EMBEDDING) for kind in kinds]
    own = [generator(seed, "class", index).standard_normal(EMBEDDING) for index in range(len(kinds))]
    return (np.stack(shared) + np.stack(own)) / np.sqrt(2)


def _tuning(seed: int, traits: Area, count: int, kinds: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    tuning = product(_wander(rng, count, EMBEDDING), class_embedding(seed, kinds).T) / np.sqrt(EMBEDDING)
    tuning += 1.5 * np.array([kind in traits.liked for kind in kinds])
    tuning -= tuning.mean(axis=1, keepdims=True)
    spread = tuning.std(axis=1, keepdims=True)
    return np.divide(tuning, spread, out=np.zeros_like(tuning), where=spread > 0).astype(np.float32)


def receptive_fields(population: Population) -> np.ndarray:
    """Gaussian weights over the feature map, float32 (V, P), each summing to one."""
    place = ((np.arange(MAP) + 0.5) / MAP - 0.5) * FIELD_DEG
    spread = population.size_V[:, None]
    across = np.exp(-((place[None] - population.x_V[:, None]) ** 2) / (2 * spread**2))
    down = np.exp(-((place[None] - population.y_V[:, None]) ** 2) / (2 * spread**2))
    across /= across.sum(axis=1, keepdims=True)
    down /= down.sum(axis=1, keepdims=True)
    return (down[:, :, None] * across[:, None, :]).reshape(len(population), MAP * MAP).astype(np.float32)


def drive(population: Population, features: Features) -> np.ndarray:
    """What each voxel sees, before class tuning and scaling: float32 (N, V)."""
    field_PV = np.ascontiguousarray(receptive_fields(population).T)
    total_NV = np.zeros((len(features), len(population)), dtype=np.float32)
    for channel in np.flatnonzero(np.abs(population.weights_VC).max(axis=0) > 0):
        total_NV += product(features.maps_NCP[:, channel], field_PV) * population.weights_VC[:, channel]
    exponent = AREAS[population.area].exponent
    return total_NV if exponent == 1.0 else np.maximum(total_NV, 0) ** np.float32(exponent)


def respond(population: Population, features: Features, reference: int) -> np.ndarray:
    """Noiseless responses float32 (N, V), mean 0 and variance 1 over the first ``reference`` pictures."""
    share = AREAS[population.area].class_share
    seen_NV = _standardise(drive(population, features), reference)
    if share == 0:
        return seen_NV
    known_NV = population.tuning_VK[:, features.labels_N].T
    return _standardise(np.sqrt(1 - share) * seen_NV + np.sqrt(share) * known_NV, reference)


def _standardise(values_NV: np.ndarray, reference: int) -> np.ndarray:
    known = values_NV[:reference]
    return ((values_NV - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-6)).astype(np.float32)
