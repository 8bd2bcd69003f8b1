"""Increases of counters over a window, from samples on a grid.

Exact where `increase()` guesses: nothing is extrapolated, restarts are seen, and a counter that
appears is counted from zero if, and only if, its process is known to have begun in the window.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Point = tuple[float, float]
"""Seconds since the epoch, and the value then."""


@dataclass(frozen=True, slots=True)
class Series:
    """One time series on the grid of a range read, oldest point first; gaps are left out."""

    labels: Mapping[str, str]
    points: Sequence[Point]

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.labels.get("__name__", "")


@dataclass(slots=True)
class Process:
    """A scraped process: when it could be seen, and how old it was then.

    Attributes:
        seen: Instants at which any series of it had a sample, in order.
        ages: Seconds since its start, by instant; empty when it does not tell.
    """

    seen: list[float] = field(default_factory=list)
    ages: dict[float, float] = field(default_factory=dict)

    def began_within(self, seconds: float, at: float) -> bool:
        """Tell whether it is known to have begun at most so many seconds before an instant."""
        age = self.ages.get(at)
        return age is not None and age <= seconds


def process_of(series: Sequence[Series], ages: Mapping[float, float]) -> Process:
    """Return the process that exposes these series.

    Args:
        series: All of its series.
        ages: Seconds since its start, by instant.
    """
    return Process(sorted({t for one in series for t, _ in one.points}), dict(ages))


def increase(series: Series, process: Process, since: float, until: float) -> float | None:
    """Return by how much a counter rose in a window.

    Args:
        series: The counter.
        process: The process that exposes it.
        since: Begin of the window in seconds since the epoch.
        until: End of the window.

    Returns:
        None when it has no sample in the window; NaN when it has, and none of them is a number
        that a counter can have.
    """
    raw = within(series.points, since, until)
    if not raw:
        return None
    points = [(t, v) for t, v in raw if math.isfinite(v) and v >= 0]
    if not points:
        return math.nan
    first, value = points[0]
    total = value if _counts_from_zero(first, process, since, until) else 0.0
    for (before, earlier), (after, later) in pairwise(points):
        restarted = later < earlier or process.began_within(after - before, after)
        total += later if restarted else later - earlier
    return total


def within(points: Sequence[Point], since: float, until: float) -> Sequence[Point]:
    """Return the points of a window, both ends included."""
    begin = bisect_left(points, since, key=_instant)
    return points[begin : bisect_right(points, until, key=_instant)]


def _instant(point: Point) -> float:
    return point[0]


def _counts_from_zero(first: float, process: Process, since: float, until: float) -> bool:
    """Tell whether a counter that is first seen at an instant was zero before it in the window.

    So it was when its process was seen without it, as counters of rare things appear with the
    first of them; or when the process itself had not begun. Otherwise it may have counted for
    long while nobody looked, and only what it counts from now on is known.
    """
    index = bisect_left(process.seen, since)
    begin = process.seen[index] if index < len(process.seen) else until
    if begin < first:
        return True
    return process.began_within(first - since, first)
