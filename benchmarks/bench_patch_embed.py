"""Masked patch embedding: what does skipping the hidden patches save at a mask ratio of 0.75?

    python benchmarks/bench_patch_embed.py            # one JSON line; see --help for sizes

Three contenders in one run, forward and backward, taking turns so that a busy machine slows all of them alike:
"everything" embeds every patch and then chooses, "reference" chooses and then embeds in PyTorch, "dispatched" is what
training calls here. Ratios are everything / contender; above 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from torch import Tensor

from cadiff.kernels import dispatch
from cadiff.kernels.mask import random_mask
from cadiff.kernels.patch_embed import masked_patch_embed, masked_patch_embed_reference


def embed_everything(
    signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor
) -> Tensor:
    patches_BLP = signal_BV.unflatten(1, (-1, weight_DP.shape[1]))
    tokens_BLD = torch.nn.functional.linear(patches_BLP, weight_DP, bias_D) + position_LD
    return tokens_BLD.gather(1, keep_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))


CONTENDERS = {
    "everything": embed_everything,
    "reference": masked_patch_embed_reference,
    "dispatched": masked_patch_embed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--patches", type=int, default=262)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    draw = torch.Generator(args.device).manual_seed(0)
    shapes = ((args.width, args.patch), (args.width,))
    weights = [torch.randn(*shape, generator=draw, device=args.device, requires_grad=True) for shape in shapes]
    signal_BV = torch.randn(args.batch, args.patches * args.patch, generator=draw, device=args.device)
    position_LD = torch.randn(args.patches, args.width, generator=draw, device=args.device)
    ids_B = torch.arange(args.batch, device=args.device)
    keep_BK = random_mask(0, "bench", ids_B, ids_B, args.patches, args.ratio).keep_BK
    grad_BKD = torch.randn(*keep_BK.shape, args.width, generator=draw, device=args.device)

    def once(embed) -> float:
        start = time.perf_counter()
        torch.autograd.grad(embed(signal_BV, keep_BK, *weights, position_LD), weights, grad_BKD)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(3 + args.rounds):
        for name, embed in CONTENDERS.items():
            elapsed = once(embed)
            if turn >= 3:  # the first turns compile and warm up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    row = {
        "bench": "patch_embed",
        **vars(args),
        **dispatch.describe(args.device),
        "device": device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "median_ms": {name: round(value, 3) for name, value in medians.items()},
        "ratio": {name: round(medians["everything"] / value, 2) for name, value in medians.items()},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
