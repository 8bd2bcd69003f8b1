"""A histogram that counts many equal observations at once and exposes them to Prometheus."""

import math
from bisect import bisect_left
from collections.abc import Sequence as Many
from itertools import accumulate


class Histogram:
    """Counts by upper bound. One call may add many observations: a decode step makes dozens."""

    def __init__(self, bounds: Many[float]) -> None:
        self.bounds = (*bounds, math.inf)
        self._counts = [0] * len(self.bounds)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value as often as given."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return upper bounds as Prometheus writes them, and observations up to each."""
        names = ["+Inf" if math.isinf(bound) else str(float(bound)) for bound in self.bounds]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


REQUEST_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
ITERATION_TOKENS = (1.0, *(float(2**power) for power in range(3, 15)))
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
HTTP_SECONDS = (0.1, 0.5, 1.0)
HTTP_FINE_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5,
    5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip


def lengths(longest: int) -> tuple[float, ...]:
    """Return the 1-2-5 series up to the longest context, as vLLM buckets token counts."""
    series: list[float] = []
    power = 1
    while power <= longest:
        series += [float(m * power) for m in (1, 2, 5) if m * power <= longest]
        power *= 10
    return tuple(series)
