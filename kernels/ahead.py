"""Kernels compiled for GPUs that are not here: their registers, spills and shared memory, as the assembler tells."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_USAGE = re.compile(r"(REG|STACK|LOCAL):(\d+)")


@dataclass(frozen=True)
class Ahead:
    """A kernel and what a launch would tell the compiler.

    Attributes:
        types: of its arguments, such as "*fp16"; what is not named is a 32-bit integer.
        constants: constexpr arguments.
        options: num_warps and num_stages.
        aligned: integer arguments that are multiples of 16, which Triton finds out at a launch.
    """

    kernel: Any
    types: dict[str, str]
    constants: dict[str, object]
    options: dict[str, int]
    aligned: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def compile(self, capability: int) -> dict[str, int]:
        """Compile for a capability such as 90: registers a thread, bytes of spills a thread, bytes of shared memory."""
        names = self.kernel.arg_names
        signature = {n: "constexpr" if n in self.constants else self.types.get(n, "i32") for n in names}
        attributes = {
            (place,): [["tt.divisibility", 16]]
            for place, n in enumerate(names)
            if signature[n].startswith("*") or n in self.aligned
        }
        by_place = {(names.index(name),): value for name, value in self.constants.items()}
        source = ASTSource(self.kernel, signature, by_place, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)
        used = _usage(compiled.asm["cubin"])
        return {
            "registers": used["REG"], "spilled_bytes": used["STACK"] + used["LOCAL"],
            "shared_bytes": compiled.metadata.shared,
        }  # fmt: skip


def _usage(cubin: bytes) -> dict[str, int]:
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(reader), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    return {name: int(value) for name, value in _USAGE.findall(done.stdout)}
