"""Compiled paths. Each has a plain PyTorch twin elsewhere, and all of them are optional.

JOINTDREAMER_KERNELS=off turns them off: what is `auto` then takes plain PyTorch, and nothing here is imported.
"""

import os


def enabled() -> bool:
    """Whether `auto` may choose a compiled path."""
    return os.environ.get("JOINTDREAMER_KERNELS", "on").strip().lower() not in ("off", "0", "false", "no")
