"""Frozen networks on several threads of a CPU: each takes some of the images through the whole network.

torch divides every operation among its threads, waits for the last of them and does what lies between on one. A small
network's operations take 50 microseconds each, its normalisation is a kernel of one thread, and where another process
wants a core as well, every wait is a wait for that process. Shares wait for each other once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jointdreamer.compiled import pool


def in_threads(function: Callable[..., Any], shares: Sequence[tuple[Any, ...]]) -> list[Any]:
    """[function(*share) for share in shares], a thread each, within which torch has one thread; grad mode as here."""
    threads, graph, inference = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work(share: tuple[Any, ...]) -> Any:
        torch.set_num_threads(1)  # of this thread; what others may read of it is put right below
        with torch.inference_mode(inference), torch.set_grad_enabled(graph):
            return function(*share)

    try:
        return list(pool(len(shares)).map(work, shares))
    finally:
        torch.set_num_threads(threads)
