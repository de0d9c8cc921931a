"""Plain C loops, compiled at run time by `cc`: what the CPU kernels are measured against."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jointdreamer.scenes.nerf.encoding import HashEncoding

SOURCE = Path(__file__).with_name("hash_grid.c")
FLAGS = ("-O3", "-march=native", "-fopenmp")  # Numba compiles for this processor too


class CLoop(NamedTuple):
    """float32, contiguous, on the CPU; on torch.get_num_threads() threads."""

    forward: Callable[[HashEncoding, Tensor, Tensor], None]  # grid, x (N, 3), out: features (N, L * F)
    backward: Callable[[HashEncoding, Tensor, Tensor, Tensor], None]  # grid, x, grad (N, L * F), out: like grid.params


def library(source: str, flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL | None:
    """Compile C into a library that is loaded; None where there is no `cc` with OpenMP."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:  # a library that is loaded needs its file no more
        file, path = Path(folder) / "loop.c", Path(folder) / "loop.so"
        file.write_text(source, encoding="utf-8")
        command = [compiler, *flags, "-shared", "-fPIC", str(file), "-o", str(path), "-lm"]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        return ctypes.CDLL(str(path))


def use_torch_threads(loaded: ctypes.CDLL) -> None:
    set_num_threads = getattr(loaded, "omp_set_num_threads", None)  # of libgomp, which the library brings
    if set_num_threads is not None:
        set_num_threads(torch.get_num_threads())


def load(n_features: int = 2, flags: tuple[str, ...] = FLAGS) -> CLoop | None:
    """Compile the loop for tables of n_features; None where there is no `cc` with OpenMP."""
    loaded = library(SOURCE.read_text(encoding="utf-8"), (*flags, f"-DFEATURES={n_features}"))
    if loaded is None:
        return None

    def call(name: str, grid: HashEncoding, x: Tensor, source: Tensor, out: Tensor) -> None:
        assert grid.n_features == n_features and all(t.is_contiguous() for t in (x, source, out))
        use_torch_threads(loaded)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, source)]
        pointers += [ctypes.c_void_p(a.ctypes.data) for a in (grid.offsets, grid.scales, grid.resolutions)]
        sizes = ctypes.c_int64(len(x)), ctypes.c_int64(grid.n_levels)
        loaded[f"hash_grid_{name}"](*pointers, *sizes, ctypes.c_void_p(out.data_ptr()))

    return CLoop(
        forward=lambda grid, x, out: call("forward", grid, x, grid.params.detach(), out),
        backward=lambda grid, x, grad, out: call("backward", grid, x, grad, out),
    )
