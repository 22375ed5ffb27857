"""HCP runs as released: CIFTI-2 dense time series under <subject>/MNINonLinear/Results/<run>/.

Shape suffixes: G grayordinates, T frames, S scenes, V visual grayordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np

from cadiff.files import whole_file
from cadiff.shards.mmp import GRAYORDINATES
from cadiff.shards.synthetic.encoding import grow, respond
from cadiff.shards.synthetic.features import Features, see
from cadiff.shards.synthetic.gallery import Gallery
from cadiff.shards.synthetic.grayordinates import brain_axis, visual_columns
from cadiff.shards.synthetic.hemodynamics import scene_courses
from cadiff.shards.synthetic.keys import generator
from cadiff.shards.synthetic.noise import ar1, blur_rows, draw_ncsnr
from cadiff.shards.synthetic.steady import product
from cadiff.shards.synthetic.truth import save_truth

REST_RUNS = ("rfMRI_REST1_LR", "rfMRI_REST1_RL", "rfMRI_REST2_LR", "rfMRI_REST2_RL")
MOVIE_RUNS = ("tfMRI_MOVIE1_7T_AP", "tfMRI_MOVIE2_7T_PA", "tfMRI_MOVIE3_7T_PA", "tfMRI_MOVIE4_7T_AP")
FILE_END = "_Atlas_MSMAll_hp2000_clean.dtseries.nii"  # 2 mm; the 1.6 mm files of 7T runs have 170,494 grayordinates
REST_TR_S = 0.72
MOVIE_TR_S = 1.0
SCENE_S = 4.0
REPLAYS = 24  # scenes whose response patterns come and go spontaneously at rest
NOISE_RHO = 0.4  # lag-one correlation of the noise
NETWORK_RHO = 0.9  # the same of networks and replays
NETWORKS = 10
NETWORK_SHARE = 0.35  # share of the noise variance that comes from networks
SILENT = 12  # grayordinates without variance per run, one of them visual, as real files have
ROWS = 8192  # grayordinates per block of noise: bounds memory, and keys the noise


@dataclass(frozen=True)
class HcpPlan:
    """What to write. ``snr`` is the median ratio of signal to noise standard deviation over visual grayordinates."""

    seed: int
    subjects: int
    rest_runs: int
    movie_runs: int
    frames: int
    snr: float

    @property
    def names(self) -> list[str]:
        """Six-digit subject numbers beyond those HCP gave out."""
        return [str(990_001 + index) for index in range(self.subjects)]


def write_hcp(root: Path, plan: HcpPlan, gallery: Gallery, tick: Callable[[], None]) -> list[Path]:
    """Write every run of every subject below ``root/hcp``; ``tick`` is called after each run. Returns the paths."""
    replays = _features(gallery, "hcp/replay", REPLAYS)
    length = -(-round(plan.frames * MOVIE_TR_S * 10) // round(SCENE_S * 10))
    movies = [_features(gallery, f"hcp/{run}", length) for run in MOVIE_RUNS[: plan.movie_runs]]
    paths = []
    for subject in plan.names:
        ncsnr_V = draw_ncsnr(generator(plan.seed, "hcp/ncsnr", subject), len(_columns()), plan.snr)
        truth = {"ncsnr": ncsnr_V, "columns": _columns()}
        for run in REST_RUNS[: plan.rest_runs]:
            patterns_SV, _ = _responses(plan.seed, subject, gallery, replays)
            white = generator(plan.seed, "hcp/replays", subject, run).standard_normal(
                (REPLAYS, plan.frames), np.float32
            )
            courses_TS = ar1(white, NETWORK_RHO).T / np.float32(np.sqrt(REPLAYS))
            paths.append(_write_run(root, plan, subject, run, REST_TR_S, product(courses_TS, patterns_SV), ncsnr_V))
            tick()
        for run, scenes in zip(MOVIE_RUNS, movies):
            patterns_SV, fields = _responses(plan.seed, subject, gallery, scenes)
            courses_TS = scene_courses(len(scenes), SCENE_S, plan.frames, MOVIE_TR_S)
            paths.append(_write_run(root, plan, subject, run, MOVIE_TR_S, product(courses_TS, patterns_SV), ncsnr_V))
            truth |= {f"{run}_responses": patterns_SV, f"{run}_labels": scenes.labels_N, **fields}
            tick()
        paths.append(save_truth(root, "hcp", subject, truth))
    return paths


def _features(gallery: Gallery, purpose: str, count: int) -> Features:
    stimuli = gallery.training(purpose, count)
    return see(stimuli.images, stimuli.labels)


def _columns() -> np.ndarray:
    """Visual grayordinates in the order V1 left, V1 right, V2 left and so on."""
    return np.concatenate([half for halves in visual_columns().values() for half in halves])


def _responses(seed: int, subject: str, gallery: Gallery, scenes: Features) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Noiseless responses (S, V), mean 0 and variance 1 over the scenes, and the receptive fields behind them."""
    areas = [
        grow(seed, f"hcp/{subject}", area, len(left), len(right), gallery.kinds)
        for area, (left, right) in visual_columns().items()
    ]
    fields = {
        name: np.concatenate([getattr(area, f"{name[3:]}_V") for area in areas]) for name in ("rf_x", "rf_y", "rf_size")
    }
    return np.concatenate([respond(area, scenes, len(scenes)) for area in areas], axis=1), fields


