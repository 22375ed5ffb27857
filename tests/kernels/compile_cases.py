"""Every Triton kernel compiled for real GPUs, on a machine that needs none.

Not collected by name: test_triton.py runs this file in a process of its own, where Triton's interpreter is off. The
interpreter accepts things that the compiler does not, such as methods of an argument that was specialised to 1.
"""

import dataclasses

import pytest

from cadiff.kernels import triton_mask, triton_patch_embed, triton_similarity

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have, of the A100 and the H100
CASES = [
    *((f"mask {place}", case) for place, case in enumerate(triton_mask.ahead())),
    *(
        (f"{case.name} {dtype} {place}", case)
        for dtype in ("fp16", "bf16", "fp32")
        for module in (triton_similarity, triton_patch_embed)
        for place, case in enumerate(module.ahead(dtype))
    ),
]


@pytest.mark.parametrize("capability", SHARED, ids=["Ampere", "Hopper"])
@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_kernel_compiles_within_the_gpus_means(case, capability):
    used = case.compile(capability)
    assert 16 <= used["registers"] <= 255
    assert used["shared_bytes"] <= SHARED[capability]
    assert used["spilled_bytes"] <= 64  # a few numbers a thread; more means tiles that are too large


@pytest.mark.parametrize("case", [triton_similarity.ahead("fp32")[1], triton_patch_embed.ahead("fp32")[0]])
def test_kernel_compiles_where_every_size_is_one(case):
    """Triton makes a constant of every integer argument that is 1."""
    sizes = [n for n in case.kernel.arg_names if n not in case.types and n not in case.constants]
    ones = dataclasses.replace(case, constants=case.constants | dict.fromkeys(sizes, 1), aligned=())
    assert ones.compile(90)["registers"] >= 16
