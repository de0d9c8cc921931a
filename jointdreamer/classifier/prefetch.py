"""Batches computed by threads before they are asked for, in order."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def prefetch(make: Callable[[K], T], keys: Iterable[K], workers: int = 1, ahead: int = 2) -> Generator[T, None, None]:
    """make(key) for each key, in order, computed up to `ahead` keys before they are asked for, by threads."""
    waiting = iter(keys)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        queue = [pool.submit(make, key) for key in islice(waiting, max(1, ahead))]
        try:
            while queue:
                done = queue.pop(0).result()
                queue += [pool.submit(make, key) for key in islice(waiting, 1)]
                yield done
        finally:
            pool.shutdown(cancel_futures=True)
