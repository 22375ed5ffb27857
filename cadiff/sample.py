"""From fMRI to pictures: load a finished phase 3, start from keyed noise, denoise, decode, write.

The noise of a sample's k-th picture depends on the seed, k and the sample's id only, so batch size and the number of
processes change nothing but rounding.

Legend: B pictures, N stimuli, K pictures of each, V voxels, C latent channels, S pixels per side, s latents per side.
"""

from __future__ import annotations

import contextlib
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadiff.adapting import network_signals
from cadiff.errors import ConfigError, DataError
from cadiff.files import whole_file, write_json
from cadiff.kernels.keyed import keyed_normal
from cadiff.models.condition import Condition
from cadiff.models.first_stage import to_bytes, to_unit
from cadiff.models.latent_diffusion import make_scheduler
from cadiff.models.reconstructor import Reconstructor, default_device, load_codec, load_reconstructor
from cadiff.shards.dataset import Dataset

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampleOptions:
    """How to sample; the defaults are the paper's. ``guidance`` 1 means none."""

    samples: int = 5  # pictures per stimulus
    steps: int = 250
    scheduler: str = "plms"
    guidance: float = 1.0  # classifier-free guidance scale
    seed: int = 2022
    batch: int = 50  # pictures denoised at a time


@torch.no_grad()
def encode_images(export: str | Path, images_NCSS: np.ndarray, batch: int = 50) -> np.ndarray:
    """First-stage latents, float32 (N, C, s, s), of images uint8 (N, 3, S, S)."""
    codec, device = load_codec(export), default_device()
    latents = [codec.encode(to_unit(images.to(device))) for images in torch.from_numpy(images_NCSS).split(batch)]
    return torch.cat(latents).float().cpu().numpy()


@torch.no_grad()
def decode_latents(export: str | Path, latents_NCss: np.ndarray, batch: int = 50) -> np.ndarray:
    """Images uint8 (N, 3, S, S) of latents float32 (N, C, s, s), through their nearest codes."""
    codec, device = load_codec(export), default_device()
    images = [to_bytes(codec.decode(part.to(device))) for part in torch.from_numpy(latents_NCss).float().split(batch)]
    return torch.cat(images).cpu().numpy()


@torch.no_grad()
def sample_images(
    model: Reconstructor,
    signal_NV: np.ndarray,
    sample_id_N: np.ndarray,
    options: SampleOptions,
    *,
    progress: Progress | None = None,
) -> np.ndarray:
    """Sample ``options.samples`` pictures for each signal.

    Args:
        signal_NV: z-scored float32, padded to ``model.voxels`` or through ``model.adapters`` (``network_signals``).
        sample_id_N: int64, keys the starting noise.
        progress: called with pictures done and wanted.

    Returns:
        uint8 (N, K, 3, S, S).

    Raises:
        ConfigError: signals of another width, or an unknown sampler.
        DataError: the pictures are not finite: the weights are damaged or training diverged.
    """
    if signal_NV.shape[1] != model.voxels:
        raise ConfigError(
            f"The signals have {signal_NV.shape[1]} voxels, the model was trained on {model.voxels}. "
            "Sample from shards packed from the same subjects and region."
        )
    side = model.image_size // model.codec.shrink
    shape_Css = (model.diffusion.latent, side, side)
    context, pictures = _conditions(model, signal_NV, options.batch), []
    total = len(signal_NV) * options.samples
    for pick_B in torch.arange(total).split(options.batch):
        row_B, k_B = pick_B // options.samples, pick_B % options.samples
        noise = _start_noise(options.seed, torch.from_numpy(sample_id_N)[row_B], k_B, shape_Css)
        condition = Condition(*(part[row_B.to(model.device)] for part in context))
        latent_BCss = _denoise(model, noise.to(model.device), condition, options)
        if not torch.isfinite(latent_BCss).all():
            raise DataError("Sampling gave values that are not finite. Did phase 3 or its prior diverge?")
        pictures.append(to_bytes(model.codec.decode(latent_BCss)).cpu())
        if progress is not None:
            progress(int(pick_B[-1]) + 1, total)
    return torch.cat(pictures).unflatten(0, (len(signal_NV), options.samples)).numpy()


def _conditions(model: Reconstructor, signal_NV: np.ndarray, batch: int) -> Condition:
    parts = [model.conditioner(rows.to(model.device)) for rows in torch.from_numpy(signal_NV).float().split(batch)]
    return Condition(*(torch.cat(values) for values in zip(*parts)))


