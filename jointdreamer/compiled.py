"""Numba kernels on the CPU: compiled once and kept on disk, and run on as many threads as torch uses."""

from collections.abc import Callable
from typing import Any

import numba
import torch


def cached_njit(**options: Any) -> Callable[[Callable], Any]:
    """numba.njit with these options, kept on disk where Numba finds a folder that it may write to."""

    def compiled(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function": a read-only install, and no writable home or NUMBA_CACHE_DIR
            return numba.njit(**options)(function)

    return compiled


def use_torch_threads() -> None:
    """Let the next kernel take as many threads as torch, so that OMP_NUM_THREADS and set_num_threads hold for both."""
    n_threads = torch.get_num_threads()
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != n_threads:  # Numba, starting its OpenMP threads, resets the count torch uses too
        torch.set_num_threads(n_threads)
