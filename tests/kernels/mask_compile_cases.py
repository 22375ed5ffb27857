"""The mask kernel compiled for real GPUs, on a machine that needs none.

Not collected by name: test_triton.py runs this file in a process of its own, where Triton's interpreter is off.
"""

import pytest
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cadiff.kernels.triton_mask import FORWARD, _rank

POINTERS = {"epoch": "*i64", "sample_id": "*i64", "inverse": "*i64", "keep": "*i64", "restore": "*i64"}


@pytest.mark.parametrize("capability", [80, 90], ids=["Ampere", "Hopper"])
@pytest.mark.parametrize("constants", [{"inverse": None}, {}, {"length": 1, "kept": 1}], ids=["plain", "weighted", "one"])
def test_mask_kernel_compiles(constants, capability):
    constants = constants | {name: FORWARD[name] for name in ("BLOCK_I", "BLOCK_J")}
    types = POINTERS | {"hidden": "*fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in _rank.arg_names}
    by_place = {(_rank.arg_names.index(name),): value for name, value in constants.items()}
    options = {name: FORWARD[name] for name in ("num_warps", "num_stages")}
    compiled = compile_kernel(
        ASTSource(_rank, signature, by_place), target=GPUTarget("cuda", capability, 32), options=options
    )
    assert compiled.metadata.shared <= 48 * 1024  # bytes of shared memory that every NVIDIA GPU has
    assert ".local" not in compiled.asm["ptx"]
