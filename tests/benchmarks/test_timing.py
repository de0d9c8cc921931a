"""A clock that the test turns."""

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Stopwatch, paired_ratio, race


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setitem(timing.CLOCKS, "wall", made)
    return made


def test_a_section_does_not_count_what_lies_inside_it(clock):
    watch = Stopwatch()
    clock.now += 1
    with watch.section("render"):
        clock.now += 2
        with watch.section("encoding"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    whole, own = watch.lap()
    assert whole == 31 and own == {("render",): 10, ("render", "encoding"): 4}


def test_laps_start_anew_and_cut_an_open_section(clock):
    watch = Stopwatch()
    with watch.section("a"):
        clock.now += 1
        assert watch.lap() == (1, {("a",): 1})
        clock.now += 2
    assert watch.lap() == (2, {("a",): 2})
    assert watch.lap() == (0, {})


def test_a_section_inside_its_own_name_is_the_same_section(clock):
    watch = Stopwatch()
    with watch.section("a"), watch.section("a"):
        clock.now += 1
        with watch.section("b"):
            clock.now += 2
    assert watch.lap()[1] == {("a",): 1, ("a", "b"): 2}


def test_hooks_open_and_close_and_may_come_twice_or_never(clock):
    watch = Stopwatch()
    with watch.section("backward"):
        watch.enter("VAE")
        clock.now += 1
        watch.leave("VAE")
        watch.leave("VAE")
        clock.now += 2
        watch.enter("VAE")  # never left
        clock.now += 4
    clock.now += 8
    whole, own = watch.lap()
    assert whole == 15 and own == {("backward",): 2, ("backward", "VAE"): 5}
    assert watch.path == ()


def test_an_error_closes_its_sections(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.section("a"), watch.section("b"):
        clock.now += 1
        raise KeyError
    assert watch.path == () and watch.lap()[1] == {("a",): 0, ("a", "b"): 1}


def test_a_timed_function_is_the_function(clock):
    def double(x):
        """Twice x."""
        clock.now += 3
        return 2 * x

    watch = Stopwatch()
    timed = watch.timed("double", double)
    assert timed(4) == 8 and timed.__doc__ == "Twice x."
    assert watch.lap()[1] == {("double",): 3}


def test_competitors_take_turns_and_only_the_work_is_timed(clock):
    order = []

    def competitor(name, seconds):
        def prepare():
            clock.now += 100

            def work():
                order.append(name)
                clock.now += seconds

            return work

        return prepare

    times = race({"slow": competitor("slow", 6), "fast": competitor("fast", 2)}, repeats=3)
    assert times == {"slow": [6] * 3, "fast": [2] * 3}
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]  # the first round does not count
    assert paired_ratio(times["slow"], times["fast"]) == 3


def test_a_matmul_of_known_size_gives_a_rate(clock, monkeypatch):
    from benchmarks import machine

    monkeypatch.setattr(machine, "seconds_of", lambda work, *_: [(work(), 0.5)[1], 0.25])
    assert machine.matmul_rate("cpu", torch.float32, size=10) == 2 * 10**3 / 0.25
    assert machine.copy_bandwidth("cpu", megabytes=1) == 2 * 2**20 / 0.25
