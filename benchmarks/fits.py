"""How a cost grows: a straight line, or a power."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """y = slope x + intercept; r2 is the share of the variance explained, worst the largest relative residual."""

    slope: float
    intercept: float
    r2: float
    worst: float

    def linear(self) -> bool:
        """Whether the line is good enough to say so: it rises, explains 98%, and no point is off by 20%."""
        return self.slope > 0 and self.r2 >= 0.98 and self.worst <= 0.2


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The straight line through (x, y), least squares of the relative errors: the small ones count as much.

    Raises ValueError for fewer than three points or a y that is not above 0.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if len(xs) < 3 or ys.min() <= 0:
        raise ValueError("a line needs three points or more, all above 0")
    design = np.stack([xs, np.ones_like(xs)], 1)
    (slope, intercept), *_ = np.linalg.lstsq(design / ys[:, None], np.ones_like(ys), rcond=None)
    residual = ys - (slope * xs + intercept)
    spread = float(((ys - ys.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread else 0.0
    return Line(float(slope), float(intercept), r2, float(np.abs(residual / ys).max()))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y = c x^p: the slope of log y over log x. Raises ValueError unless all are above 0, two or more."""
    if len(x) < 2 or min(*x, *y) <= 0:
        raise ValueError("a power law needs two points or more, all above 0")
    slope, _ = np.polyfit([math.log(v) for v in x], [math.log(v) for v in y], 1)
    return float(slope)
