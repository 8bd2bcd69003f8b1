"""Histograms as exporters keep them, and quantiles as PromQL reads them from buckets."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from kvquant.core.analysis.samples import Bins

# Envoy's buckets as the product sets them, in seconds. They are written down once more, because
# the benchmark must not lean on the operator that it judges; a test compares the two.
_ROUTER_MS = (
    *(5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400, 500, 700),
    *(1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_000, 10_000, 15_000, 20_000, 30_000, 40_000),
    *(50_000, 70_000, 100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 600_000),
)
ROUTER = (*(ms / 1000 for ms in _ROUTER_MS), math.inf)
"""Seconds of a request at the router."""

# vLLM 0.25.1's own buckets, as its exposition in the recordings shows them.
REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0, math.inf),
)
"""Seconds of a request, of its wait and of its prefill, at the engine."""
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0, math.inf),
)
"""Seconds to the first token."""
BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, math.inf),
)
"""Seconds between two tokens."""


class Histogram:
    """Counts per bucket. Shares of an observation are allowed: decoding is simulated as a flow."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * len(bounds)
        self.sum = 0.0

    def add(self, value: float, times: float = 1.0) -> None:
        """Observe a value so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def bins(self, *, with_sum: bool = True) -> Bins:
        """Return what a scrape shows."""
        return Bins(self.bounds, tuple(accumulate(self.counts)), self.sum if with_sum else None)


def quantile(q: float, bounds: Sequence[float], cumulative: Sequence[float]) -> float:
    """Return what PromQL's `histogram_quantile` says of cumulative counts: NaN when there are none.

    Linear within a bucket; the highest finite bound for what lies beyond it.
    """
    total = cumulative[-1]
    if not total > 0:
        return math.nan
    rank = q * total
    at = next(i for i, count in enumerate(cumulative) if count >= rank)
    if math.isinf(bounds[at]):
        return bounds[at - 1]
    low, below = (bounds[at - 1], cumulative[at - 1]) if at else (0.0, 0.0)
    return low + (bounds[at] - low) * (rank - below) / (cumulative[at] - below)
