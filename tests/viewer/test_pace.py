import pytest

from jointdreamer.viewer.pace import SHARES, SMALLEST, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pictures_are_as_large_as_the_time_allows():
    pace = Pace(256)
    assert pace.side(1.0) == 2 * SMALLEST  # nothing is known yet
    pace.drew(100, 0.1)  # 1e-5 seconds a pixel
    assert pace.side(0.1) == 96  # a multiple of 8, not above
    assert pace.side(1e-6) == SMALLEST and pace.side(10) == 256


def test_a_slower_machine_gets_smaller_pictures():
    pace = Pace(512)
    pace.drew(100, 0.1)
    before = pace.side(0.2)
    pace.drew(100, 0.3)
    assert pace.side(0.2) < before


@pytest.mark.parametrize("cost", [1e-3, 0.03, 0.4])
@pytest.mark.parametrize("step", [0.01, 0.2])
def test_what_nobody_asked_for_takes_less_than_five_percent(cost, step):
    """A loop of steps after each of which is made what is due: all kinds together stay below 5% of the steps' time."""
    clock = Clock()
    pace = Pace(256, clock=clock)
    steps, browser = 0.0, 0.0
    for _ in range(20_000):
        clock.now += step
        steps += step
        for what in SHARES:
            if pace.due(what):
                clock.now += cost
                browser += cost
                pace.spent(what, cost)
    assert browser - 3 * cost < 0.05 * steps  # the first of each kind comes at once
    assert browser > 0.5 * min(sum(SHARES.values()), len(SHARES) * cost / step) * steps  # and something does come


def test_one_kind_does_not_wait_for_another():
    pace = Pace(256, clock=Clock())
    pace.spent("object", 5)
    assert not pace.due("object") and pace.due("numbers") and pace.due("others")
