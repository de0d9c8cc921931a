"""Mean and confidence interval over runs.

A run is the unit: views of one object are no independent samples. Rates of yes and no take Wilson's score interval,
everything else Student's t over the runs; both two-sided. Runs that share a prompt are counted as independent.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

METHOD = "Wilson score interval (rates), Student's t over runs (means)"


@dataclass(frozen=True)
class Interval:
    """A mean of n runs with its bounds; the bounds are None where one run has no spread to show."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a rate, each in [0, 1], after `successes` of `n` (Wilson 1927): they hold at 0 and at n as well."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def rate(answers: Sequence[bool], confidence: float = 0.95) -> Interval | None:
    """Percent of yes with Wilson's interval; None without an answer."""
    n, yes = len(answers), sum(map(bool, answers))
    if not n:
        return None
    low, high = wilson(yes, n, confidence)
    return Interval(100 * yes / n, 100 * low, 100 * high, n)


def mean(
    values: Sequence[float], confidence: float = 0.95, low: float = -math.inf, high: float = math.inf
) -> Interval | None:
    """The mean with Student's t interval, cut to [low, high] (what the measure can be); None without a value."""
    from scipy.stats import sem, t

    n = len(values)
    if not n:
        return None
    centre = math.fsum(values) / n
    if n == 1:
        return Interval(centre, None, None, 1)
    half = float(t.ppf(0.5 + confidence / 2, n - 1) * sem(values))
    return Interval(centre, max(low, centre - half), min(high, centre + half), n)
