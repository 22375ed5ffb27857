"""Packed attention: what does not computing padding, or other sequences, save?

    python benchmarks/bench_attention.py             # one JSON line; see --help for sizes

Three contenders in one run, forward and backward, taking turns so that a busy machine slows all alike: "definition" is
attention under the whole T x T block-diagonal mask, "padded" pads to the longest sequence and masks what it added, and
"dispatched" is what training calls here. Lengths are those of ``--subjects`` people, drawn from 200 to 400 tokens. The
ratios are contender / dispatched, of the fastest rounds; above 1, dispatched is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from cadiff.attention import attention_packed, attention_packed_reference, describe_attention


def padded(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, lengths: list[int]) -> Tensor:
    lengths_B = torch.tensor(lengths, device=q_THD.device)
    real_BM = torch.arange(max(lengths), device=q_THD.device) < lengths_B[:, None]
    place_T = real_BM.flatten().nonzero()[:, 0]

    def pad(heads_THD: Tensor) -> Tensor:
        empty = heads_THD.new_zeros(real_BM.numel(), *heads_THD.shape[1:])
        return empty.index_copy(0, place_T, heads_THD).unflatten(0, real_BM.shape).transpose(1, 2)

    mask_B11N = real_BM[:, None, None, :]
    mixed_BHMD = F.scaled_dot_product_attention(pad(q_THD), pad(k_THD), pad(v_THD), attn_mask=mask_B11N)
    return mixed_BHMD.transpose(1, 2).flatten(0, 1)[place_T]


CONTENDERS = {
    "definition": lambda q, k, v, lengths: attention_packed_reference(q, k, v, lengths, lengths),
    "padded": padded,
    "dispatched": attention_packed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    draw = torch.Generator().manual_seed(0)
    length_of = torch.randint(200, 401, (args.subjects,), generator=draw)
    lengths = length_of[torch.randint(0, args.subjects, (args.sequences,), generator=draw)].tolist()
    shape = (sum(lengths), args.heads, args.size)
    as_asked = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    leaves = [torch.randn(*shape, generator=draw).to(**as_asked).requires_grad_() for _ in range(3)]
    grad_THD = torch.randn(*shape, generator=draw).to(**as_asked)

    def once(attend) -> float:
        start = time.perf_counter()
        torch.autograd.grad(attend(*leaves, lengths), leaves, grad_THD)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(1 + args.rounds):
        for name, attend in CONTENDERS.items():
            elapsed = once(attend)
            if turn:  # the first turn warms up
                times[name].append(elapsed)
    fastest = {name: min(values) for name, values in times.items()}
    row = {
        "bench": "attention",
        **vars(args),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "attention": describe_attention(args.device),
        "device": torch.cuda.get_device_name() if args.device != "cpu" else f"cpu, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "fastest_ms": {name: round(value, 2) for name, value in fastest.items()},
        "ratio": {name: round(value / fastest["dispatched"], 2) for name, value in fastest.items()},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
