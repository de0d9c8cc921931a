"""torch's own threads, those of the OpenMP library that it brings, for other work than torch's.

Where they spin while they wait, a thread of another pool that is woken beside them gets no core until they sleep.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def on_threads(work: Callable[[Any], None], threads: int) -> None:
    """Call work(None), which goes on until nothing is left to do, on this thread and on others beside it."""
    openmp = openmp_parallel()
    if openmp is not None:
        openmp(BODY(work), None, threads, 0)
        return
    others = [pool(threads - 1).submit(work, None) for _ in range(threads - 1)]
    work(None)
    for other in others:
        if not other.cancel():  # cancelled: it has not begun, and nothing is left
            other.result()


BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def openmp_parallel() -> Any:
    """What a compiler calls for `#pragma omp parallel`, in torch's OpenMP library; None where it has no such function.

    Each thread that calls it has helpers of its own: calls from two at once do not meet.
    """
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes, found.restype = (BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "kernel")
