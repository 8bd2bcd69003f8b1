"""What an arm's raw sample amounts to. Anything that is no sound number counts as no data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from kvquant.core.evidence import ArmSample, Histogram


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that clients sent to an arm and that have ended.

    Attributes:
        attempted: Answered, timed out or broken off.
        failed: Of these, answered with 5xx, timed out or broken off.
    """

    attempted: float
    failed: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of an arm's ended requests; those without an answer are infinitely slow."""

    answered: Histogram
    unanswered: float

    @property
    def total(self) -> float:
        """Number of requests, answered or not."""
        return self.answered.total + self.unanswered

    def slower_than(self, bound: float) -> float | None:
        """Return how many requests took longer than a bound; None when no bucket ends there."""
        if bound not in self.answered.bounds:
            return None
        return max(0.0, self.total - self.answered.counts[self.answered.bounds.index(bound)])

    def edge(self, quantile: float) -> float:
        """Return the smallest finite bucket bound that the quantile does not exceed.

        A bound instead of an interpolated quantile, because the number of requests beyond a bound
        is a count, and not a guess about what happened inside a bucket. When the quantile lies
        beyond every finite bound, the largest of them.
        """
        finite = [bound for bound in self.answered.bounds if math.isfinite(bound)]
        reached = quantile * self.total
        for bound, count in zip(finite, self.answered.counts, strict=False):
            if count >= reached:
                return bound
        return finite[-1]

    def quantile(self, quantile: float) -> float | None:
        """Return a quantile in seconds, interpolated in its bucket; None without requests.

        For people. Beyond the largest finite bound it is that bound, as in Prometheus.
        """
        if self.total <= 0:
            return None
        rank, below, lower = quantile * self.total, 0.0, 0.0
        for bound, count in zip(self.answered.bounds, self.answered.counts, strict=True):
            if math.isinf(bound):
                break
            if count >= rank and count > below:
                return lower + (bound - lower) * (rank - below) / (count - below)
            below, lower = count, bound
        return lower


def count(value: float | None) -> float | None:
    """Return a count, or None when it is missing, NaN, infinite or negative."""
    if value is None or not math.isfinite(value) or value < 0:
        return None
    return value


def requests(sample: ArmSample) -> Requests | None:
    """Return the ended requests at the router; None when any part of them is unknown."""
    completed, errors = count(sample.completed), count(sample.errors_5xx)
    timeouts, resets = count(sample.timeouts), count(sample.resets)
    if completed is None or errors is None or timeouts is None or resets is None:
        return None
    # Two series of one scrape may be a request apart; a share must not exceed one for that.
    completed = max(completed, errors)
    return Requests(completed + timeouts + resets, errors + timeouts + resets)


def latency(sample: ArmSample) -> Latency | None:
    """Return the latency of the ended requests; None when any part of it is unknown."""
    timeouts, resets = count(sample.timeouts), count(sample.resets)
    if timeouts is None or resets is None or not _is_sound(sample.latency):
        return None
    assert sample.latency is not None  # noqa: S101 - checked a line above
    return Latency(sample.latency, timeouts + resets)


def _is_sound(histogram: Histogram | None) -> bool:
    if histogram is None or not histogram.bounds:
        return False
    bounds, counts = histogram.bounds, histogram.counts
    return (
        len(bounds) == len(counts) >= 2
        and bounds[0] >= 0
        and math.isinf(bounds[-1])
        and all(a < b for a, b in pairwise(bounds))  # also false for NaN
        and all(a <= b for a, b in pairwise(counts))
        and all(count(c) is not None for c in counts)
    )
