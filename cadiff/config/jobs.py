"""The five kinds of job, each a frozen tree of sections; JOBS is the only list of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cadiff.config.sections import (
    Adapter,
    ConditionModel,
    CrossModel,
    Data,
    EngineOptions,
    FirstStageModel,
    FmriModel,
    ImageModel,
    Mask,
    Optim,
    Section,
    Track,
    Train,
    TunedTrain,
    UNetModel,
)


class Job(Section):
    """What every job has. ``seed`` keys all randomness, together with epoch and sample id."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = 2022
    data: Data
    optim: Optim = Optim()
    train: Train
    engine: EngineOptions = EngineOptions()
    track: Track = Track()


class Phase1Loss(Section):
    """Weights of the phase-1 terms; ``scale`` multiplies both contrastive ones (spec: the paper code's odd 0.5)."""

    rebuild: float = Field(1.0, ge=0)  # squared error on hidden patches
    self_contrast: float = Field(1.0, ge=0)  # prediction against its own input
    cross_contrast: float = Field(0.5, ge=0)  # prediction against the other masked view
    scale: float = Field(1.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    learn_temperature: bool = False  # then `temperature` is where it begins
    symmetric: bool = False  # also let each target choose among anchors, as in CLIP; the paper's is one way
    self_on_both_views: bool = False  # the paper's figure ties both views to the input, its code only the first
    # Other samples of this micro-batch ("micro"), or of the whole batch over all ranks and micro-batches: gathered
    # ("global"), or passed from rank to rank ("ring": the same numbers, in memory that does not grow with the ranks).
    # Where a batch takes several micro-batches, the whole one costs one more forward. "predictions" (the paper code's
    # unused "paired"): for the self term the predictions of the micro-batch's other samples instead of their inputs.
    negatives: Literal["micro", "global", "ring", "predictions"] = "global"
    # Whose samples may be negatives: anyone's, only those of the anchor's own subject, or only those of other subjects.
    # A sample without any has no contrastive loss: "within" wants batches that hold several samples of a subject.
    negative_subjects: Literal["any", "within", "across"] = "any"
    # What another sample is whose subject saw the same picture: a negative like any other, dropped, or a positive too.
    repeats: Literal["negative", "drop", "positive"] = "negative"


class Phase1Job(Job):
    """Pre-train the fMRI masked autoencoder with a double contrastive loss."""

    phase: Literal["phase1"]
    model: FmriModel = FmriModel()
    mask: Mask = Mask()
    loss: Phase1Loss = Phase1Loss()


class Phase2Loss(Section):
    """Weights and mask ratios of phase 2. Defaults are the paper's best row (Table 2, id 14)."""

    fmri: float = Field(0.25, ge=0)
    image: float = Field(1.5, ge=0)
    fmri_mask: float = Field(0.75, ge=0, lt=1)
    image_mask: float = Field(0.5, ge=0, lt=1)
    norm_pix: bool = False  # predict pixels normalised within each patch
    # Masks of a picture: 0 draws a new one every epoch, as in the paper; K gives each picture K fixed ones, keyed by
    # seed and picture, which its samples take in turn, so that frozen features of what is visible can be kept too.
    image_masks: int = Field(0, ge=0)


class Phase2Init(Section):
    """Where weights come from; an empty string means a fresh start."""

    fmri: str = ""  # export folder of a phase-1 run
    image: str = ""  # local folder with a Hugging Face ViT-MAE (config.json, model.safetensors)
    tuned: str = ""  # export folder of a phase-2 run, of which both branches and the voxel adapters are taken


class Phase2Job(Job):
    """Tune the fMRI autoencoder together with an image autoencoder through cross-attention."""

    phase: Literal["phase2"]
    model: FmriModel = FmriModel(decoder_depth=6)
    image: ImageModel = ImageModel()
    cross: CrossModel = CrossModel()
    adapter: Adapter = Adapter()
    train: TunedTrain
    loss: Phase2Loss = Phase2Loss()
    init: Phase2Init = Phase2Init()


class FirstStageLoss(Section):
    """Weights of the first stage's terms."""

    pixel: float = Field(1.0, ge=0)  # absolute error on pixels in [-1, 1]
    edge: float = Field(1.0, ge=0)  # absolute error on horizontal and vertical differences: keeps outlines sharp
    commit: float = Field(0.25, ge=0)  # pull of the encoder towards its codes
    spread: float = Field(0.1, ge=0)  # pull of every latent channel towards zero mean and unit deviation


class FirstStageJob(Job):
    """Train the image autoencoder whose latents the diffusion works in."""

    phase: Literal["first_stage"]
    model: FirstStageModel = FirstStageModel()
    loss: FirstStageLoss = FirstStageLoss()


class PriorInit(Section):
    first_stage: str  # export folder of a first_stage run


class PriorJob(Job):
    """Train the latent diffusion UNet on images and their class labels."""

    phase: Literal["prior"]
    model: UNetModel = UNetModel()
    init: PriorInit


class Phase3Init(Section):
    fmri: str = ""  # export folder of a phase-2 (or phase-1) run; empty: a fresh encoder
    prior: str  # export folder of a prior run; it names its first stage


class Phase3Job(Job):
    """Condition the latent diffusion model on fMRI."""

    phase: Literal["phase3"]
    model: FmriModel = FmriModel()
    condition: ConditionModel = ConditionModel()
    init: Phase3Init


JOBS: dict[str, type[Job]] = {
    "phase1": Phase1Job,
    "phase2": Phase2Job,
    "first_stage": FirstStageJob,
    "prior": PriorJob,
    "phase3": Phase3Job,
}
