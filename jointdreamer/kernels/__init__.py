"""Compiled paths. All of them are optional.

JOINTDREAMER_KERNELS=off, or an installation without Numba, turns them off: what is `auto` then takes plain PyTorch, the
loops that only draw meshes and toys run as plain Python, and nothing else here is imported.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def enabled() -> bool:
    """Whether `auto` may choose a compiled path."""
    wanted = os.environ.get("JOINTDREAMER_KERNELS", "on").strip().lower() not in ("off", "0", "false", "no")
    return wanted and find_spec("numba") is not None


def compiled_loop(function: Callable) -> Any:
    """Decorator for loops over single numbers: compiled by Numba, or plain Python where compiled paths are off."""
    if not enabled():
        return function
    from jointdreamer.kernels.compiled import cached_njit

    return cached_njit()(function)
