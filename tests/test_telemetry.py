"""Telemetry: the formula counts what PyTorch counts, rates are published or measured, and MFU is their quotient."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cadiff import layers
from cadiff.attention import attention_reference
from cadiff.config import JOBS, Phase1Job
from cadiff.distributed import Place
from cadiff.flops import FLOPS
from cadiff.kernels import dispatch
from cadiff.phases import PHASES, Space, build_phase
from cadiff.shards.dataset import Dataset
from cadiff.telemetry import (
    Meter,
    measured_rate,
    peak_memory_bytes,
    peak_rate,
    published_rate,
    sample_flops,
    samples_by_voxels,
)

CPU = torch.device("cpu")
SIZES = {
    "tiny": {
        "patch": 4,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "decoder_width": 8,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "mid": {"width": 128, "depth": 4, "heads": 4, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4},
}  # fmt: skip
LOSSES = {
    "both": {},
    "rebuild": {"self_contrast": 0, "cross_contrast": 0},
    "self": {"cross_contrast": 0, "negatives": "micro"},
    "self on both": {"self_on_both_views": True, "symmetric": True},
    "predictions": {"negatives": "predictions"},
}


def phase1_job(size="tiny", loss="both", batch=4, **sections):
    tree = {"phase": "phase1", "name": "t", "data": {"shards": ["s"]}, "train": {"steps": 1, "batch": batch}}
    return Phase1Job.model_validate({**tree, "model": SIZES[size], "loss": LOSSES[loss], **sections})


@pytest.fixture
def definitions(monkeypatch):
    """Kernels and attention by their definitions, whose matrix products PyTorch's counter sees."""
    monkeypatch.setenv("CADIFF_KERNELS", "reference")
    monkeypatch.setattr(layers, "attention", attention_reference)
    monkeypatch.setattr(layers, "attention_packed", one_by_one)
    dispatch.forget()
    yield
    dispatch.forget()


def one_by_one(q_THD, k_THD, v_THD, lengths):
    """Packed attention with the products of each sequence alone."""
    parts = zip(*(heads.transpose(0, 1).split(list(lengths), dim=1) for heads in (q_THD, k_THD, v_THD)))
    return torch.cat([attention_reference(*part) for part in parts], dim=1).transpose(0, 1)


def counted(job, voxels, signal, **more):
    """Operations per sample of one forward and backward, as PyTorch counts them."""
    phase = build_phase(job, Space(voxels, 1))
    number_B = torch.arange(job.train.batch)
    numbers = {name: number_B for name in ("sample_id", "epoch", "subject", "stimulus")}
    with FlopCounterMode(display=False) as counter:
        terms = phase({"signal": signal, **numbers, **more})
        torch.stack(list(terms.values())).sum().backward()
    return counter.get_total_flops() / job.train.batch


@pytest.mark.parametrize("size,voxels,loss,ratio,mlp_ratio", [
    *(("tiny", 64, loss, 0.75, 1.0) for loss in LOSSES),
    ("tiny", 64, "both", 0.0, 4.0), ("tiny", 1024, "self", 0.5, 1.0), ("mid", 4192, "both", 0.75, 1.0),
    ("mid", 4192, "rebuild", 0.75, 2.5),
])  # fmt: skip
def test_the_formula_counts_what_pytorch_counts(definitions, size, voxels, loss, ratio, mlp_ratio):
    model = {**SIZES[size], "mlp_ratio": mlp_ratio}
    batch = 6 if size == "tiny" else 2
    job = phase1_job(size, loss, batch, model=model, mask={"ratio": ratio})
    assert sample_flops(job, {voxels: 1}, batch) == pytest.approx(
        counted(job, voxels, torch.randn(batch, voxels)), rel=1e-9
    )


@pytest.mark.parametrize("tube", [False, True])
def test_patches_of_clips_span_frames(definitions, tube):
    job = phase1_job(
        batch=3, model={**SIZES["tiny"], "patch_frames": 2}, mask={"ratio": 0.6, "tube": tube},
        data={"shards": ["s"], "clip_frames": 6},
    )  # fmt: skip
    assert sample_flops(job, {40: 1}, 3) == pytest.approx(counted(job, 40, torch.randn(3, 6, 40)), rel=1e-9)


def test_packed_samples_cost_what_each_has(definitions):
    job = phase1_job(batch=4, data={"shards": ["s"], "pad": "packed"})
    lengths = torch.tensor([64, 32, 32, 16])
    counts = counted(job, 64, torch.randn(144), lengths=lengths)
    assert sample_flops(job, {64: 1, 32: 2, 16: 1}, 4) == pytest.approx(counts, rel=1e-9)


def test_samples_are_counted_as_they_are_padded(tiny_set):
    datasets = [Dataset(tiny_set)]
    wrapped, packed = (phase1_job(data={"shards": ["s"], "pad": pad}) for pad in ("wrap", "packed"))
    assert samples_by_voxels(wrapped, datasets, 32) == {32: 1}
    assert samples_by_voxels(packed, datasets, 32) == {32: 32, 28: 32}  # of 30 and 27 voxels, in patches of 4
    one = phase1_job(data={"shards": ["s"], "pad": "packed", "subjects": ["B"]})
    assert samples_by_voxels(one, datasets, 32) == {28: 32}


