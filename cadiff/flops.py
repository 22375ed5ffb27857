"""Operations that one sample's training step asks for, phase by phase: matrix products and attention.

A multiplication and an addition are counted each. Backward is twice the forward, a product for each factor's gradient;
where a factor is data it has none. What is computed again is not counted (see telemetry.py on MFU).

Legend: B samples of a contrast, W values of the widest sample, P values per patch, L patches, K kept, N = 1 + K tokens
of the encoder, M = 1 + L of the decoder, D and E their widths, H hidden width of an MLP; phase 2: I image width.
"""

from __future__ import annotations

from collections.abc import Callable

from cadiff.config import ImageModel, Job, Phase1Job, Phase2Job
from cadiff.kernels.mask import kept_patches
from cadiff.models.adapter import VoxelAdapters

Passes = tuple[float, float]  # operations forward and backward
Formula = Callable[[Job, int, int, int, VoxelAdapters | None], float]


def phase1_flops(
    job: Phase1Job, voxels: int, widest: int, micro_batch: int, adapters: VoxelAdapters | None = None
) -> float:
    """Operations of one sample's training step in phase 1: matrix products and attention, a multiplication and an
    addition each counted.

        block(N, D, H) = N (8 D^2 + 4 D H) + 4 N^2 D       projections and MLP; scores and their mixture of values
        embed          = 2 K P D
        network        = depth block(N, D, H) + 2 N D E + decoder_depth block(M, E, H') + 2 M E P
        contrast       = 2 B W                             one anchor against B targets
        step           = views (2 embed + 3 network) + (2 self + 3 cross) contrast

    Backward is twice the forward, a product for each factor's gradient; where a factor is data (the signal in ``embed``
    and in the self contrast) it has none, and backward is once the forward.

    Args:
        voxels: of a sample after padding; a clip has ``data.clip_frames`` times as many values.
        widest: the most voxels a sample has: what a packed batch is padded to for its contrast.
        micro_batch: samples per rank and forward, which is B where the negatives are a micro-batch's.
        adapters: this phase has none; every formula is called alike.
    """
    model, loss = job.model, job.loss
    places, frames = voxels // model.patch, job.data.clip_frames // model.patch_frames
    length, values = places * frames, model.patch * model.patch_frames
    kept = kept_patches(places, job.mask.ratio) * frames if job.mask.tube else kept_patches(length, job.mask.ratio)
    network = (
        model.depth * _block(1 + kept, model.width, int(model.width * model.mlp_ratio))
        + 2 * (1 + kept) * model.width * model.decoder_width
        + model.decoder_depth * _block(1 + length, model.decoder_width, int(model.decoder_width * model.mlp_ratio))
        + 2 * (1 + length) * model.decoder_width * values
    )
    has_self, has_cross = (bool(loss.scale * weight) for weight in (loss.self_contrast, loss.cross_contrast))
    self_terms = has_self * (1 + loss.self_on_both_views)
    views = 2 if has_cross or self_terms == 2 else 1
    targets = job.train.batch if loss.negatives in ("global", "ring") else micro_batch
    products = (3 if loss.negatives == "predictions" else 2) * self_terms + 3 * has_cross
    embed = 2 * kept * values * model.width
    contrast = 2 * targets * (widest // model.patch) * frames * values
    return views * (2 * embed + 3 * network) + products * contrast


def phase2_flops(
    job: Phase2Job, voxels: int, widest: int, micro_batch: int, adapters: VoxelAdapters | None = None
) -> float:
    """Operations of one sample's training step in phase 2; see ``phase2_parts``.

    Args: ``widest``, ``micro_batch``: not needed here; every formula is called alike.
    """
    return sum(sum(passes) for passes in phase2_parts(job, voxels, adapters).values())


def phase2_parts(job: Phase2Job, voxels: int, adapters: VoxelAdapters | None = None) -> dict[str, Passes]:
    """The same part by part, forward and backward, without what has no weight or comes from a feature cache.

    The frozen image encoder has no backward, and keys and values of its tokens have one product in theirs, for their
    weights. Voxel adapters make the signal a factor with a gradient; each sample goes through the maps of all subjects.

    Args:
        voxels: of a sample after padding; what adapters lead to has their width instead.
        adapters: the phase's own, where it has any.
    """
    voxels = voxels if adapters is None else adapters.width
    model, image, loss = job.model, job.image, job.loss
    width, wide, layers = model.width, image.width, job.cross.layers
    patches, places = voxels // model.patch, (job.data.image_size // image.patch) ** 2
    seen, visible = 1 + kept_patches(patches, loss.fmri_mask), 1 + kept_patches(places, loss.image_mask)
    mlp, inner = int(width * model.mlp_ratio), int(model.decoder_width * model.mlp_ratio)
    linear = adapters is not None

    def encoder(tokens: int) -> Passes:
        embed, blocks = 2 * (tokens - 1) * model.patch * width, model.depth * _block(tokens, width, mlp)
        return embed + blocks, (1 + linear) * embed + 2 * blocks

    def cross(tokens: int, support: int, of_support: int) -> Passes:
        own = layers * (_block(tokens, wide, image.mlp_width) + 4 * tokens * wide**2 + 4 * tokens * support * wide)
        memory = layers * 4 * support * wide**2
        return own + memory, 2 * own + of_support * memory

    def decoder(tokens: int, length: int, wide_in: int, inside: int, blocks: int, out: int) -> Passes:
        # The prediction of the class token is cut off after it has been made.
        forward = 2 * tokens * wide_in * inside + blocks + 2 * (1 + length) * inside * out
        return forward, 2 * forward

    parts: dict[str, Passes] = {}
    if adapters is not None:
        parts["adapter"] = _adapters(adapters)
    if loss.fmri:
        to_fmri, maps = cross(seen, 1 + places, 1 + image.train_encoder), 4 * seen * width * wide
        blocks = model.decoder_depth * _block(1 + patches, model.decoder_width, inner)
        parts["image_whole"] = _image_encoder(image, 1 + places)
        parts["fmri_visible"] = encoder(seen)
        parts["fmri_cross"] = to_fmri[0] + maps, to_fmri[1] + 2 * maps
        parts["fmri_decoder"] = decoder(seen, patches, width, model.decoder_width, blocks, model.patch)
    if loss.image:
        to_image, map_in = cross(visible, 1 + patches, 2), 2 * (1 + patches) * width * wide
        blocks = image.decoder_depth * _block(1 + places, image.decoder_width, image.decoder_mlp_width)
        parts["image_visible"] = _image_encoder(image, visible)
        parts["fmri_whole"] = encoder(1 + patches)
        parts["image_cross"] = to_image[0] + map_in, to_image[1] + 2 * map_in
        parts["image_decoder"] = decoder(visible, places, wide, image.decoder_width, blocks, 3 * image.patch**2)
    spared = [*(["image_whole"] if job.data.features else []), *(["image_visible"] if _visible_kept(job) else [])]
    return {name: passes for name, passes in parts.items() if name not in spared}


def _visible_kept(job: Phase2Job) -> bool:
    return bool(job.data.features and job.loss.image_masks)


def _adapters(adapters: VoxelAdapters) -> Passes:
    """The maps of all subjects; a signal is data, so that only what stands behind a map of low rank has two factors."""
    own, out = 2 * sum(adapters.subjects.values()), 2 * len(adapters.subjects) * adapters.width
    if adapters.rank:
        return adapters.rank * (own + out), adapters.rank * (own + 2 * out)
    return own * adapters.width, own * adapters.width


def _image_encoder(image: ImageModel, tokens: int) -> Passes:
    embed = 2 * (tokens - 1) * 3 * image.patch**2 * image.width
    blocks = image.depth * _block(tokens, image.width, image.mlp_width)
    return embed + blocks, image.train_encoder * (embed + 2 * blocks)


def _block(tokens: int, width: int, hidden: int) -> int:
    return tokens * (8 * width**2 + 4 * width * hidden) + 4 * tokens**2 * width


# The formula of each phase's step; None where there is none yet, and then nothing is said of its MFU.
FLOPS: dict[str, Formula | None] = {
    "phase1": phase1_flops,
    "phase2": phase2_flops,
    "first_stage": None,
    "prior": None,
    "phase3": None,
}


def formula_of(job: Job) -> Formula | None:
    """The formula for this job; None where only voxel adapters are trained, or the phase has none."""
    if job.phase == "phase2" and job.adapter.only:
        return None
    return FLOPS[job.phase]
