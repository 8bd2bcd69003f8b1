"""How sure one can be of the difference between two answers to each of many prompts. Pure.

Both arms answer the same prompts, so that every interval is of paired differences: what makes a
prompt hard makes it hard for both, and does not widen it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000
"""Of the bootstrap."""
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference, and what it may be in truth."""

    mean: float
    lower: float
    upper: float


class Verdict(StrEnum):
    """What an interval says of a margin."""

    PASS = "Pass"  # noqa: S105 - no password
    """The harm is within the margin."""
    FAIL = "Fail"
    """The harm is beyond the margin."""
    INCONCLUSIVE = "Inconclusive"
    """It may be either: more examples would tell."""


def judge(interval: Interval, margin: float) -> Verdict:
    """Return what an interval of the harm says of a margin."""
    if interval.upper < margin:
        return Verdict.PASS
    return Verdict.FAIL if interval.lower > margin else Verdict.INCONCLUSIVE


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors an interval of this confidence goes to either side."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def share_difference(more: int, less: int, pairs: int, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval of a difference of paired shares.

    It holds its confidence with few pairs and with none that differ, where that of Wald has no
    width: `pairs` that all agree still leave harm of about `z^2 / (pairs + z^2)` possible.

    Args:
        more: Pairs in which only the second answer has it.
        less: Pairs in which only the first one has.
        pairs: All pairs.
        confidence: Of the two-sided interval.
    """
    if not pairs:
        return Interval(0.0, -1.0, 1.0)
    mean = (more - less) / pairs
    z = normal_quantile(confidence)

    def beyond(delta: float) -> bool:
        return abs(_score(more, less, pairs, delta)) > z

    def bound(outer: float) -> float:
        inner = mean
        for _ in range(_BISECTIONS):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if beyond(middle) else (middle, outer)
        return inner

    return Interval(mean, bound(-1.0), bound(1.0))


def _score(more: int, less: int, pairs: int, delta: float) -> float:
    """Return Tango's statistic of the hypothesis that the difference is delta."""
    a = 2 * pairs
    b = -more - less + (2 * pairs - more + less) * delta
    c = -less * delta * (1 - delta)
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    nuisance = (root - b) / (2 * a)
    variance = pairs * (2 * nuisance + delta * (1 - delta))
    distance = more - less - pairs * delta
    if variance <= 0:
        return 0.0 if abs(distance) < 1e-12 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def mcnemar(more: int, less: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: as many flips one way as the other?"""
    flips = more + less
    if not flips:
        return 1.0
    tail: float = sum(math.comb(flips, k) for k in range(min(more, less) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def mean_difference(
    differences: Sequence[float], confidence: float = 0.95, seed: int = 1
) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval of a mean.

    Args:
        differences: One for each pair.
        confidence: Of the two-sided interval.
        seed: Of the resampling, so that two runs over the same answers say the same.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return Interval(0.0, -math.inf, math.inf)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    if not values.std():
        return Interval(mean, mean, mean)
    generator = np.random.default_rng(seed)
    means = np.sort(
        [values[generator.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    )
    normal = NormalDist()
    # Half of those that are equal, so that a symmetric sample has no bias.
    share = (np.sum(means < mean) + np.sum(means <= mean)) / (2 * RESAMPLES)
    bias = normal.inv_cdf(min(max(float(share), 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    deviations = values - mean
    spread = float(np.sum(deviations**2))
    acceleration = float(np.sum(deviations**3)) / (6 * spread**1.5)

    def end(z: float) -> float:
        moved = bias + (bias + z) / (1 - acceleration * (bias + z))
        return float(np.quantile(means, normal.cdf(moved)))

    z = normal_quantile(confidence)
    return Interval(mean, end(-z), end(z))


def fraction_difference(
    differences: Sequence[float], confidence: float = 0.95, seed: int = 1
) -> Interval:
    """Return an interval of the mean of differences that lie between -1 and 1.

    A bootstrap knows nothing of what it has not seen: of ten pairs without a difference it would
    say that there is none. So each bound is at least as far from the mean as that of a share that
    was never seen in so many pairs.
    """
    found = mean_difference(differences, confidence, seed)
    unseen = share_difference(0, 0, len(differences), confidence).upper
    return Interval(
        found.mean,
        max(-1.0, min(found.lower, found.mean - unseen)),
        min(1.0, max(found.upper, found.mean + unseen)),
    )
