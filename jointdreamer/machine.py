"""What the machine has: memory held by this process, still free, and the most so far; what others use of its cores."""

import os
import sys
from collections.abc import Collection
from math import inf
from pathlib import Path

import torch


def held_bytes(device: torch.device) -> float:
    """What this process has now: its tensors on a GPU, all of its resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = _read("/proc/self/statm").split()
    if len(pages) > 1:
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_gb() * 1e9  # no /proc: the most so far, which is no less


def free_bytes(device: torch.device) -> float:
    """What this process may still take; infinity where nobody says.

    On a CPU that is the kernel's MemAvailable, or what a container's limit leaves if that is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return inf
    free = inf
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    most, used = (_read(group / f"memory.{name}").strip() for name in ("max", "current"))
    if most.isdigit() and used.isdigit():
        cache = [line.split()[1] for line in _read(group / "memory.stat").splitlines() if line.startswith("inactive_f")]
        free = min(free, int(most) - int(used) + sum(map(int, cache)))  # what files left there is given up at need
    return min(free, address_space_left())


def address_space_left() -> float:
    """What `ulimit -v` leaves to this process; infinity without such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return inf
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return inf
    return max(0, limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def others_seconds(cores: Collection[int]) -> float | None:
    """Seconds, since some moment and over these cores, in which others than this process had one of them.

    None where the kernel does not say (no /proc).
    """
    own = os.times()
    busy, names = 0, {f"cpu{core}" for core in cores}
    for line in _read("/proc/stat").splitlines():
        name, *ticks = line.split()
        if name in names and len(ticks) >= 7:
            names.remove(name)
            user, nice, system, _, _, irq, soft_irq = map(int, ticks[:7])
            busy += user + nice + system + irq + soft_irq
    return None if names else busy / os.sysconf("SC_CLK_TCK") - own.user - own.system


def peak_memory_gb() -> float:
    """The most memory used so far, GB (1e9 bytes): of the GPU where there is one, else resident of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
