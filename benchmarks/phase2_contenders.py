"""Who takes part in bench_phase2.py: the plain baseline, our phase by itself, with features kept, and in the engine."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from phase1_contenders import HALF, Clock
from plain_image import ImageSizes
from plain_phase1 import Sizes, View
from plain_phase2 import Pair, PairTrainer, PlainPair
from torch import Tensor, nn

from cadiff.config import Phase2Job
from cadiff.distributed import Place
from cadiff.flops import Passes, phase2_parts
from cadiff.phases import Space, crosstune
from cadiff.phases.crosstune import CrossTune

README = Pair(0.25, 1.5, 0.75, 0.5)
LR, MASKS = 5.3e-5, 8
FORWARD = ("pictures", "masking", "image_encoder", "fmri_encoder", "cross", "fmri_decoder", "image_decoder", "losses")
Numbers = tuple[Sizes, ImageSizes]


def job_of(sizes: Sizes, image: ImageSizes, batch: int, masks: int = 0) -> Phase2Job:
    model = {name: value for name, value in vars(sizes).items() if name != "voxels"}
    alike = ("patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
    pictures = {name: getattr(image, name) for name in alike}
    # Weights are drawn, so the encoder is frozen by hand.
    pictures |= {"mlp_width": image.hidden, "decoder_mlp_width": image.decoder_hidden, "train_encoder": True}
    return Phase2Job.model_validate(
        {
            "phase": "phase2", "name": "bench", "data": {"shards": ["generated"], "image_size": image.size},
            "model": model, "image": pictures, "train": {"steps": 1, "batch": batch}, "engine": {"zero": 0},
            "cross": {"layers": image.cross_layers}, "optim": {"lr": LR},
            "loss": {"fmri": 0.25, "image": 1.5, "fmri_mask": 0.75, "image_mask": 0.5, "image_masks": masks},
        }
    )  # fmt: skip


def asked_for(sizes: Sizes, image: ImageSizes) -> dict[str, Passes]:
    """Operations of one sample's step, forward and backward, part by part, with a frozen image encoder."""
    job = job_of(sizes, image, batch=1)
    frozen = job.image.model_copy(update={"train_encoder": False})
    return phase2_parts(job.model_copy(update={"image": frozen}), sizes.voxels)


class Plain:
    """The baseline and its trainer; it gets pictures as the paper's data set gives them."""

    def __init__(self, numbers: Numbers, batch: int, precision: str) -> None:
        if precision != "fp32":
            raise ValueError(f"plain-{precision}: the baseline is measured in fp32 only.")
        self.network, self.batch = PlainPair(*numbers, README), batch
        self.trainer = PairTrainer(self.network)

    def given(self, signal_BV: Tensor, image_BCSS: Tensor) -> tuple[Tensor, Tensor]:
        return signal_BV[:, None], image_BCSS.permute(0, 2, 3, 1).double().contiguous() / 255

    def drawn(self) -> dict[str, View]:
        return self.network.drawn(self.batch)

    def step(self, given: tuple[Tensor, Tensor], number: int) -> None:
        self.trainer.step(given[0], self.trainer.pictures(given[1]), self.drawn(), LR)

    def part_steps(self, clock: Clock) -> Callable[..., None]:
        fmri, img, trainer = self.network.fmri, self.network.img, self.trainer
        wrap_cross(clock, fmri, img)
        for owner, method, name in (
            (self, "drawn", "masking"), (trainer, "pictures", "pictures"), (img, "encode", "image_encoder"),
            (fmri, "encode", "fmri_encoder"), (fmri, "decode", "fmri_decoder"), (img, "decode", "image_decoder"),
            (trainer, "forward", "losses"), (trainer, "backward", "backward"), (trainer, "update", "update"),
            (trainer, "copied", "copies"),
        ):  # fmt: skip
            clock.wrap(owner, method, name)
        return self.step


