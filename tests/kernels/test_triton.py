"""Run the Triton cases where they can run: interpreted on any machine, compiled without a GPU, natively on one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_cases(name: str, scratch: Path, **variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / name)]
    environ = os.environ | {"TRITON_CACHE_DIR": str(scratch)} | variables
    done = subprocess.run(command, env=environ, cwd=HERE.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


CASES = sorted(path.name for path in HERE.glob("*_triton_cases.py"))


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_triton_kernels_equal_their_references_in_the_interpreter(name, tmp_path):
    run_cases(name, tmp_path, TRITON_INTERPRET="1", CADIFF_KERNELS="triton")


@needs_triton
def test_triton_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    run_cases("compile_cases.py", tmp_path, TRITON_INTERPRET="0")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_triton_kernels_equal_their_references_on_the_gpu(name, tmp_path):
    run_cases(name, tmp_path, TRITON_INTERPRET="0", CADIFF_KERNELS="triton")
