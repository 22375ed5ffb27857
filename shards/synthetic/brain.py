"""The synthetic brain: its specification, and the entry point that writes every data set as the real ones ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from pydantic import Field, model_validator

from cadiff.config.sections import Section
from cadiff.errors import ConfigError
from cadiff.files import read_json, write_json
from cadiff.shards.synthetic.bold5000_files import SHOWINGS, BoldPlan, write_bold5000
from cadiff.shards.synthetic.gallery import Gallery, PhotoGallery, SceneGallery
from cadiff.shards.synthetic.god_files import GodPlan, write_god
from cadiff.shards.synthetic.hcp_files import MOVIE_RUNS, REST_RUNS, HcpPlan, write_hcp
from cadiff.shards.synthetic.image_files import write_images
from cadiff.shards.synthetic.photos import open_album
from cadiff.shards.synthetic.scenes import CLASSES

RECIPE = 1  # raised when the same specification would give other bytes
PARTS = ("hcp", "god", "bold5000", "images")
DONE, BEGUN = ".simulated.json", ".simulating.json"
Progress = Callable[[str, int, int], None]


class BrainSpec(Section):
    """Everything a simulated study depends on. The defaults are the demo's."""

    seed: int = 2022
    classes: int = Field(12, ge=2, le=len(CLASSES))  # rendered classes; photos bring their own
    photos: str = ""  # folder of photos to use as stimuli instead of rendered scenes
    snr: float = Field(0.8, gt=0)  # median over voxels of signal / noise standard deviation in a single trial
    subjects: int = Field(1, ge=1, le=5)  # GOD subjects
    voxels: int = Field(1100, ge=50)  # of a GOD subject's visual cortex
    train_images: int = Field(1200, ge=8)
    test_images: int = Field(60, ge=2)
    test_repeats: int = Field(12, ge=1)
    hcp_subjects: int = Field(6, ge=1, le=999)
    hcp_rest_runs: int = Field(1, ge=0, le=len(REST_RUNS))
    hcp_movie_runs: int = Field(1, ge=0, le=len(MOVIE_RUNS))
    hcp_frames: int = Field(240, ge=2)  # per run
    bold_subjects: int = Field(1, ge=1, le=4)
    bold_trials: int = Field(296, ge=8)
    bold_repeated: int = Field(20, ge=2)  # pictures shown four times: BOLD5000's test set
    bold_voxels: int = Field(600, ge=20)
    extra_images: int = Field(1200, ge=1)  # further pictures without a brain, for the image prior

    @model_validator(mode="after")
    def _trials(self) -> BrainSpec:
        if self.bold_trials < (SHOWINGS + 2) * self.bold_repeated:
            raise ValueError(f"bold_trials must be at least {SHOWINGS + 2} times bold_repeated")
        return self


def simulate(
    root: str | Path, spec: BrainSpec, parts: Sequence[str] = PARTS, progress: Progress | None = None
) -> dict[str, Path]:
    """Write the raw files of ``parts`` below ``root`` and return the folder of each.

    A part that is there already, made by the same specification, is left alone; one that was interrupted is made
    again. ``progress(part, done, total)`` is called as files appear.

    Raises ConfigError for an unknown part, an unusable folder of photos, or a folder that holds something else.
    """
    root = Path(root)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ConfigError(f"unknown part {unknown[0]!r}; expected some of {', '.join(PARTS)}. Correct the list.")
    album = open_album(spec.photos) if spec.photos else None
    gallery = PhotoGallery(spec.seed, album) if album else SceneGallery(spec.seed, spec.classes)
    identity = spec_hash(spec, album.fingerprint() if album else "")
    for part in parts:
        if not _begin(root, part, identity):
            continue
        paths = _write(part, root, spec, gallery, _ticker(progress, part, _steps(part, spec)))
        _finish(root, part, identity, spec, paths)
    return {part: root / part for part in parts}


def spec_hash(spec: BrainSpec, photos: str) -> str:
    """Identity of a simulated study: hash of the specification, the photos' content and the recipe."""
    content = spec.model_dump() | {"photos": photos, "recipe": RECIPE}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _ticker(progress: Progress | None, part: str, total: int) -> Callable[[], None]:
    """A function that counts its calls and reports them."""
    numbers = count(1)

    def tick() -> None:
        done = next(numbers)
        if progress is not None:
            progress(part, done, total)

    return tick


def _steps(part: str, spec: BrainSpec) -> int:
    return {
        "hcp": spec.hcp_subjects * (spec.hcp_rest_runs + spec.hcp_movie_runs),
        "god": 1 + spec.subjects,
        "bold5000": 1 + spec.bold_subjects,
        "images": spec.extra_images,
    }[part]


def _write(part: str, root: Path, spec: BrainSpec, gallery: Gallery, tick: Callable[[], None]) -> list[Path]:
    if part == "hcp":
        hcp = HcpPlan(spec.seed, spec.hcp_subjects, spec.hcp_rest_runs, spec.hcp_movie_runs, spec.hcp_frames, spec.snr)
        return write_hcp(root, hcp, gallery, tick)
    if part == "god":
        images = (spec.train_images, spec.test_images, spec.test_repeats)
        return write_god(root, GodPlan(spec.seed, spec.subjects, *images, spec.voxels, spec.snr), gallery, tick)
    if part == "bold5000":
        sizes = (spec.bold_subjects, spec.bold_trials, spec.bold_repeated, spec.bold_voxels)
        return write_bold5000(root, BoldPlan(spec.seed, *sizes, spec.snr), gallery, tick)
    return write_images(root, spec.extra_images, gallery, tick)


def _begin(root: Path, part: str, identity: str) -> bool:
    """Whether the part must be written. Files that are not of this study are never overwritten."""
    folder = root / part
    if (folder / DONE).is_file():
        marker = read_json(folder / DONE)
        if marker["identity"] == identity:
            files = ((root / name, size) for name, size in marker["files"].items())
            return not all(path.is_file() and path.stat().st_size == size for path, size in files)
        found = "another simulated study"
    elif (folder / BEGUN).is_file():
        if read_json(folder / BEGUN)["identity"] == identity:
            return True
        found = "another simulated study, unfinished"
    elif folder.is_dir() and any(folder.iterdir()):
        found = "files that the simulator did not write"
    else:
        write_json(folder / BEGUN, {"identity": identity})
        return True
    raise ConfigError(f"{folder}: holds {found}; expected an empty or new folder. Choose another or delete this one.")


def _finish(root: Path, part: str, identity: str, spec: BrainSpec, paths: list[Path]) -> None:
    """Write the marker last, so that it only stands beside complete data."""
    files = {str(path.relative_to(root)): path.stat().st_size for path in paths}
    marker = {"identity": identity, "spec": spec.model_dump(), "files": files}
    write_json(root / part / DONE, marker)
    (root / part / BEGUN).unlink(missing_ok=True)
