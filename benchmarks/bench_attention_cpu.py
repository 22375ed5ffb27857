"""Attention on a CPU in bfloat16: blocked beside PyTorch's fused one and the definition, forward and backward.

    python benchmarks/bench_attention_cpu.py         # one JSON line a shape

Shapes are (samples, heads, tokens, head size) of the paper's encoder and decoder, and of a narrow model with 16 heads.
Contenders take turns, so that a busy machine slows all alike; ratios are contender / blocked, of the fastest rounds.
"""

from __future__ import annotations

import json
import time

import torch
import torch.nn.functional as F

from cadiff.attention import attention_reference
from cadiff.attention_blocked import BlockedAttention

SHAPES = {
    "paper, encoder": (8, 16, 66, 64), "paper, decoder": (8, 16, 263, 32),
    "narrow, encoder": (32, 16, 66, 8), "narrow, decoder": (32, 16, 263, 4),
}  # fmt: skip
CONTENDERS = {
    "blocked": BlockedAttention.apply, "sdpa": F.scaled_dot_product_attention, "definition": attention_reference,
}  # fmt: skip
ROUNDS = 5


def main() -> None:
    for name, (samples, heads, tokens, size) in SHAPES.items():
        qkv = torch.randn(3, samples, heads, tokens, size, dtype=torch.bfloat16, requires_grad=True)
        times: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
        for turn in range(1 + ROUNDS):
            for contender, attend in CONTENDERS.items():
                began = time.perf_counter()
                out = attend(*qkv.unbind())
                torch.autograd.grad(out, qkv, out.detach())
                if turn:  # the first turn warms up
                    times[contender].append(1e3 * (time.perf_counter() - began))
        fastest = {contender: min(values) for contender, values in times.items()}
        row = {
            "bench": "attention on a CPU", "shape": name,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "fastest_ms": {contender: round(value, 2) for contender, value in fastest.items()},
            "ratio": {contender: round(value / fastest["blocked"], 2) for contender, value in fastest.items()},
        }  # fmt: skip
        print(json.dumps(row))


if __name__ == "__main__":
    main()
