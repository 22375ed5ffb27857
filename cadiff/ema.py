"""A running mean of the weights, each rank holding its part: as much memory as the parameters, over all ranks together.

    mean <- d * mean + (1 - d) * weights,     d = min(decay, (1 + n) / (10 + n)) after n updates

The growing decay lets the mean forget the fresh weights (Polyak averaging as in Tarvainen and Valpola, 2017, with the
warm-up of TensorFlow's ExponentialMovingAverage). A step that changed no weights is no update; whether it did is known
on the device only, so n lives there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from cadiff.errors import DataError


class ShardedMean:
    """The running mean of ``module``'s trained parameters.

    Under ZeRO-3 a rank averages the partition of each parameter it owns (DeepSpeed's ``ds_tensor``); otherwise it owns
    the rank-th of ``world`` equal pieces of each parameter.
    """

    def __init__(self, module: nn.Module, decay: float, rank: int, world: int) -> None:
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._decay, self._rank, self._world = decay, rank, world
        self._means = [piece.clone() for piece in self._pieces()]
        self._updates = torch.zeros((), dtype=torch.float64, device=self._means[0].device)

    @property
    def updates(self) -> int:
        """How often it took in weights; reading it waits for the device."""
        return int(self._updates.item())

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Take in the weights as they are now, if ``applied`` is 1 and not 0; a 0-d tensor on the weights' device."""
        decay = ((1 + self._updates) / (10 + self._updates)).clamp(max=self._decay)
        moves = torch._foreach_sub(self._pieces(), self._means)
        torch._foreach_mul_(moves, ((1 - decay) * applied).float())
        torch._foreach_add_(self._means, moves)
        self._updates += applied

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module hold the mean for a while; all ranks enter and leave together."""
        kept = [tensor.clone() for tensor in self._held()]
        self._release()
        with torch.no_grad():
            for (_, p), mean in zip(self._named, self._means):
                self._put(p, mean)
        try:
            yield
        finally:
            self._release()
            with torch.no_grad():
                for tensor, before in zip(self._held(), kept):
                    tensor.copy_(before)

    def save(self, folder: Path) -> None:
        """Write this rank's part."""
        parts = {name: mean for (name, _), mean in zip(self._named, self._means)}
        path = self._path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(parts, path, metadata={"updates": str(self.updates)})

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote at the same world size and ZeRO stage.

        Raises:
            DataError: the file is missing or of other shapes.
        """
        from safetensors import safe_open

        path = self._path(folder)
        if not path.is_file():
            raise DataError(f"{path}: is missing: it was saved without train.ema, or copied in part. Copy it again.")
        parts = load_file(path)
        with safe_open(path, "pt") as file:
            self._updates.fill_(int(file.metadata()["updates"]))
        for (name, _), mean in zip(self._named, self._means):
            if name not in parts or parts[name].shape != mean.shape:
                raise DataError(f"{path}: does not fit this job at {name}. Continue with the run's own settings.")
            mean.copy_(parts[name])

    def _path(self, folder: Path) -> Path:
        return folder / "ema" / f"rank-{self._rank:05d}.safetensors"

    def _held(self) -> list[Tensor]:
        """What this rank holds of each parameter: all of it, or its partition."""
        return [p.ds_tensor.data if hasattr(p, "ds_id") else p.data for _, p in self._named]

    def _release(self) -> None:
        """Let ZeRO-3 gather small parameters again, which it keeps whole on every rank from step to step."""
        for _, p in self._named:
            if hasattr(p, "ds_id"):
                p.partition()

    def _pieces(self) -> list[Tensor]:
        """This rank's piece of each parameter, as it is now: float32, one dimension, perhaps empty."""
        pieces = []
        for (_, p), held in zip(self._named, self._held()):
            if hasattr(p, "ds_id"):
                pieces.append(held.flatten())
            else:
                size = -(-held.numel() // self._world)
                pieces.append(held.flatten()[self._rank * size : (self._rank + 1) * size])
        return pieces

    def _put(self, p: nn.Parameter, mean: Tensor) -> None:
        if hasattr(p, "ds_id"):
            p.ds_tensor.data.copy_(mean.view_as(p.ds_tensor))
            return
        if self._world == 1:
            p.data.copy_(mean.view_as(p))
            return
        size = -(-p.numel() // self._world)
        mine = torch.zeros(size, dtype=mean.dtype, device=mean.device)
        mine[: len(mean)] = mean
        whole = mine.new_empty(self._world * size)
        distributed.all_gather_into_tensor(whole, mine)
        p.data.copy_(whole[: p.numel()].view_as(p))
