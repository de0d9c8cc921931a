"""Series whose growth is known."""

import pytest

from benchmarks.fits import exponent, line


def test_a_line_is_found_exactly():
    x = [1, 2, 4, 8]
    fit = line(x, [3 * v + 5 for v in x])
    assert fit.slope == pytest.approx(3) and fit.intercept == pytest.approx(5)
    assert fit.r2 == pytest.approx(1) and fit.worst == pytest.approx(0, abs=1e-9)
    assert fit.linear()


def test_a_square_is_not_called_a_line():
    x = [1, 2, 4, 8, 16]
    assert not line(x, [v**2 for v in x]).linear()


def test_a_point_that_is_off_is_not_hidden_by_larger_ones():
    fit = line([1, 10, 100, 1000], [1, 20, 100, 1000])
    assert fit.r2 > 0.98 and not fit.linear()


def test_a_constant_is_not_called_linear_growth():
    assert not line([1, 2, 4, 8], [7, 7, 7, 7]).linear()


@pytest.mark.parametrize("power", (0.5, 1.0, 2.0))
def test_a_power_is_found_exactly(power):
    x = [1, 3, 9, 20]
    assert exponent(x, [4 * v**power for v in x]) == pytest.approx(power)


def test_too_few_points_or_none_above_zero_are_refused():
    with pytest.raises(ValueError, match="three points"):
        line([1, 2], [1, 2])
    with pytest.raises(ValueError, match="above 0"):
        exponent([0, 1], [1, 2])