def test_recomputation_is_not_counted():
    plain = phase1_job(train={"steps": 1, "batch": 4, "micro_batch": 4})
    again = phase1_job(train={"steps": 1, "batch": 4, "micro_batch": 2}, engine={"checkpoint_activations": True})
    assert sample_flops(plain, {64: 1}, 4) == sample_flops(again, {64: 1}, 2)


def test_samples_of_several_widths_count_by_their_number():
    job = phase1_job()
    job = job.model_copy(update={"loss": job.loss.model_copy(update={"scale": 0.0})})  # a contrast is of the widest
    short, long = (sample_flops(job, {voxels: 1}, 4) for voxels in (64, 128))
    assert sample_flops(job, {64: 3, 128: 1}, 4) == pytest.approx((3 * short + long) / 4)


def test_negatives_of_the_whole_batch_are_more_work_than_those_of_a_micro_batch():
    whole = phase1_job(batch=64)
    micro = whole.model_copy(update={"loss": whole.loss.model_copy(update={"negatives": "micro"})})
    assert sample_flops(whole, {64: 1}, 8) - sample_flops(micro, {64: 1}, 8) == 5 * 2 * (64 - 8) * 64
    assert sample_flops(micro, {64: 1}, 64) == sample_flops(whole, {64: 1}, 8)


def test_every_phase_has_a_formula_or_says_that_it_has_none():
    assert FLOPS.keys() == PHASES.keys() == JOBS.keys()


@pytest.mark.parametrize("name,kind,tflops", [
    ("NVIDIA H100 80GB HBM3", "bf16", 989.4), ("NVIDIA H100 PCIe", "bf16", 756), ("NVIDIA H200", "tf32", 494.7),
    ("NVIDIA A100-SXM4-80GB", "fp16", 312), ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
    ("Tesla V100-SXM2-32GB", "fp16", 125), ("NVIDIA L40S", "bf16", 362.05),
    ("NVIDIA GeForce RTX 3090", "bf16", 71), ("NVIDIA GeForce RTX 4090", "fp16", 165.2),
])  # fmt: skip
def test_gpus_have_the_rate_that_is_published_for_them(name, kind, tflops):
    rate = published_rate(name, kind)
    assert rate.flop_per_s == pytest.approx(tflops * 1e12)
    assert rate.source == f"published for {name.removeprefix('NVIDIA ')}, {kind}"


@pytest.mark.parametrize("name,kind", [
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"), ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
    ("NVIDIA GeForce RTX 3090 Ti", "bf16"), ("NVIDIA H200 NVL", "bf16"), ("Tesla V100-SXM2-32GB", "bf16"),
    ("AMD Instinct MI300X", "bf16"),
])  # fmt: skip
def test_no_rate_is_guessed_from_a_name_that_only_resembles(name, kind):
    assert published_rate(name, kind) is None


def test_where_nothing_is_published_the_rate_is_measured_by_the_clock(monkeypatch):
    from cadiff import telemetry

    ticks = itertools.count(step=0.05)
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: next(ticks))
    rate = measured_rate(CPU, "fp32")
    assert rate.flop_per_s == pytest.approx(2 * 512**3 / 0.05)
    assert rate.source == "measured here: products of 512 x 512, fp32"


def test_a_gpu_is_asked_for_its_name_and_whether_float32_may_be_tf32(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    for setting, tflops in (("highest", 66.9), ("high", 494.7)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda setting=setting: setting)
        assert peak_rate(gpu, "fp32").flop_per_s == pytest.approx(tflops * 1e12)
    assert peak_rate(gpu, "bf16").flop_per_s == pytest.approx(989.4e12)


@pytest.fixture
def slow_device(monkeypatch):
    """A device of 1 GFLOP/s."""
    from cadiff import telemetry

    monkeypatch.setattr(telemetry, "peak_rate", lambda *_: telemetry.Rate(1e9, "assumed"))


def test_a_report_is_made_of_what_was_counted(slow_device):
    meter = Meter(phase1_job(), {64: 1}, 4, Place(0, 0, 2), CPU, "fp32")
    told = meter.report(samples=80, seconds=4.0, wait_s=0.1, spent_s=1800.0, memory_bytes=3e9)
    assert told == {
        "perf/samples_per_s": 20.0,
        "perf/data_wait": 0.025,
        "perf/device_hours": 1.0,
        "perf/memory_gb": 3.0,
        "perf/mfu": pytest.approx(meter.flops * 20 / 2e9),
    }
    assert "assumed" in meter.describe() and "GFLOP a sample" in meter.describe()


def test_what_is_not_known_is_left_out_and_not_zero(tiny_job, tmp_path):
    from cadiff.config import load_job

    job = load_job(tiny_job(tmp_path / "job.toml", "first_stage", text=""))
    meter = Meter(job, {32: 1}, 4, Place(), CPU, "fp32")
    assert meter.report(8, 1.0, 0.0, 1.0, 0).keys() == {"perf/samples_per_s", "perf/data_wait", "perf/device_hours"}
    assert meter.describe() == "no MFU: this phase has no formula yet"


def test_the_peak_of_memory_is_this_processs_own_and_stays():
    before = peak_memory_bytes(CPU)
    held = torch.ones(128 << 20)  # 512 MiB
    after = peak_memory_bytes(CPU)
    del held
    # What earlier tests gave back lies below the peak, and the system counts pages in batches.
    assert before + 100e6 < after < before + 600e6
    assert peak_memory_bytes(CPU) > after - 2e6
