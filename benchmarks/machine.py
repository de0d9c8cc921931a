"""The machine: what it is, and how fast it multiplies matrices and copies memory."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import slug
from benchmarks.timing import seconds_of
from jointdreamer.runs.environment import environment


def describe(device: str) -> dict[str, Any]:
    """CPU model, cores, threads, GPU, versions, commit, load: what a number must be read with."""
    known = environment()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "memory_gb": _memory_gb(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cc": _first_line("cc", "--version"),
        **{key: known[key] for key in ("python", "platform", "torch", "cuda", "packages", "commit", "dirty")},
    }


def file_name(machine: dict[str, Any], device: str) -> str:
    """What a result of this machine is called, e.g. intel-xeon-processor-2-cores."""
    if device == "cuda":
        return slug(machine["gpu"])
    marks = re.sub(r"\((r|tm|c)\)|@.*", "", machine["cpu"], flags=re.IGNORECASE)
    return f"{slug(marks)}-{machine['cores']}-cores"


def cpu_model() -> str:
    """The processor as it names itself; its architecture where it does not."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return (names or [platform.processor() or platform.machine()])[0].strip()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.splitlines() or [None])[0]


def matmul_rate(
    device: str, dtype: torch.dtype, size: int | None = None, repeats: int = 7, clock: str = "wall"
) -> float:
    """FLOP/s of a square matrix product, the best of several: what "the machine's matmul rate" means here."""
    size = size or (8192 if device == "cuda" else 1536)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, repeats, device, clock))


def copy_bandwidth(device: str, megabytes: int | None = None, repeats: int = 7, clock: str = "wall") -> float:
    """Bytes/s read plus written by a copy far larger than the caches, the best of several."""
    megabytes = megabytes or (1024 if device == "cuda" else 128)
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source), repeats, device, clock))


def rates(device: str, repeats: int = 7, clock: str = "wall", quick: bool = False) -> dict[str, Any]:
    """Matmul FLOP/s by dtype and copy bytes/s; float16 only on a GPU, where the networks run in it."""
    dtypes = ["float32", "bfloat16", *(["float16"] if device == "cuda" else [])]
    size, megabytes = (128, 1) if quick else (None, None)
    matmul = {name: matmul_rate(device, getattr(torch, name), size, repeats, clock) for name in dtypes}
    copy = copy_bandwidth(device, megabytes, repeats, clock)
    if device == "cuda":
        torch.cuda.empty_cache()  # for the processes that are measured next
    return {"matmul": matmul, "copy": copy}
