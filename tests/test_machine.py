"""The memory that the machine has, as the kernel, a container or a limit says."""

from pathlib import Path

import pytest
import torch

from jointdreamer import machine


def test_an_address_space_that_is_limited_is_a_limit(monkeypatch):
    left = machine.address_space_left()
    assert left > 0
    limits = {"RLIMIT_AS": 10**12}
    monkeypatch.setattr("resource.getrlimit", lambda which: (limits["RLIMIT_AS"], -1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert machine.address_space_left() == pytest.approx(10**12 - 4096 * pages, rel=0.01)
    limits["RLIMIT_AS"] = 4096
    assert machine.free_bytes(torch.device("cpu")) == 0


def test_free_memory_is_what_the_kernel_or_a_container_leaves(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2000 kB\n"}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    cpu = torch.device("cpu")
    assert machine.free_bytes(cpu) == 2000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    files["/sys/fs/cgroup/memory.current"] = "900000\n"
    assert machine.free_bytes(cpu) == 2000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    files["/sys/fs/cgroup/memory.stat"] = "anon 5\ninactive_file 300000\n"
    assert machine.free_bytes(cpu) == 400000


def test_nobody_says_what_another_device_has():
    assert machine.free_bytes(torch.device("meta")) == float("inf")


def test_the_most_memory_so_far_is_that_of_a_process():
    assert 0.01 < machine.peak_memory_gb() < 1000
