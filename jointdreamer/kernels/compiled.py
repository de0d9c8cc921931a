"""Numba kernels on the CPU: compiled once and kept on disk, and run on as many threads as torch uses.

A kernel does a share of the work, `kernel(first, last, *arguments)` for the items first to last - 1 of a range, and
lets go of the interpreter meanwhile; the shares go to torch's own threads. Numba's parallel loops compile for three
times as long, which a user waits for at the first step, and abort the process where two threads call them at once.
"""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable
from threading import Thread, main_thread
from typing import Any

import numba
import torch
from numba.core.caching import FunctionCache

from jointdreamer.kernels.threads import on_threads

log = logging.getLogger(__name__)


def cached_njit(**options: Any) -> Callable[[Callable], Any]:
    """numba.njit with these options, kept on disk where Numba finds a folder that it may write to."""

    def compiled(function: Callable) -> Any:
        kernel: Any = numba.njit(nogil=True, **options)(function)
        # "cannot cache function": a read-only install, and no writable home or NUMBA_CACHE_DIR
        with contextlib.suppress(RuntimeError, OSError):
            kernel._cache = KernelCache(function)
        return kernel

    return compiled


class KernelCache(FunctionCache):
    """Numba's cache of one function, without which it is compiled: nothing that is wrong with its files is an error."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (OSError, MemoryError) as error:
            log.info("a compiled kernel in %s cannot be read now (%s)", self.cache_path, error)
        except Exception as error:  # damaged pickles raise nearly anything; a power cut leaves them empty
            log.info("a compiled kernel in %s is damaged (%s): compiling it again", self.cache_path, error)
            with contextlib.suppress(OSError):
                self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk; an index that cannot be read
            log.info("a compiled kernel was not kept in %s (%s)", self.cache_path, error)


def in_shares(kernel: Any, n: int, *arguments: Any, per_thread: int = 1) -> None:
    """kernel(first, last, *arguments) for shares that make up range(n), on as many threads as torch uses.

    per_thread: shares for each thread; more than one where they differ in work. A thread that is done takes the next.
    """
    threads = torch.get_num_threads()
    shares = min(threads * per_thread, n)
    if threads == 1 or shares < 2:
        kernel(0, n, *arguments)
        return
    borders = [n * i // shares for i in range(shares + 1)]
    begun, done, raised = itertools.count(), [], []

    def work(_: Any = None) -> None:
        try:
            while not raised and (i := next(begun)) < shares:
                kernel(borders[i], borders[i + 1], *arguments)
                done.append(i)
        except BaseException as error:  # OpenMP would print it and go on
            raised.append(error)

    on_threads(work, min(threads, shares))
    if raised:
        raise raised[0]
    if len(done) < shares:  # Ctrl-C in the moment before `try`, where nobody can catch it
        raise KeyboardInterrupt


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
