"""How batches are read: the options of a stream that a job's data section gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from cadiff.errors import ConfigError
from cadiff.shards.faults import FaultPolicy


@dataclass(frozen=True)
class Reading:
    """How a stream reads; none of it but ``order`` and ``weights`` changes which samples a step sees.

    Attributes:
        order: "random", "window" (large sets, read in pieces) or "auto" (by the sets' size).
        weights: share of each set in every batch; empty pools all sets.
        pad: "wrap" (the paper); "zero", which adds the key ``voxels``: how many of each row are signal; or "packed":
            the samples of a micro-batch end to end, each wrap-padded to whole patches only, with the key ``lengths``,
            and dealt so that ranks and micro-batches hold nearly equal numbers of values, neighbours being alike.
        patch: voxels that a packed sample's length is a multiple of.
        workers: threads that prepare batches; 0 prepares them when they are asked for.
        faults: what happens when a sample is damaged.
    """

    order: str = "auto"
    weights: tuple[float, ...] = ()
    pad: str = "wrap"
    patch: int = 16
    workers: int = 1
    faults: FaultPolicy = field(default_factory=FaultPolicy)

    def __post_init__(self) -> None:
        if self.pad not in ("wrap", "zero", "packed"):
            raise ConfigError(f"pad = '{self.pad}': one of wrap, zero, packed.")