def _write_run(
    root: Path, plan: HcpPlan, subject: str, run: str, tr_s: float, signal_TV: np.ndarray, ncsnr_V: np.ndarray
) -> Path:
    series_GT = brain_noise(plan.seed, subject, run, plan.frames)
    columns_V = _columns()
    series_GT[columns_V] += signal_TV.T * ncsnr_V[:, None]
    rng = generator(plan.seed, "hcp/scale", subject)
    level_G, depth_G = rng.normal(10_000, 900, GRAYORDINATES), rng.uniform(80, 200, GRAYORDINATES)
    series_GT *= depth_G[:, None].astype(np.float32)
    series_GT += level_G[:, None].astype(np.float32)
    rng = generator(plan.seed, "hcp/silent", subject)
    series_GT[rng.choice(GRAYORDINATES, SILENT - 1, replace=False)] = 0
    series_GT[rng.choice(columns_V)] = 0
    path = root / "hcp" / subject / "MNINonLinear" / "Results" / run / f"{run}{FILE_END}"
    save_dtseries(path, series_GT, tr_s)
    return path


def brain_noise(seed: int, subject: str, run: str, frames: int) -> np.ndarray:
    """Unit-variance noise float32 (91282, frames): networks of the subject plus local noise, both autocorrelated."""
    rng = generator(seed, "hcp/networks", subject, run)
    courses_KT = ar1(rng.standard_normal((NETWORKS, frames), np.float32), NETWORK_RHO)
    series_GT = np.empty((GRAYORDINATES, frames), dtype=np.float32)
    for start in range(0, GRAYORDINATES, ROWS):
        block = series_GT[start : start + ROWS]
        mixing = ar1(
            generator(seed, "hcp/mixing", subject, start).standard_normal((NETWORKS, len(block)), np.float32), 0.95
        )
        mixing *= np.float32(np.sqrt(NETWORK_SHARE)) / np.linalg.norm(mixing, axis=0)
        white = generator(seed, "hcp/noise", subject, run, start).standard_normal(block.shape, np.float32)
        block[:] = ar1(blur_rows(white), NOISE_RHO)
        block *= np.float32(np.sqrt(1 - NETWORK_SHARE))
        block += product(mixing.T, courses_KT)
    return series_GT


def save_dtseries(path: Path, series_GT: np.ndarray, tr_s: float) -> None:
    """Write a dense time series: float32, little-endian, time fastest on disk, as HCP's files are."""
    with whole_file(path) as beside, open(beside, "wb") as handle:
        handle.write(_file_head(series_GT.shape[1], tr_s))
        series_GT.astype("<f4", copy=False).tofile(handle)


@lru_cache(maxsize=4)
def _file_head(frames: int, tr_s: float) -> bytes:
    """Everything before the data. The same for all runs of a length, and describing 91,282 places takes a second."""
    from nibabel.cifti2 import Cifti2Image, SeriesAxis
    from nibabel.cifti2.parse_cifti2 import Cifti2Extension

    shape = (frames, GRAYORDINATES)
    axes = (SeriesAxis(0, tr_s, frames), brain_axis())
    image = Cifti2Image(np.broadcast_to(np.float32(0), shape), axes)
    head = image.nifti_header
    head.extensions.append(Cifti2Extension.from_bytes(image.header.to_xml()))
    head.set_data_shape((1, 1, 1, 1, *shape))
    head.set_data_dtype("<f4")
    head.set_intent("ConnDenseSeries", name="ConnDenseSeries")
    head["pixdim"][:4] = 1
    with BytesIO() as sink:
        head.write_to(sink)
        return sink.getvalue()