def _start_noise(seed: int, sample_id_B: Tensor, k_B: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (B, C, s, s), each picture from the stream of its k."""
    noise_Bn = torch.empty(len(k_B), int(np.prod(shape)))
    for k in k_B.unique().tolist():
        ids = sample_id_B[k_B == k]
        noise_Bn[k_B == k] = keyed_normal(seed, f"sample/{k}", torch.zeros_like(ids), ids, noise_Bn.shape[1])
    return noise_Bn.view(-1, *shape)


def _denoise(model: Reconstructor, noise_BCss: Tensor, condition: Condition, options: SampleOptions) -> Tensor:
    scheduler = make_scheduler(options.scheduler, model.unet)
    scheduler.set_timesteps(options.steps, device=model.device)
    nothing = model.conditioner.null(len(noise_BCss)) if options.guidance != 1.0 else None
    latent_BCss = noise_BCss * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        noisy_BCss = scheduler.scale_model_input(latent_BCss, time)
        time_B = time.expand(len(noisy_BCss))
        predicted_BCss = model.diffusion(noisy_BCss, time_B, *condition)
        if nothing is not None:
            blind_BCss = model.diffusion(noisy_BCss, time_B, *nothing)
            predicted_BCss = blind_BCss + options.guidance * (predicted_BCss - blind_BCss)
        latent_BCss = scheduler.step(predicted_BCss, time, latent_BCss).prev_sample
    return latent_BCss


def shuffled_rows(dataset: Dataset, ids_N: np.ndarray, seed: int) -> np.ndarray:
    """Sample ids in which everyone has the signal of another sample of the same subject: the chance control.

    Within each subject the ids are dealt round a random circle, so no sample keeps its own signal (unless it is its
    subject's only one).
    """
    shuffled_N = ids_N.copy()
    subject_N = dataset.table.subject[ids_N]
    for subject in np.unique(subject_N):
        rows = np.flatnonzero(subject_N == subject)
        circle = np.random.default_rng([seed, int(subject)]).permutation(rows)
        shuffled_N[circle] = ids_N[np.roll(circle, 1)]
    return shuffled_N


def held_out(dataset: Dataset, subjects: list[str] | None = None, limit: int = 0) -> np.ndarray:
    """Test samples to reconstruct: means over repeats where the set has them, else every test sample.

    ``limit`` keeps so many, spread evenly; 0 keeps all.

    Raises:
        ConfigError: the set has no test samples with pictures.
    """
    ids_N = dataset.ids(split="test", subjects=subjects)
    averaged_N = dataset.table.repeat[ids_N] == -1
    ids_N = ids_N[averaged_N] if averaged_N.any() else ids_N
    ids_N = ids_N[dataset.table.stimulus[ids_N] >= 0]
    ids_N = ids_N[dataset.has_picture[dataset.table.stimulus[ids_N]]]
    if len(ids_N) == 0:
        raise ConfigError(f"{dataset.folder}: no test samples with pictures. Pack a set that holds some out.")
    if limit and limit < len(ids_N):
        ids_N = ids_N[np.linspace(0, len(ids_N) - 1, limit).round().astype(np.int64)]
    return ids_N


def write_samples(
    folder: str | Path,
    export: str | Path,
    dataset: Dataset,
    options: SampleOptions,
    *,
    subjects: list[str] | None = None,
    limit: int = 0,
    shuffle_seed: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reconstruct a dataset's held-out pictures and write them with their truth.

    ``subjects`` are by default those that phase 3 was trained on; others are decoded with a warning.
    Writes ``samples.npz`` (truth, reconstruction, sample_id, stimulus, label), one PNG for each picture, and last
    ``samples.json``, whose content is returned.
    """
    folder, model = Path(folder), load_reconstructor(export)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = subjects or model.subjects
    if model.subjects and (strangers := sorted(set(subjects) - set(model.subjects))):
        log.warning("phase 3 was not trained on %s, only on %s", ", ".join(strangers), ", ".join(model.subjects))
    if dataset.hash not in model.data:
        log.warning("phase 3 was not trained on this packed set: %s may hold other brains or voxels", dataset.folder)
    ids_N = held_out(dataset, subjects, limit)
    source_N = ids_N if shuffle_seed is None else shuffled_rows(dataset, ids_N, shuffle_seed)
    signal_NV = network_signals(model.adapters, dataset, source_N, model.voxels)
    pictures = sample_images(model, signal_NV, ids_N, options, progress=progress)
    stimulus_N = dataset.table.stimulus[ids_N].astype(np.int64)
    arrays = {
        "truth": dataset.images(stimulus_N, model.image_size),
        "reconstruction": pictures,
        "sample_id": ids_N.astype(np.int64),
        "stimulus": stimulus_N,
        "label": dataset.table.label[ids_N].astype(np.int64),
    }
    description = {**asdict(options), "shuffle_seed": shuffle_seed, "export": model.card_hash, "dataset": dataset.hash}
    _clear(folder)
    with whole_file(folder / "samples.npz") as beside, open(beside, "wb") as handle:
        np.savez(handle, **arrays)
    for path, picture_CSS in _named(folder, ids_N, pictures):
        _write_png(path, picture_CSS)
    write_json(folder / "samples.json", description)
    log.info("%d pictures of %d stimuli in %s", len(ids_N) * options.samples, len(ids_N), folder)
    return description


def _clear(folder: Path) -> None:
    """Remove what an earlier call, perhaps with other settings, wrote and listed here; nothing else."""
    if (folder / "samples.json").is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # then nothing is known of it
            with np.load(folder / "samples.npz", allow_pickle=False) as stored:
                earlier = stored["sample_id"], stored["reconstruction"]
            for path, _ in _named(folder, *earlier):
                path.unlink(missing_ok=True)
        (folder / "samples.json").unlink()


def _named(folder: Path, ids_N: np.ndarray, pictures: np.ndarray) -> Iterator[tuple[Path, np.ndarray]]:
    for sample, pictures_KCSS in zip(ids_N.tolist(), pictures):
        for k, picture_CSS in enumerate(pictures_KCSS):
            yield folder / str(sample) / f"{k}.png", picture_CSS


def _write_png(path: Path, picture_CSS: np.ndarray) -> None:
    from PIL import Image

    with whole_file(path) as beside:
        Image.fromarray(picture_CSS.transpose(1, 2, 0)).save(beside, format="PNG")
