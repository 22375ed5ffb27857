"""The sections a job is made of: each key with its type, its default (the paper's where there is one) and its unit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen group of keys. Unknown keys and wrong types are refused: ``"false"`` is not a boolean here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
    """What the job reads: packed shard folders and which part of them."""

    shards: list[str] = Field(min_length=1)  # folders written by `cadiff pack`, or URLs of such (s3://, gs://, http://)
    weights: list[float] = []  # share of each set in every batch; empty pools all sets
    split: Literal["train"] = "train"  # training never reads another split
    val_split: Literal["val"] = "val"  # checkpoints are judged on this, never on test
    subjects: list[str] = []  # only these subjects; empty means all
    # Train on so large a part of each subject's training stimuli, chosen by the seed; 10 % lie within 20 %.
    stimuli_fraction: float = Field(1.0, gt=0, le=1)
    image_size: int = Field(256, ge=16, multiple_of=8)  # pixels per side after resizing
    # "random" mixes the whole set in every epoch; "window" reads it in pieces, for sets beyond memory; "auto" decides
    # by the sets' bytes (above 16 GiB: window), so every machine decides alike.
    order: Literal["auto", "random", "window"] = "auto"
    # Subjects of different widths: "wrap" repeats a signal up to the widest (the paper), "packed" lays samples end to
    # end, each with its own voxels in whole patches, so that nothing is computed for padding. Phase 1 only.
    pad: Literal["wrap", "packed"] = "wrap"
    # Consecutive stored frames of one run that are a sample, a clip; 1: single frames, as in the paper. Phase 1 only.
    clip_frames: int = Field(1, ge=1)
    workers: int = Field(1, ge=0)  # threads that prepare batches; 0 prepares them when they are due
    cache: Literal["auto", "none", "ram", "gpu"] = "auto"  # hold all signals there; auto: in RAM if they are small
    # Folder that `cadiff pack features` wrote: what the frozen image encoder makes of a picture is read, not computed.
    features: str = ""  # empty: none. Phase 2 only
    remote_cache_gb: float = Field(100.0, gt=0)  # local disk for remote sets, all together
    on_damage: Literal["raise", "quarantine"] = "raise"  # quarantine puts a certain other sample in place
    damage_budget: float = Field(0.001, ge=0, le=1)  # part of the samples that may be quarantined
    check: Literal["first", "every"] = "first"  # checksums of blocks on their first read, or of rows on every read


class Optim(Section):
    """AdamW and its schedule. Source: the paper's phase-1 settings."""

    lr: float = Field(2.5e-4, gt=0)
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.05, ge=0)  # not applied to biases and other one-dimensional tensors
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)  # added to warmup_steps
    warmup_steps: int = Field(0, ge=0)
    min_lr: float = Field(0.0, ge=0)  # where the cosine ends
    schedule_steps: int = Field(0, ge=0)  # length of the cosine; 0 means the job's own length
    clip: float = Field(0.8, ge=0)  # largest gradient norm; 0 switches clipping off


Select = Literal["last", "loss", "fmri_correlation", "image_correlation", "retrieval_top1", "retrieval_two_way"]


class Train(Section):
    """How long, on how many samples, and how often to report and save."""

    steps: int = Field(0, ge=0)  # optimizer steps; or give epochs
    epochs: int = Field(0, ge=0)
    batch: int = Field(ge=1)  # samples per optimizer step over all ranks: part of the experiment, never changes
    micro_batch: int = Field(0, ge=0)  # samples per rank and forward; 0 means batch / world size
    log_every: int = Field(10, ge=1)  # steps
    save_every: int = Field(1000, ge=1)  # steps
    keep: int = Field(2, ge=2)  # checkpoints kept; one could be lost while it is replaced
    val_every: int = Field(1000, ge=1)  # steps
    val_batches: int = Field(8, ge=1)  # batches of `batch` samples per validation
    ema: float = Field(0.0, ge=0, lt=1)  # decay per step of a running mean of the weights, which is exported; 0: none
    # Which step is exported: the last, or that of the best validation by one of its figures: `loss` (lower is better),
    # or one of phase 2's (higher is better); of equal ones the first. With `ema` the running mean is judged and kept.
    select: Select = "last"
    # A step whose gradient norm is not finite, or a spike, never changes the weights. Then: "stop" the job, "skip" to
    # the next batch, or "rewind" to the newest checkpoint and pass by the batches around it.
    on_bad_step: Literal["stop", "skip", "rewind"] = "stop"
    spike: float = Field(0.0, ge=0)  # a spike is a norm above so many times its running mean; 0: never
    bad_budget: int = Field(20, ge=1)  # bad steps after which a job stops all the same

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("give exactly one of steps and epochs")
        return self


class TunedTrain(Train):
    """Phase 2 exports its best validation, by the loss: the least noisy figure, and there whatever has a weight.

    Linear voxel adapters move the target of the fMRI term, whose scale grows as they learn: early steps have the lowest
    loss. Then a correlation decides, of the image term where it has a weight, since pictures stay as they are.
    Retrieval says more about the fMRI encoder, but with a hundred stimuli it is uncertain by 0.03, and with an image
    encoder that is trained too its target moves as well. The paper's code selects by a correlation of two unrelated
    patches, on test data.
    """

    select: Literal["auto", Select] = "auto"  # auto: the loss, or the correlation that stands in for it (see above)


class EngineOptions(Section):
    """How DeepSpeed runs the job; none of this changes the result beyond rounding."""

    zero: Literal[0, 1, 2, 3] = 2  # ZeRO stage
    # Parameters stay fp32; this is the autocast type. "auto": bf16 where all ranks have it in hardware, else fp32.
    # fp16 is for GPUs before Ampere; its loss scaling is ours, because DeepSpeed's ZeRO clips before it undoes its own.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False  # torch.compile the transformer blocks: minutes at the start, faster steps on a GPU
    offload: bool = False  # keep optimizer state in host memory
    checkpoint_activations: bool = False  # recompute blocks in backward: less memory, a third more compute
    deepspeed: dict[str, Any] = {}  # further DeepSpeed keys, checked against the ones it knows


