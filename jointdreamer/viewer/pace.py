"""How large pictures may be and how often they may come, so that training hardly notices who looks."""

import math
import time
from collections.abc import Callable, Mapping

# Shares of the time for what a browser gets that nobody turns: pictures of the object; numbers and curve; the rest
SHARES = {"object": 0.02, "numbers": 0.005, "others": 0.01}
MOVING, STILL = 0.06, 0.15  # seconds that a picture may take while the camera moves, and once it stands
SMALLEST = 32  # pixels along a side


class Pace:
    """Measures what things take, and says when the next may be made.

    largest: pixels along a side. clock: seconds.
    """

    def __init__(
        self, largest: int, shares: Mapping[str, float] = SHARES, clock: Callable[[], float] = time.perf_counter
    ):
        self.largest, self.shares, self.clock = largest, shares, clock
        self._per_pixel: float | None = None  # seconds
        self._free = dict.fromkeys(shares, -math.inf)  # when what was made so far has cost its share

    def side(self, seconds: float) -> int:
        """Pixels along a side of a picture that takes about so many seconds: a multiple of 8."""
        if self._per_pixel is None:  # nothing is known yet: a small one tells
            return min(self.largest, 2 * SMALLEST)
        side = math.sqrt(seconds / max(self._per_pixel, 1e-12))
        return int(max(min(SMALLEST, self.largest), min(self.largest, side // 8 * 8)))

    def drew(self, side: int, seconds: float) -> None:
        """A picture of side x side pixels took so long."""
        measured = seconds / side**2
        # the first picture compiles; later ones are slower when training has taken the caches
        self._per_pixel = measured if self._per_pixel is None else (self._per_pixel + measured) / 2

    def due(self, what: str) -> bool:
        """Whether something of this kind, of SHARES, may be made that nobody asked for."""
        return self.clock() >= self._free[what]

    def spent(self, what: str, seconds: float) -> None:
        """So long was spent on it: nothing more that nobody asks for until that is its share of the time."""
        self._free[what] = max(self._free[what], self.clock()) + seconds / self.shares[what]
