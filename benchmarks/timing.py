"""Two ways to take the time: a race between competitors, and a stopwatch that knows what lies inside of what."""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Prepare = Callable[[], Callable[[], object]]


def synchronize(device: str) -> None:
    """Wait for what the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def race(
    competitors: Mapping[str, Prepare], repeats: int, device: str = "cpu", clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each competitor in each round; they take turns, so that what disturbs the machine hits all alike.

    competitors: name -> a function that makes ready, untimed, and returns what is timed. The order rotates from round
    to round. A first round, in which things are compiled and caches filled, does not count.
    """
    now, names = CLOCKS[clock], list(competitors)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                work = competitors[name]()
                synchronize(device)
                start = now()
                work()
                synchronize(device)
                if turn:
                    seconds[name].append(now() - start)
                del work
    finally:
        gc.enable()
    return seconds


def seconds_of(work: Callable[[], object], repeats: int, device: str = "cpu", clock: str = "wall") -> list[float]:
    """Seconds of each of several calls."""
    return race({"it": lambda: work}, repeats, device, clock)["it"]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and best, in ms."""
    return {"median_ms": 1e3 * statistics.median(seconds), "best_ms": 1e3 * min(seconds)}


def paired_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """How many times longer `one` takes: the median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


class Stopwatch:
    """Time by section; a section's own time is what no section inside it took.

        with watch.section("render"):
            ...
            with watch.section("encoding"):     # counted as ("render", "encoding"), not as ("render",)
                ...
        watch.lap()                             # {("render",): s, ("render", "encoding"): s}, and starts anew

    A section inside one of the same name is the same section. `synchronized`: wait for the device at every border.
    """

    def __init__(self, device: str = "cpu", clock: str = "wall"):
        self.device = device
        self.synchronized = True
        self.own: dict[tuple[str, ...], float] = {}
        self._now = CLOCKS[clock]
        self._stack: list[str] = []
        self._mark = self._lap_start = self._now()

    @property
    def path(self) -> tuple[str, ...]:
        """The sections that are open, outermost first, each name once in a row."""
        return tuple(name for i, name in enumerate(self._stack) if i == 0 or name != self._stack[i - 1])

    def _charge(self) -> None:
        """Give the time since the last border to the section that is open."""
        if self.synchronized:
            synchronize(self.device)
        now = self._now()
        if self._stack:
            self.own[self.path] = self.own.get(self.path, 0.0) + now - self._mark
        self._mark = now

    def enter(self, name: str) -> None:
        self._charge()
        self._stack.append(name)

    def leave(self, name: str) -> None:
        """End the innermost section if it is this one; a hook may come late or twice."""
        if self._stack and self._stack[-1] == name:
            self._charge()
            self._stack.pop()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.enter(name)
        depth = len(self._stack)
        try:
            yield
        finally:
            self._charge()
            del self._stack[depth - 1 :]  # with what a hook inside opened and never closed

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as a section; left alone while torch.compile traces it."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            with self.section(name):
                return function(*args, **kwargs)

        return run

    def lap(self, wait: bool = True) -> tuple[float, dict[tuple[str, ...], float]]:
        """Seconds since the last lap, and each section's own seconds in it; an open section goes on in the next.

        wait: for the device; without, only the sum of many laps means something there.
        """
        if wait:
            synchronize(self.device)
        self._charge()
        whole, self._lap_start = self._mark - self._lap_start, self._mark
        own, self.own = self.own, {}
        return whole, own