class Track(Section):
    """Mirrors of metrics.jsonl; a mirror that fails never stops a job."""

    wandb: Literal["offline", "online", "off"] = "offline"
    project: str = "cadiff"
    tensorboard: bool = False  # needs the package tensorboard


class FmriModel(Section):
    """The fMRI masked autoencoder. Defaults are the paper's (164.8 M parameters at 4,192 voxels)."""

    patch: int = Field(16, ge=1)  # voxels per patch
    width: int = Field(1024, ge=1)
    depth: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(1.0, gt=0)
    decoder_width: int = Field(512, ge=1)
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)
    patch_frames: int = Field(1, ge=1)  # frames of a clip that a patch spans (data.clip_frames)


class Mask(Section):
    """Which patches are hidden from the encoder, and which voxels."""

    ratio: float = Field(0.75, ge=0, lt=1)
    focus_range: list[int] = Field([], max_length=2)  # [first, last] voxel of a region hidden more often; empty: none
    focus_rate: float = Field(0.6, gt=0, lt=1)  # weight of the patches inside the region
    tube: bool = False  # hide the same places in all frames of a clip: neighbouring frames give each other away
    voxel_dropout: float = Field(0.0, ge=0, lt=1)  # share of a sample's voxels set to 0 in the input, not in the target

    @model_validator(mode="after")
    def _two_ends(self) -> Mask:
        if len(self.focus_range) == 1:
            raise ValueError("focus_range needs two voxels, [first, last], or none")
        return self


class ImageModel(Section):
    """The image masked autoencoder, ViT-MAE in the Hugging Face layout. Defaults are facebook/vit-mae-base's."""

    patch: int = Field(16, ge=1)  # pixels
    width: int = Field(768, ge=1)
    depth: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    mlp_width: int = Field(3072, ge=1)
    decoder_width: int = Field(512, ge=1)
    decoder_depth: int = Field(6, ge=1)  # six of the eight pre-trained layers are kept, as in the paper
    decoder_heads: int = Field(16, ge=1)
    decoder_mlp_width: int = Field(2048, ge=1)
    train_encoder: bool = False  # the paper freezes a pre-trained encoder; a demo without one trains it
    # The decoder's table of positions is fixed, as ViT-MAE's. The paper's code trains it, by accident: true is that.
    train_positions: bool = False


class Adapter(Section):
    """Voxel adapters: a learned linear map per subject into one voxel space, in front of the network. Phase 2 only.

    Phase 3, sampling and the probe take those of the export they start from.
    """

    kind: Literal["wrap", "linear"] = "wrap"  # wrap: signals are padded by repeating them, as in the paper
    # Voxels of the shared space; 0: those of init.tuned's network, else of init.fmri's or the widest subject, if more.
    width: int = Field(0, ge=0)
    rank: int = Field(0, ge=0)  # of the learned part, for less memory; 0: full
    # Where a subject unknown to init.tuned begins: as wrap padding, or fitted by ridge regression to what the subjects
    # known to init.tuned say of the same stimuli (they must be in data.shards; data.subjects names the new ones).
    init: Literal["wrap", "ridge"] = "wrap"
    only: bool = False  # train nothing but the maps: how a new subject joins a finished network (init.tuned)


class CrossModel(Section):
    """Cross-attention between the two branches (paper section 3.2). Width and heads follow the image branch."""

    layers: int = Field(3, ge=1)
    residual: bool = True  # add the cross output to the fMRI tokens instead of replacing them


class FirstStageModel(Section):
    """The vector-quantised image autoencoder. Defaults: CompVis VQ-f4 (55 M parameters)."""

    channels: list[int] = Field(
        [128, 256, 512], min_length=1
    )  # one per level; every level but the last halves the side
    layers: int = Field(2, ge=1)  # residual blocks per level
    latent: int = Field(3, ge=1)  # latent channels
    codes: int = Field(8192, ge=2)
    patch: int = Field(1, ge=1)  # pixels per side folded into channels before the first level: small, fast networks
    attention: bool = True  # self-attention at the deepest level


class UNetModel(Section):
    """The latent diffusion UNet and its noise schedule. Defaults: CompVis cin256-v2 (401 M parameters)."""

    channels: list[int] = Field([192, 384, 576, 960], min_length=1)
    attention: list[bool] = [False, True, True, True]  # cross-attention at each level
    layers: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    context_width: int = Field(512, ge=1)
    patch: int = Field(1, ge=1)  # latents per side folded into channels before the first level: small, fast networks
    beta_start: float = Field(0.0015, gt=0)
    beta_end: float = Field(0.0195, gt=0)
    timesteps: int = Field(1000, ge=2)
    predict: Literal["noise", "velocity"] = "noise"  # the paper's is noise; velocity stays sane after short trainings
    drop: float = Field(0.1, ge=0, lt=1)  # share of samples trained without their class, for classifier-free guidance

    @model_validator(mode="after")
    def _levels(self) -> UNetModel:
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true or false for each entry of channels")
        return self


class ConditionModel(Section):
    """How fMRI tokens become the UNet's context (paper section 3.3)."""

    tokens: int = Field(77, ge=1)
    pool: bool = False  # one pooled token instead of a sequence
    time: bool = True  # also add the context to the time embedding ("double conditioning")
    drop: float = Field(0.1, ge=0, lt=1)  # share of samples trained without their signal; the paper's is 0
