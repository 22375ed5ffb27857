"""InfoNCE: what does not keeping the B x B matrix cost in time, and what does it save in memory?

    python benchmarks/bench_similarity.py             # one JSON line; see --help for sizes

Two contenders in one run, forward and backward, taking turns so that a busy machine slows both alike: "definition"
keeps the whole matrix, "dispatched" is what training calls here. The ratio is definition / dispatched; above 1 is
faster. ``saved_mib`` is what autograd holds between forward and backward beyond the two inputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch

from cadiff.kernels import dispatch
from cadiff.kernels.similarity import info_nce, info_nce_reference

CONTENDERS = {"definition": info_nce_reference, "dispatched": info_nce}


def saved_mebibytes(loss_of, anchor_BF: torch.Tensor, target_BF: torch.Tensor) -> float:
    inputs = {anchor_BF.untyped_storage().data_ptr(), target_BF.untyped_storage().data_ptr()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(anchor_BF, target_BF, 0.1)
    del loss
    return sum(held.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    draw = torch.Generator(args.device).manual_seed(0)
    shape = (args.batch, args.features)
    leaves = [torch.randn(*shape, generator=draw, device=args.device, requires_grad=True) for _ in range(2)]

    def once(loss_of) -> float:
        start = time.perf_counter()
        torch.autograd.grad(loss_of(*leaves, 0.1), leaves)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(2 + args.rounds):
        for name, loss_of in CONTENDERS.items():
            elapsed = once(loss_of)
            if turn >= 2:  # the first turns compile and warm up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"cpu, {torch.get_num_threads()} threads"
    row = {
        "bench": "similarity",
        **vars(args),
        **dispatch.describe(args.device),
        "device": device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "median_ms": {name: round(value, 3) for name, value in medians.items()},
        "saved_mib": {name: round(saved_mebibytes(loss_of, *leaves), 2) for name, loss_of in CONTENDERS.items()},
        "ratio": round(medians["definition"] / medians["dispatched"], 2),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
