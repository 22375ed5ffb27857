"""Every Triton kernel compiled for real GPUs, on a machine that needs none.

Not collected by name: test_triton.py runs this file in a process of its own, where Triton's interpreter is off. The
interpreter accepts things that the compiler does not, such as methods of an argument that was specialised to 1.
"""

import pytest
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cadiff.kernels import triton_patch_embed, triton_similarity

TILES = {"BLOCK_P": 16, "BLOCK_M": 32, "BLOCK_D": 64, "BLOCK_B": 64, "BLOCK_N": 64, "BLOCK_F": 32}
POINTERS = {
    "keep": "*i64",
    "where": "*i64",
    "weight_out": "*fp32",
    "bias_out": "*fp32",
    "lse": "*fp32",
    "sharpness": "fp32",
}
KERNELS = [
    (triton_patch_embed._embed, ("signal", "weight", "bias", "position", "tokens")),
    (triton_patch_embed._weight_grad, ("signal", "grad")),
    (triton_patch_embed._position_grad, ("grad", "out")),
    (triton_similarity._log_sum_exp, ("anchor", "target")),
]


@pytest.mark.parametrize(("kernel", "tensors"), KERNELS, ids=[kernel.fn.__name__ for kernel, _ in KERNELS])
@pytest.mark.parametrize(
    ("capability", "dtype", "ones"),
    [(80, "fp16", False), (90, "bf16", False), (90, "fp32", True)],
    ids=["Ampere fp16", "Hopper bf16", "Hopper fp32, sizes of one"],
)
def test_kernel_compiles(kernel, tensors, dtype, ones, capability):
    types = POINTERS | {name: f"*{dtype}" for name in tensors}
    constants = {name: TILES[name] for name in kernel.arg_names if name in TILES}
    if ones:  # Triton makes a constant of every integer argument that is 1
        constants |= {name: 1 for name in kernel.arg_names if name not in types and name not in TILES}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    by_place = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = compile_kernel(ASTSource(kernel, signature, by_place), target=GPUTarget("cuda", capability, 32))
    assert compiled.metadata.shared <= 48 * 1024  # bytes of shared memory that every NVIDIA GPU has
