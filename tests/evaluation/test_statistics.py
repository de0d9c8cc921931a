import pytest

from jointdreamer.evaluation.statistics import mean, rate, wilson


@pytest.mark.parametrize(
    ("yes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_bounds_are_the_published_ones(yes, n, low, high):
    assert wilson(yes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - yes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_rate_is_in_percent_and_nothing_has_none():
    found = rate([True] * 15 + [False] * 133)
    assert found is not None and found.n == 148
    assert (found.mean, found.low, found.high) == pytest.approx((1500 / 148, 6.24, 16.05), abs=5e-3)
    assert rate([]) is None


def test_a_mean_has_student_s_interval():
    found = mean([1.0, 2.0, 3.0, 4.0, 5.0])  # t(4) = 2.776445 at 0.975; s / sqrt(n) = sqrt(0.5)
    assert found is not None and found.n == 5
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - 1.963243, 3 + 1.963243), abs=1e-6)
    wider = mean([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.99)  # t(4) = 4.604095 at 0.995
    assert wider is not None and wider.high == pytest.approx(3 + 4.604095 * 0.5**0.5, abs=1e-6)


def test_bounds_stay_where_the_measure_can_be():
    found = mean([100.0, 100.0, 10.0], low=0, high=100)
    assert found is not None and (found.mean, found.low, found.high) == (70.0, 0, 100)


def test_one_run_has_a_mean_and_no_spread():
    found = mean([4.0])
    assert found is not None and found.as_dict() == {"mean": 4.0, "low": None, "high": None, "n": 1}
    assert mean([]) is None
