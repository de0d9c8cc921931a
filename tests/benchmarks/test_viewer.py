from types import SimpleNamespace

import pytest

from benchmarks import viewer
from benchmarks.viewer import WARM, Alternating, slow_down


def test_the_slow_down_is_that_of_the_blocks_that_are_on():
    quiet, drift = [1.1, 1.0, 1.0, 1.1] * 3, [1.0 + 0.01 * i for i in range(12)]
    assert slow_down(quiet) == pytest.approx((0.1, 0.0))
    assert slow_down([a * b for a, b in zip(quiet, drift, strict=True)])[0] == pytest.approx(0.1, abs=2e-3)


def test_each_step_is_counted_in_the_block_that_had_or_had_not_a_viewer(monkeypatch):
    """A step takes 1 second, with a viewer 1.5."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(viewer.time, "perf_counter", lambda: clock.now)
    shown = Alternating(SimpleNamespace(watched=True, show=lambda: None), block=5)
    for _ in range(WARM + 1 + 8 * 5):
        clock.now += 1.0
        if shown.watched:
            clock.now += 0.5
    assert shown.blocks == [7.5, 5, 5, 7.5] * 2
    assert slow_down(shown.blocks)[0] == pytest.approx(0.5)
