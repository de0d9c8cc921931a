"""Threads that wait for each other spin only while nobody else needs the cores.

An operation that OpenMP shares out ends when its last thread does. Spinning, the others go on at once; asleep, they
must be woken, which takes as long as a small network's operation itself. But where another process wants the core, a
thread that spins takes it from the very one that all wait for, and a run becomes several times as slow. OpenMP reads
its policy once, at the start, when nobody knows who will come. What it looks at all the time is whether it has more
threads than there are cores: then they hardly spin. So a second team of threads, which only sleeps, is the switch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

import torch

from jointdreamer.kernels.threads import on_threads, openmp_parallel
from jointdreamer.machine import others_seconds

CHOICES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # by which a user says it
CROWDED = 0.25  # cores that others may take of ours before we give way


@contextmanager
def spinning_while_alone(interval: float = 1.0) -> Iterator[None]:
    """Look every `interval` seconds whether others use the cores that this thread's operations run on.

    Results do not depend on it. Nothing happens with one thread, where the user has chosen how threads wait (CHOICES),
    or where OpenMP is not GNU's or the kernel does not say what others use.
    """
    threads = torch.get_num_threads()
    if threads == 1 or CHOICES & os.environ.keys() or openmp_parallel() is None:
        yield
        return
    done = Event()
    watch = Thread(target=_watch, args=(threads, done, interval), name="waiting", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _watch(threads: int, done: Event, interval: float) -> None:
    cores = os.sched_getaffinity(0)
    team, before, then = None, others_seconds(cores), monotonic()
    while before is not None and not done.wait(interval):
        others, now = others_seconds(cores), monotonic()
        if others is None:
            break
        crowded = threads + (others - before) / (now - then) > len(cores) + CROWDED
        before, then = others, now
        if crowded and team is None:
            team = SleepingTeam(max(len(cores) - threads, 0) + 2)  # with ours more than there are cores
        elif team is not None and not crowded:
            team.end()
            team = None
    if team is not None:
        team.end()


class SleepingTeam:
    """A team of OpenMP's threads beside that of whoever calls: it does nothing until its `end`."""

    def __init__(self, threads: int):
        self._end = Event()
        self._leader = Thread(target=self._lead, args=(threads,), name="sleeping team", daemon=True)
        self._leader.start()

    def _lead(self, threads: int) -> None:
        on_threads(lambda _: None, threads)  # from now on its threads wait for more
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._leader.join()
