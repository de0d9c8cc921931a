"""Numba kernels on the CPU: compiled once and kept on disk, and run on as many threads as torch uses.

A kernel does a share of the work, `kernel(first, last, *arguments)` for the items first to last - 1 of a range, and
lets go of the interpreter meanwhile; the shares go to a pool of plain threads. Numba's own parallel loops compile for
three times as long, which a user waits for at the first step, and their threads are not torch's.
"""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread, main_thread
from typing import Any

import numba
import torch


def cached_njit(**options: Any) -> Callable[[Callable], Any]:
    """numba.njit with these options, kept on disk where Numba finds a folder that it may write to."""

    def compiled(function: Callable) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # "cannot cache function": a read-only install, and no writable home or NUMBA_CACHE_DIR
            return numba.njit(nogil=True, **options)(function)

    return compiled


def in_shares(kernel: Any, n: int, *arguments: Any, per_thread: int = 1) -> None:
    """kernel(first, last, *arguments) for shares that make up range(n), on as many threads as torch uses.

    per_thread: shares for each thread; more than one where they differ in work.
    """
    threads = torch.get_num_threads()
    shares = min(threads * per_thread, n)
    if threads == 1 or shares < 2:
        kernel(0, n, *arguments)
        return
    borders = [n * i // shares for i in range(shares + 1)]
    done = pool(threads).map(lambda first, last: kernel(first, last, *arguments), borders[:-1], borders[1:])
    for _ in done:  # raises what a kernel raised
        pass


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "kernel")


def array(n_dimensions: int, dtype: Any = numba.float32) -> Any:
    """Numba's type of a contiguous array, for signatures."""
    return numba.types.Array(dtype, n_dimensions, "C")


def compile_in_background(signatures: Iterable[tuple[Any, tuple[Any, ...]]]) -> Thread:
    """Compile kernels (or read them from the disk) for types of arguments, in a thread beside the start of a run.

    Whoever needs a kernel sooner waits for it in Numba's own lock. A process that ends stops after the kernel in work.
    """

    def work() -> None:
        for kernel, types in signatures:
            if not main_thread().is_alive():
                return
            kernel.compile(types)

    thread = Thread(target=work, name="compile")
    thread.start()
    return thread
