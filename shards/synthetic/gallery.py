"""Where stimuli come from: rendered scenes or a folder of photos, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.photos import Album, crop, read_square
from cadiff.shards.synthetic.scenes import CLASSES, LOOKS, render

SIZE = 256  # pixels per side, as the datasets ship
FIRST_WNID = 99_000_001  # beyond WordNet's numbers, so that a made-up class cannot be mistaken for a real one


@dataclass(frozen=True)
class Stimuli:
    """Pictures uint8 (n, 256, 256, 3), class of each int64 (n,), and the wnid each is filed under."""

    images: np.ndarray
    labels: np.ndarray
    wnids: list[str]


class Gallery(Protocol):
    """A source of pictures. The same purpose gives the same pictures; different purposes never share one."""

    classes: tuple[str, ...]
    kinds: tuple[str, ...]  # coarse category of each class, for the brain's class structure
    wnids: tuple[tuple[str, ...], ...]  # the wnids filed under each class

    def limit(self, count: int) -> int:
        """How many of ``count`` held-out pictures there are."""

    def training(self, purpose: str, count: int, first: int = 0) -> Stimuli:
        """Pictures number ``first`` to ``first + count`` that models may learn from."""

    def held_out(self, purpose: str, count: int) -> Stimuli:
        """Pictures that no training set contains."""


class SceneGallery:
    """Rendered scenes of the first ``classes`` classes; class of picture i is i modulo the number of classes."""

    def __init__(self, seed: int, classes: int) -> None:
        self.seed = seed
        self.classes = CLASSES[:classes]
        self.kinds = tuple(LOOKS[name].kind for name in self.classes)
        self.wnids = tuple((f"n{FIRST_WNID + index}",) for index in range(classes))

    def limit(self, count: int) -> int:
        return count

    def training(self, purpose: str, count: int, first: int = 0) -> Stimuli:
        labels = np.arange(first, first + count) % len(self.classes)
        images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        for index, label in enumerate(labels):
            images[index] = render(int(label), f"{purpose}/{first + index}", self.seed, SIZE)
        return Stimuli(images, labels, [self.wnids[label][0] for label in labels])

    def held_out(self, purpose: str, count: int) -> Stimuli:
        return self.training(purpose, count)


class PhotoGallery:
    """Photos of an album. Training pictures are random crops of training photos, in turn; held-out ones are whole."""

    def __init__(self, seed: int, album: Album) -> None:
        self.seed = seed
        self.album = album
        self.classes = album.classes
        # Photos carry no coarse category beyond their class, so each class is its own kind.
        self.kinds = album.classes
        self._train = np.flatnonzero(~album.held_out)
        self._test = np.flatnonzero(album.held_out)
        made_up = {name: f"n{FIRST_WNID + index}" for index, name in enumerate(album.classes)}
        self._wnid = [photo.wnid or made_up[album.classes[label]] for photo, label in zip(album.photos, album.labels)]
        self.wnids = tuple(
            tuple(sorted({self._wnid[i] for i in np.flatnonzero(album.labels == index)}))
            for index in range(len(album.classes))
        )
        self._squares: dict[int, np.ndarray] = {}

    def limit(self, count: int) -> int:
        return min(count, len(self._test))

    def training(self, purpose: str, count: int, first: int = 0) -> Stimuli:
        picks = self._train[np.arange(first, first + count) % len(self._train)]
        crops = (
            crop(self._square(int(pick)), generator(self.seed, "crop", purpose, index))
            for index, pick in enumerate(picks, first)
        )
        return self._collect(picks, crops)

    def held_out(self, purpose: str, count: int) -> Stimuli:
        # Spread over the list, which is sorted by class, so that a short test set still has many classes.
        picks = self._test[np.arange(self.limit(count)) * len(self._test) // self.limit(count)]
        return self._collect(picks, (self._square(int(pick)) for pick in picks))

    def _collect(self, picks: np.ndarray, pictures: Iterator[np.ndarray]) -> Stimuli:
        images = np.empty((len(picks), SIZE, SIZE, 3), dtype=np.uint8)
        for index, picture in enumerate(pictures):
            images[index] = picture
        return Stimuli(images, self.album.labels[picks], [self._wnid[pick] for pick in picks])

    def _square(self, index: int) -> np.ndarray:
        if index not in self._squares:
            self._squares[index] = read_square(self.album.photos[index].path, SIZE)
        return self._squares[index]
