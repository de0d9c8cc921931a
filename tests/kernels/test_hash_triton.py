"""Triton's kernels on a CPU: run by its interpreter, and compiled for GPUs that are not here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason='triton is not installed: pip install -e ".[kernels]"'
)

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from jointdreamer.kernels import hash_triton

def build(kernel, table, along, width, architecture):
    kinds = {"n": "i32", "n_levels": "i32", "levels": "*i64", "table": table}
    constants = {"WIDTH": width, "ALONG": along, "BLOCK": 128}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert len(triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm["cubin"]) > 1000
    print(kernel.__name__, table, along, width, architecture)

for kernel in (hash_triton.gather_kernel, hash_triton.scatter_kernel, hash_triton.position_kernel):
    build(kernel, "*fp32", False, 2, 80)
    build(kernel, "*fp16", True, 8, 90)
"""


def run(*arguments, **variables):
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_encoding.py has run them on the device")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter already")
@pytest.mark.timeout(400)
def test_all_that_holds_of_backends_holds_in_the_interpreter():
    """In a process of its own: Triton decides when it is imported, and anything may have imported it here."""
    said = run("-m", "pytest", "-q", "-x", "-k", "triton", "tests/scenes/nerf/test_encoding.py", TRITON_INTERPRET="1")
    passed = int(said.split(" passed")[0].split()[-1])
    assert passed >= 15, said


@pytest.mark.timeout(400)
def test_the_kernels_compile_for_gpus(tmp_path):
    """To machine code of compute capabilities 8.0 (A100) and 9.0 (H100, H200), with the assembler in Triton's wheel."""
    said = run("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(said.splitlines()) == 6


BIND = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from jointdreamer.kernels import hash_triton

backend, tensor = make_backend(GPUTarget("cuda", 80, 32)), torch.zeros(16)
for kernel in (hash_triton.gather_kernel, hash_triton.scatter_kernel, hash_triton.position_kernel):
    tensors = kernel.arg_names[: kernel.arg_names.index("n")]
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, *_ = bind(*[tensor for _ in tensors], 1, 1, WIDTH=2, ALONG=False, BLOCK=128)
    assert all(bound[name] is tensor for name in tensors), kernel
    print(kernel.__name__)
"""


def test_the_launcher_takes_the_kernels_arguments():
    """What neither the interpreter nor the compiler sees: the function that Triton writes to read the arguments."""
    said = run("-c", BIND, TRITON_INTERPRET="0")
    assert len(said.splitlines()) == 3
