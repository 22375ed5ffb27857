"""Every Triton kernel compiled for GPUs that are not here: registers, spills and shared memory a program needs.

    python benchmarks/compile_kernels.py            # one JSON object: per architecture, kernel, dtype and special case

Triton's compiler and NVIDIA's assembler, which comes with it, need no GPU. A spill is what does not fit the registers
of a thread and goes to memory; it is what to look at first when tiles are chosen without a GPU at hand.
"""

from __future__ import annotations

import json

from cadiff.kernels import triton_mask, triton_patch_embed, triton_similarity
from cadiff.launch.machine import machine

CAPABILITIES = (80, 90)
DTYPES = ("fp16", "bf16", "fp32")


def main() -> None:
    rows = []
    for capability in CAPABILITIES:
        cases = [("-", case) for case in triton_mask.ahead()]
        for dtype in DTYPES:
            cases += [(dtype, case) for case in (*triton_similarity.ahead(dtype), *triton_patch_embed.ahead(dtype))]
        for dtype, case in cases:
            options = {name: value for name, value in case.constants.items() if name not in ("WIDEN", "DTYPE")}
            rows.append(
                {"architecture": f"sm_{capability}", "kernel": case.name, "dtype": dtype, **case.compile(capability)}
                | {"constants": options | case.options}
            )
    print(json.dumps({"bench": "compile_kernels", "machine": machine(), "kernels": rows}, indent=1))


if __name__ == "__main__":
    main()