class Ours:
    """Our phase with torch's fused AdamW; what it is given beside signals and pictures is the subclasses' matter."""

    masks = 0

    def __init__(self, numbers: Numbers, batch: int, precision: str) -> None:
        self.job = job_of(*numbers, batch, self.masks)
        self.phase = CrossTune(self.job, Space(numbers[0].voxels, classes=0)).train()
        self.phase.image.freeze_encoder()
        self.half, self.number_B = HALF[precision], torch.arange(batch)
        self.prepare(batch, precision)

    def prepare(self, batch: int, precision: str) -> None:
        named = [(name, p) for name, p in self.phase.named_parameters() if p.requires_grad]
        flat = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
        rest = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
        groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
        self.trained = [*flat, *rest]

    def given(self, signal_BV: Tensor, image_BCSS: Tensor) -> dict[str, Tensor]:
        whole = {name: self.number_B for name in ("sample_id", "stimulus", "subject")}
        return whole | {"signal": signal_BV, "image": image_BCSS}

    def step(self, given: dict[str, Tensor], number: int) -> None:
        self.number = number
        self.clear()
        self.backward(self.forward(given | {"epoch": torch.full_like(self.number_B, number)}))
        self.update()

    def clear(self) -> None:
        self.optimizer.zero_grad()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=self.half, enabled=self.half is not None):
            return torch.stack(list(self.phase(batch).values())).sum()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trained, 0.8, foreach=True)
        self.optimizer.step()

    def part_steps(self, clock: Clock) -> Callable[..., None]:
        fmri, image = self.phase.fmri, self.phase.image
        wrap_cross(clock, fmri, image)
        for owner, method, name in (
            (self.phase, "masks", "masking"), (crosstune, "normalise_image", "pictures"),
            (image.vit, "forward", "image_encoder"), (fmri, "hidden", "fmri_encoder"), (fmri, "decode", "fmri_decoder"),
            (image.decoder, "forward", "image_decoder"), (self, "forward", "losses"), (self, "backward", "backward"),
            (self, "update", "update"),
        ):  # fmt: skip
            clock.wrap(owner, method, name)
        return self.step


class Whole(Ours):
    """With the tokens of whole pictures kept: masks are drawn anew, so what is visible must be computed."""

    def given(self, signal_BV: Tensor, image_BCSS: Tensor) -> dict[str, Tensor]:
        return super().given(signal_BV, image_BCSS) | {"image_whole": self.kept(1 + self.phase.image.length)}

    def kept(self, tokens: int) -> Tensor:
        return torch.randn(len(self.number_B), tokens, self.job.image.width).half()  # as features are stored


class Cached(Whole):
    """With all that is frozen kept: each picture has a few masks, and the image encoder never runs."""

    masks = MASKS

    def given(self, signal_BV: Tensor, image_BCSS: Tensor) -> dict[str, Tensor]:
        visible = 1 + int(self.phase.image.length * (1 - self.job.loss.image_mask))
        chosen = {"picture": 1000 + self.number_B, "image_mask": self.number_B % MASKS}
        return super().given(signal_BV, image_BCSS) | chosen | {"image_visible": self.kept(visible)}


class InEngine(Ours):
    """Our phase as a job trains it: in DeepSpeed, with the guard against bad steps."""

    def prepare(self, batch: int, precision: str) -> None:
        from cadiff.engine import Engine, start_processes
        from cadiff.launch.start import free_port

        threads, place = torch.get_num_threads(), Place(0, 0, 1)
        os.environ["MASTER_PORT"] = str(free_port())
        start_processes(place)
        torch.set_num_threads(threads)
        self.engine = Engine(self.phase, self.job, place, batch, 1, precision)

    def clear(self) -> None:
        """A part of ``backward`` here, as ``update`` is."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(self.engine(batch).values())).sum()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward_and_step(loss, self.number)

    def update(self) -> None:
        """See ``clear``."""


class CachedInEngine(InEngine, Cached):
    """The same with all that is frozen kept."""


def wrap_cross(clock: Clock, fmri: nn.Module, image: nn.Module) -> None:
    """Time cross layers and maps of both branches, apart from the encoders that they are called in."""
    encoder = image.vit.encoder
    for part in (fmri.cross_map_in, fmri.cross_map_out, *fmri.cross_blocks, encoder.cross_map_in, *encoder.layer_cross):
        clock.wrap(part, "forward", "cross")


KINDS = {
    "plain": Plain,
    "ours": Ours,
    "whole": Whole,
    "cached": Cached,
    "engine": InEngine,
    "engine_cached": CachedInEngine,
}
