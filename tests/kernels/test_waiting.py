"""When torch's threads spin, and when they sleep: it depends on what others do, results do not."""

import os
import threading
import time

import pytest
import torch

from jointdreamer import machine
from jointdreamer.kernels import waiting
from jointdreamer.kernels.threads import openmp_parallel

needs_openmp = pytest.mark.skipif(openmp_parallel() is None, reason="torch's OpenMP library has no GOMP_parallel here")


@pytest.fixture
def others(monkeypatch):
    """Two threads on two cores, of which others use as much as `others.share` says; the teams that were made."""

    class Others:
        def __init__(self):
            self.share, self.teams = 0.0, []

        def made(self, threads):
            self.teams.append([threads, "there"])
            return self

        def end(self):
            self.teams[-1][1] = "gone"

        def until(self, wanted):
            for _ in range(500):
                if self.teams == wanted:
                    return
                time.sleep(0.01)
            pytest.fail(f"teams {self.teams}, wanted {wanted}")

    found = Others()
    began = time.monotonic()
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(waiting, "others_seconds", lambda _: (time.monotonic() - began) * found.share)
    monkeypatch.setattr(waiting, "SleepingTeam", found.made)
    return found


@needs_openmp
def test_threads_sleep_while_others_need_a_core(others):
    with waiting.spinning_while_alone(0.02):
        time.sleep(0.1)
        assert others.teams == []
        others.share = 1000.0  # the sum of all so far jumps up, and is more each time
        others.until([[2, "there"]])
        others.share = 0.0
        others.until([[2, "gone"]])
        others.share = 1000.0
        others.until([[2, "gone"], [2, "there"]])
    assert others.teams[-1] == [2, "gone"]


@needs_openmp
def test_cores_that_others_leave_are_enough(others, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    others.share = 5.0  # and two of ours are seven of eight
    with waiting.spinning_while_alone(0.02):
        time.sleep(0.2)
        assert others.teams == []
        others.share = 1000.0
        others.until([[8, "there"]])  # with our two: more than eight


@pytest.mark.parametrize("name", sorted(waiting.CHOICES))
def test_a_user_s_own_choice_stays(others, monkeypatch, name):
    monkeypatch.setenv(name, "9")
    before = threading.active_count()
    with waiting.spinning_while_alone(0.02):
        assert threading.active_count() == before


@needs_openmp
def test_nothing_is_left_behind_and_a_second_team_computes_nothing():
    """torch's own results with a team beside it are the same, bit for bit, and its thread ends."""
    torch.set_num_threads(2)
    try:
        x, before = torch.randn(300, 300), threading.active_count()
        wanted = x @ x
        team = waiting.SleepingTeam(2)
        assert torch.equal(x @ x, wanted) and threading.active_count() == before + 1
        team.end()
        assert torch.equal(x @ x, wanted) and threading.active_count() == before
    finally:
        torch.set_num_threads(1)


def test_where_the_kernel_does_not_say_nobody_watches(others, monkeypatch):
    monkeypatch.setattr(waiting, "others_seconds", lambda _: None)
    with waiting.spinning_while_alone(0.01):
        time.sleep(0.05)
    assert others.teams == []


def test_what_others_used_is_all_but_our_own(monkeypatch):
    """Ticks of user, nice, system, idle, iowait, irq, softirq, steal, of the cores that count."""
    tick = os.sysconf("SC_CLK_TCK")
    stat = f"""cpu  {9 * tick} 0 0 0 0 0 0 0 0 0
cpu0 {3 * tick} {2 * tick} {tick} {70 * tick} {80 * tick} {tick} {tick} {90 * tick} 0 0
cpu1 {20 * tick} 0 0 0 0 0 0 0 0 0
cpu10 {4 * tick} 0 0 0 0 0 0 0 0 0
intr 5
"""
    monkeypatch.setattr(machine, "_read", lambda path: stat)
    monkeypatch.setattr(os, "times", lambda: os.times_result((1.5, 0.25, 7, 7, 7)))
    assert machine.others_seconds([0]) == 8 - 1.75
    assert machine.others_seconds([0, 10]) == 12 - 1.75
    assert machine.others_seconds([0, 2]) is None
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert machine.others_seconds([0]) is None
