"""How much of a machine a job uses: operations of a training step, a device's peak rate, and the reports about both.

MFU, model FLOPs utilisation (Chowdhery et al., "PaLM", 2022, appendix B): the operations that the model asks for per
second, over what the devices could do at most. What is computed again (recomputed blocks, tiles of the contrastive
loss, a second forward for the sake of a whole-batch contrast) is not asked for by the model, so it does not count.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cadiff.config import Job
from cadiff.distributed import Place
from cadiff.flops import formula_of
from cadiff.models.adapter import VoxelAdapters
from cadiff.shards.batches import packed_lengths
from cadiff.shards.dataset import Dataset

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEASURING_S = 0.25  # how long a device without a published rate is measured
LARGEST = {"cpu": 4096, "cuda": 8192}  # side of the product that is measured, at most


def sample_flops(
    job: Job, samples_of: Mapping[int, int], micro_batch: int, adapters: VoxelAdapters | None = None
) -> float | None:
    """Operations of a training step per sample, forward and backward; None where the phase has no formula.

    Args:
        samples_of: how many samples there are of each number of voxels, for the mean over them
            (``samples_by_voxels``).
        micro_batch: samples per rank and forward.
        adapters: what signals go through before the network reads them, if anything.
    """
    formula = formula_of(job)
    if formula is None:
        return None
    widest = max(samples_of)
    total = sum(count * formula(job, voxels, widest, micro_batch, adapters) for voxels, count in samples_of.items())
    return total / sum(samples_of.values())


def samples_by_voxels(job: Job, datasets: Sequence[Dataset], width: int) -> dict[int, int]:
    """How many training samples there are of each number of voxels after padding; of one, where all become ``width``.

    Where samples are packed, sets count by their sizes, whatever their weights.
    """
    if job.data.pad != "packed":
        return {width: 1}
    found: Counter[int] = Counter()
    for ds in datasets:
        mine = [name for name in job.data.subjects if name in ds.subjects]
        if mine or not job.data.subjects:
            subject_N = ds.table.subject[ds.ids("train", mine)]
            found.update(packed_lengths(ds.voxel_counts[subject_N], job.model.patch).tolist())
    return dict(found)


@dataclass(frozen=True)
class Rate:
    """Operations per second that a device does at most; ``source`` says who says so."""

    flop_per_s: float
    source: str


# Dense rates in TFLOP/s (without structured sparsity, which data sheets often include), by the device's whole name, so
# that a slice of a GPU (MIG), a laptop's or a Ti does not pass for it. Products of fp16 and bf16 add in float32.
# Sources, all NVIDIA: data sheets of V100 (January 2020), V100S, A100 (June 2021), H100 (2023), H200 (2024) and L40S;
# the GA102 (2020, v2) and Ada (2022, v2) architecture whitepapers for GeForce.
_PUBLISHED: list[tuple[str, dict[str, float]]] = [
    (r"Tesla V100-SXM2-\d+GB", {"fp16": 125.0, "fp32": 15.7}),
    (r"Tesla V100-PCIE-\d+GB", {"fp16": 112.0, "fp32": 14.0}),
    (r"Tesla V100S-PCIE-\d+GB", {"fp16": 130.0, "fp32": 16.4}),
    (r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe", {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5}),
    (r"H100 80GB HBM3|H200", {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H100 PCIe", {"bf16": 756.0, "fp16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (r"L40S", {"bf16": 362.05, "fp16": 362.05, "tf32": 183.0, "fp32": 91.6}),
    (r"GeForce RTX 3090", {"bf16": 71.0, "fp16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"GeForce RTX 4090", {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}),
]


def peak_rate(device: torch.device, precision: str) -> Rate:
    """The published rate of ``device`` in "bf16", "fp16" or "fp32" (which is TF32 where PyTorch may use that), or one
    measured now, in less than a second."""
    if device.type == "cuda":
        tf32 = precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
        published = published_rate(torch.cuda.get_device_name(device), "tf32" if tf32 else precision)
        if published is not None:
            return published
    return measured_rate(device, precision)


def published_rate(name: str, kind: str) -> Rate | None:
    """What NVIDIA publishes for the GPU ``name`` in "bf16", "fp16", "tf32" or "fp32"; None for others."""
    short = name.removeprefix("NVIDIA ")
    rates = next((rates for pattern, rates in _PUBLISHED if re.fullmatch(pattern, short)), {})
    return Rate(rates[kind] * 1e12, f"published for {short}, {kind}") if kind in rates else None


def measured_rate(device: torch.device, precision: str) -> Rate:
    """The rate of the fastest of many square matrix products on ``device``, on as many threads as this process uses.

    The side grows until a product takes 20 ms, so that neither a start nor a cache is what is measured.
    """
    began, side, fastest_s = time.perf_counter(), 256, 0.0
    while fastest_s < 0.02 and side < LARGEST[device.type]:
        side *= 2
        square = torch.randn(side, side, device=device).to(_DTYPES[precision])
        _product_s(square)  # libraries choose their code at the first product of a shape
        fastest_s = _product_s(square)
    while time.perf_counter() - began < MEASURING_S:
        fastest_s = min(fastest_s, _product_s(square))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what was measured is not the job's
    return Rate(2 * side**3 / fastest_s, f"measured here: products of {side:,} x {side:,}, {precision}")


def _product_s(square: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if square.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    _ = square @ square
    wait()
    return time.perf_counter() - began


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: of the GPU's tensors, or resident on the CPU; 0 where nobody counts.

    The host knows both, so nothing waits for a GPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


class Meter:
    """Turns what was counted between two reports into the metrics ``perf/*``; it reads nothing from a device.

    Attributes:
        flops: operations of a training step per sample; None where the phase has no formula.
        rate: the peak rate of one device; None with ``flops``.
    """

    def __init__(
        self, job: Job, samples_of: Mapping[int, int], micro_batch: int, place: Place, device: torch.device,
        precision: str, adapters: VoxelAdapters | None = None,
    ) -> None:  # fmt: skip
        """Measure the peak rate where none is published (0.25 s).

        Args:
            samples_of: of ``samples_by_voxels``.
            precision: what products run in: "bf16", "fp16" or "fp32".
            adapters: the phase's, where it has any.
        """
        self.flops, self._world = sample_flops(job, samples_of, micro_batch, adapters), place.world
        self.rate = None if self.flops is None else peak_rate(device, precision)

    def describe(self) -> str:
        """What MFU refers to, for the start-up print."""
        if self.flops is None or self.rate is None:
            return "no MFU: this phase has no formula yet"
        rate = self.rate.flop_per_s / 1e12
        return f"MFU: {self.flops / 1e9:,.3g} GFLOP a sample; {rate:,.3g} TFLOP/s a device ({self.rate.source})"

    def report(
        self, samples: int, seconds: float, wait_s: float, spent_s: float, memory_bytes: float
    ) -> dict[str, float]:
        """The metrics of the time since the last report.

        Args:
            samples: trained on by all ranks in ``seconds``.
            wait_s: of ``seconds``, waiting for data.
            spent_s: training time of the whole job so far, over all starts.
            memory_bytes: ``peak_memory_bytes`` of the rank with most; 0 leaves it out.
        """
        values = {
            "perf/samples_per_s": samples / seconds,
            "perf/data_wait": wait_s / seconds,
            "perf/device_hours": self._world * spent_s / 3600,
        }
        if memory_bytes:
            values["perf/memory_gb"] = memory_bytes / 1e9
        if self.flops is not None and self.rate is not None:
            values["perf/mfu"] = self.flops * samples / seconds / (self._world * self.rate.flop_per_s)
        return values
