"""Phase 2 beside the paper's design: samples per second, and where the time goes; with frozen features kept, too.

    python benchmarks/bench_phase2.py --config mid --json FILE        # see --help for sizes and contenders

Contenders, all with both losses, masks 0.75 and 0.5, AdamW and clipping, from drawn weights and with a frozen image
encoder: "plain" is the paper's design, written plainly (plain_phase2.py); "ours" is cadiff.phases.crosstune.CrossTune
with fused AdamW; "whole" is the same with the tokens of whole pictures kept; "cached" with those of their visible
parts, too, as ``data.features`` and ``loss.image_masks`` give them (random numbers here: reading them from a disk is
not in the time); "engine" and "engine_cached" are "ours" and "cached" in cadiff.engine.Engine, as a job trains. Every
round gives each contender a fresh process, one after the other, so that a busy machine slows all alike. Ratios are of
the fastest rounds' medians; all rounds' medians are in the record.

The components are timed in steps of their own, after the timed ones: pictures (resizing and normalising), masking, the
image encoder (both its runs), the fMRI encoder (both), cross layers and maps (both sides), the decoders, losses (and
all of the forward that is no other part), backward, update (clipping and AdamW) and copies (what goes to the host every
step). The share of the matrix rate counts what a contender's step asks for (cadiff/flops.py): with features kept, less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_phase1 import fastest, others_s, ratios
from phase1_contenders import Clock
from phase2_contenders import FORWARD, KINDS, README, Numbers, asked_for
from plain_image import ImageSizes
from plain_phase1 import Sizes

from cadiff.launch.machine import machine
from cadiff.precision import has_bf16
from cadiff.telemetry import measured_rate, peak_memory_bytes

CONFIGS: dict[str, Numbers] = {
    "mid": (
        Sizes(width=128, depth=4, heads=8, decoder_width=64, decoder_depth=2, decoder_heads=8),
        ImageSizes(),
    ),
    "paper": (Sizes(decoder_depth=6), ImageSizes()),
    "tiny": (Sizes(64, 4, 16, 1, 2, 8, 1, 2, 1.0), ImageSizes(16, 4, 16, 1, 2, 24, 8, 1, 2, 12, 1)),
}
BATCH = {"mid": 8, "paper": 4, "tiny": 2}
SPARED = {"whole": ("image_whole",), "cached": ("image_whole", "image_visible")}
SPARED["engine_cached"] = SPARED["cached"]
PARTS = (*FORWARD, "backward", "update", "copies", "rest")


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Train one contender in this process."""
    kind, precision = args.only.split("-")
    sizes, image = CONFIGS[args.config]
    cpu = torch.device("cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    libraries = peak_memory_bytes(cpu)
    contender = KINDS[kind]((sizes, image), args.batch, precision)
    drawn = torch.randint(0, 256, (args.batch, 3, image.size, image.size), dtype=torch.uint8)
    given = contender.given(torch.randn(args.batch, sizes.voxels), drawn)

    def timed(step: Any, number: int) -> float:
        began = time.perf_counter()
        step(given, number)
        return time.perf_counter() - began

    for number in range(args.warm):
        contender.step(given, number)
    began, busy, others = time.perf_counter(), time.process_time(), others_s()
    times = [timed(contender.step, args.warm + number) for number in range(args.steps)]
    busy, others, whole = time.process_time() - busy, others_s() - others, time.perf_counter() - began
    peak, clock = peak_memory_bytes(cpu), Clock()
    step = contender.part_steps(clock)
    parted_s = [timed(step, 10**6 + number) for number in range(args.part_steps)]
    rate = measured_rate(cpu, precision).flop_per_s
    asked, step_s = asked_for(sizes, image), statistics.median(times)
    flops = sum(sum(passes) for name, passes in asked.items() if name not in SPARED.get(kind, ()))
    parts = {name: spent / max(1, args.part_steps) for name, spent in clock.spent_s.items()}
    parts["rest"] = (sum(parted_s) - sum(clock.spent_s.values())) / max(1, args.part_steps)
    return {
        "step_s": step_s,
        "cpu_s": busy / args.steps,
        "cores_of_others": max(0.0, others) / whole,
        "samples_per_s": args.batch / step_s,
        "peak_mb": peak / 2**20,
        "libraries_mb": libraries / 2**20,
        "gflop_per_sample": flops / 1e9,
        "matrix_gflop_per_s": rate / 1e9,
        "share_of_matrix_rate": flops * args.batch / step_s / rate,
        "parts_s": parts,
        "forward_s": sum(parts.get(name, 0.0) for name in FORWARD),
        "backward_s": parts.get("backward", 0.0),
    }


def in_fresh_process(args: argparse.Namespace, name: str) -> dict[str, Any]:
    options = ("config", "batch", "steps", "warm", "part_steps", "threads")
    words = [word for option in options for word in (f"--{option.replace('_', '-')}", str(getattr(args, option)))]
    command = [sys.executable, __file__, *words, "--only", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def beside_uncached(told: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Times as many samples per second with features kept as without them, in the same precision."""
    found = {}
    for name, row in told.items():
        kind, precision = name.split("-")
        without = f"{'engine' if kind.startswith('engine') else 'ours'}-{precision}"
        if kind in SPARED and without in told:
            found[name] = row["samples_per_s"] / told[without]["samples_per_s"]
    return found


def page(told: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'':20}{'samples/s':>10}{'(rounds)':>16}{'step ms':>9}{'peak MB':>9}{'matrix':>8}   ms: " + "  ".join(PARTS)
    ]
    for name, row in told.items():
        split = "  ".join(f"{1e3 * row['parts_s'].get(part, 0.0):{len(part)}.1f}" for part in PARTS)
        rates = [row["samples_per_s"] * row["step_s"] / step_s for step_s in row["rounds_s"]]
        lines.append(
            f"{name:20}{row['samples_per_s']:10.2f}{min(rates):8.2f}-{max(rates):7.2f}{1e3 * row['step_s']:9.0f}"
            f"{row['peak_mb']:9.0f}{row['share_of_matrix_rate']:8.1%}       {split}"
        )
    return "\n".join(lines)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(CONFIGS), default="mid")
    parser.add_argument("--batch", type=int, default=0, help="0: the config's own")
    parser.add_argument("--steps", type=int, default=5, help="timed in each round")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--part-steps", type=int, default=2, help="steps after them that tell the components")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--contenders", nargs="+", help="such as plain-fp32 ours-bf16 cached-bf16; plain-fp32 must be")
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or BATCH[args.config]
    return args


def main() -> None:
    args = asked()
    if args.only:
        print(json.dumps(work(args)))
        return
    best = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
    usual = [f"{kind}-{precision}" for precision in ("fp32", best) for kind in ("ours", "whole", "cached")]
    names = args.contenders or list(dict.fromkeys(["plain-fp32", *usual]))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            rounds[name].append(in_fresh_process(args, name))
            print(f"{name}: {1e3 * rounds[name][-1]['step_s']:.0f} ms a step", file=sys.stderr)
    (sizes, image), told = CONFIGS[args.config], {name: fastest(rows) for name, rows in rounds.items()}
    components = asked_for(sizes, image)
    record = {
        "bench": "phase2",
        "machine": machine(),
        **{name: getattr(args, name) for name in ("config", "batch", "steps", "warm", "rounds", "threads")},
        "sizes": {"fmri": vars(sizes), "image": vars(image)},
        "masks": {"fmri": README.mask_ratio, "image": README.img_mask_ratio},
        "gflop_per_sample": {
            name: {"forward": forward / 1e9, "backward": backward / 1e9}
            for name, (forward, backward) in components.items()
        },
        "contenders": told,
        "beside_plain_fp32": {name: ratios(told, name) for name in names if name != "plain-fp32"},
        "beside_uncached": beside_uncached(told),
    }
    print(page(told), file=sys.stderr)
    print(json.dumps({name: record[name] for name in ("beside_plain_fp32", "beside_uncached")}))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
