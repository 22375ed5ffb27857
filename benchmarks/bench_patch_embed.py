"""Masked patch embedding: what does skipping the hidden patches save at a mask ratio of 0.75?

    python benchmarks/bench_patch_embed.py            # one JSON line; see --help for sizes

Contenders in one run, forward and backward, taking turns so that a busy machine slows all of them alike:
"Conv1d + gather" is the paper's code: it embeds everything, adds positions and then chooses; "reference" chooses and
then embeds in plain PyTorch; "dispatched" is what training calls here. Gradients are those of weight, bias and, unless
positions are fixed as in the paper, position. Ratios are Conv1d + gather / contender; above 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cadiff.kernels import dispatch
from cadiff.kernels.mask import random_mask
from cadiff.kernels.patch_embed import masked_patch_embed, masked_patch_embed_reference


def conv1d_and_gather(
    signal_BV: Tensor, keep_BK: Tensor, weight_DP: Tensor, bias_D: Tensor, position_LD: Tensor
) -> Tensor:
    whole_BDL = torch.nn.functional.conv1d(signal_BV[:, None], weight_DP[:, None], bias_D, stride=weight_DP.shape[1])
    tokens_BLD = whole_BDL.transpose(1, 2) + position_LD
    return tokens_BLD.gather(1, keep_BK[:, :, None].expand(-1, -1, tokens_BLD.shape[2]))


CONTENDERS = {
    "Conv1d + gather": conv1d_and_gather,
    "reference": masked_patch_embed_reference,
    "dispatched": masked_patch_embed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--patches", type=int, default=262)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--positions", choices=("fixed", "learned"), default="fixed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    draw = torch.Generator(args.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=args.device).to(getattr(torch, args.dtype))

    shapes = ((args.width, args.patch), (args.width,), (args.patches, args.width))
    weights = [normal(*shape).requires_grad_() for shape in shapes]
    weights[2].requires_grad_(args.positions == "learned")
    asked = [weight for weight in weights if weight.requires_grad]
    signal_BV = normal(args.batch, args.patches * args.patch)
    ids_B = torch.arange(args.batch, device=args.device)
    keep_BK = random_mask(0, "bench", ids_B, ids_B, args.patches, args.ratio).keep_BK
    grad_BKD = normal(*keep_BK.shape, args.width)

    def once(embed: Callable[..., Tensor]) -> float:
        start = time.perf_counter()
        torch.autograd.grad(embed(signal_BV, keep_BK, *weights), asked, grad_BKD)
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
    row = {
        "bench": "patch_embed",
        **vars(args),
        **dispatch.describe(args.device),
        "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "median_ms": {name: round(value, 3) for name, value in medians.items()},
        "ratio": {name: round(medians["Conv1d + gather"] / value, 2) for name, value in medians.items()},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
