"""Two arms' shares or means held against each other: harm beyond a tolerance, as one number.

Below zero the canary is within its tolerance, above zero beyond. A FAIL needs the lower bound above
zero, a PASS the upper bound at the relaxed tolerance below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvquant.core.analysis.sequential import Array, Estimate, Prior, estimate

RELAXED = 1.2
"""A pass may be wrong by a fifth of the tolerance: being sure of less would take for ever, since
a canary that is exactly at its tolerance never shows to be within it."""

# Of shares at the router: at medium load the variance is one to two times the binomial one, while
# nothing queues; bursts and long prompts make it more.
SHARES = Prior(inflation=3.0, batches=20.0, floor=1.0)
FAILURES = Prior(inflation=2.5, batches=15.0, floor=1.0)
# Preemptions come in clusters: a full cache throws out one sequence after the other.
FAULTS = Prior(inflation=6.0, batches=20.0, floor=2.0)
# Logarithms of ratios of means; `SCATTER` is the deviation of one request's.
RATIOS = Prior(inflation=1.0, batches=15.0, floor=0.05)
SCATTER = 0.5

RARE = 0.05
"""Shares below this have skewed counts: their variance is taken where it is largest."""


class Counted:
    """Events by batch, and of how many; with their sums, which several comparisons need."""

    __slots__ = ("events", "every_event", "every_one", "total")

    def __init__(self, events: Array, total: Array) -> None:
        """Sum up.

        Args:
            events: By batch.
            total: Of so many.
        """
        self.events, self.total = events, total
        self.every_event = float(np.add.reduce(events))
        self.every_one = float(np.add.reduce(total))

    @property
    def share(self) -> float:
        """Share of events over all batches."""
        return self.every_event / self.every_one


@dataclass(frozen=True, slots=True)
class Harm:
    """One signal's harm beyond its tolerance over some batches.

    Attributes:
        estimate: Harm beyond the tolerance, for a verdict of FAIL.
        relax: Returns the harm beyond the relaxed tolerance, for a verdict of PASS. Worked out
            only when it is asked for: what fails does not need it.
        baseline: The baseline's value, in the signal's unit.
        canary: The canary's.
        edge: For shares of slow requests, the baseline's quantile in seconds; else NaN.
        factor: Slow-down that is tolerated.
        requests: Canary requests behind it.
        equal: What `relax` would return, were the canary like the baseline.
    """

    estimate: Estimate
    relax: Callable[[], Estimate | None]
    baseline: float
    canary: float
    edge: float = math.nan
    factor: float = 1.0
    requests: float = 0.0
    equal: float = -math.inf


def shares(
    canary: Array,
    canary_total: Array,
    baseline: Array,
    baseline_total: Array,
    tolerance: float,
    prior: Prior = FAILURES,
) -> Harm | None:
    """Compare the shares of events, by batch.

    Args:
        canary: Events of the canary; NaN where they are not known.
        canary_total: Of so many.
        baseline: Events of the baseline, likewise.
        baseline_total: Of so many.
        tolerance: Excess of the share that is tolerated, as a fraction of one.
        prior: What is known of the inflation of its variance.
    """
    sound = np.isfinite(canary + canary_total + baseline + baseline_total)
    sound &= (canary_total > 0) & (baseline_total > 0)
    if not sound.any():
        return None
    ours = Counted(canary[sound], canary_total[sound])
    theirs = Counted(baseline[sound], baseline_total[sound])
    harm = difference(ours, theirs, tolerance, prior)
    if harm is None:
        return None

    def relax() -> Estimate | None:
        alone = _alone(ours, RELAXED * tolerance, prior)
        # No baseline is better than one without any event: however little is known of this one,
        # the canary's own share is the most by which it can be worse.
        relaxed = harm.shifted((1 - RELAXED) * tolerance)
        return None if alone is None else min(relaxed, alone, key=Estimate.sound_upper)

    return Harm(
        harm,
        relax,
        theirs.share,
        ours.share,
        requests=ours.every_one,
        equal=-RELAXED * tolerance,
    )


def difference(ours: Counted, theirs: Counted, tolerance: float, prior: Prior) -> Estimate | None:
    """Return the mean difference of two shares beyond a tolerance.

    Batches are weighted as by Mantel and Haenszel (1959); the unit of variance is the binomial one
    of equal arms.
    """
    total_c, total_b = ours.every_one, theirs.every_one
    if total_c <= 0 or total_b <= 0:
        return None
    pooled = (ours.every_event + theirs.every_event + 0.5) / (total_c + total_b + 1)
    variance = pooled * (1 - pooled)
    if pooled < RARE:
        pc, pb = (
            (ours.every_event + 0.5) / (total_c + 1),
            (theirs.every_event + 0.5) / (total_b + 1),
        )
        apart = (pc * (1 - pc) / total_c + pb * (1 - pb) / total_b) / (1 / total_c + 1 / total_b)
        variance = max(variance, apart)
    xc, nc, xb, nb = ours.events, ours.total, theirs.events, theirs.total
    used = (nc > 0) & (nb > 0)
    if not used.all():
        xc, nc, xb, nb = xc[used], nc[used], xb[used], nb[used]
    values = xc / nc - xb / nb - tolerance
    return estimate(values, nc * nb / (nc + nb), max(variance, 1e-6), prior)


def _alone(ours: Counted, tolerance: float, prior: Prior) -> Estimate | None:
    """Return the mean share of one arm beyond a tolerance."""
    p = (ours.every_event + 0.5) / (ours.every_one + 1)
    values = ours.events / ours.total - tolerance
    return estimate(values, ours.total, max(p * (1 - p), 1e-6), prior)


def from_history(ours: Counted, past: Counted, tolerance: float, prior: Prior) -> Estimate | None:
    """Return the same difference when the arms' batches are not from the same time."""
    if past.every_one <= 0 or ours.every_one <= 0:
        return None
    share = (past.every_event + 0.5) / (past.every_one + 1)
    used = ours.total > 0
    values = ours.events[used] / ours.total[used] - share - tolerance
    found = estimate(values, ours.total[used], max(share * (1 - share), 1e-6), prior)
    then = estimate(
        np.where(past.total > 0, past.events / np.maximum(past.total, 1e-9), 0.0),
        past.total,
        max(share * (1 - share), 1e-6),
        prior,
    )
    if found is None or then is None:
        return None
    return replace(found, error=math.hypot(found.error, then.error))


def ratio(
    logs: Array,
    n_c: Array,
    n_b: Array,
    means_b: Array,
    means_c: Array,
    factor: float,
    easy: float,
) -> Harm | None:
    """Return the mean of the logarithms of ratios beyond what fails, and beyond what passes."""
    factor, easy = math.log(factor), math.log(easy)
    weights = n_c * n_b / (n_c + n_b)
    harm = estimate(logs - factor, weights, SCATTER * SCATTER, RATIOS)
    if harm is None:
        return None
    return Harm(
        harm,
        lambda: harm.shifted(factor - easy),
        float(np.average(means_b, weights=n_b)),
        float(np.average(means_c, weights=n_c)),
        requests=float(n_c.sum()),
        equal=-easy,
    )
