"""Two arms' shares or means held against each other: harm beyond a tolerance, as one number.

Below zero the canary is within its tolerance, above zero beyond. A FAIL needs the lower bound above
zero, a PASS the upper bound at the relaxed tolerance below it.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True, slots=True)
class Harm:
    """One signal's harm beyond its tolerance over some batches.

    Attributes:
        estimate: Harm beyond the tolerance, for a verdict of FAIL.
        relaxed: Harm beyond the relaxed tolerance, for a verdict of PASS.
        baseline: The baseline's value, in the signal's unit.
        canary: The canary's.
        edge: For shares of slow requests, the baseline's quantile in seconds; else NaN.
        factor: Slow-down that is tolerated.
        requests: Canary requests behind it.
        equal: What `relaxed` would be, were the canary like the baseline.
    """

    estimate: Estimate
    relaxed: Estimate
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
    xc, nc, xb, nb = (part[sound] for part in (canary, canary_total, baseline, baseline_total))
    harm = difference(xc, nc, xb, nb, tolerance, prior)
    alone = _alone(xc, nc, RELAXED * tolerance, prior)
    if harm is None or alone is None:
        return None
    # No baseline is better than one without any event: however little is known of this one, the
    # canary's own share is the most by which it can be worse.
    relaxed = harm.shifted((1 - RELAXED) * tolerance)
    relaxed = min(relaxed, alone, key=Estimate.sound_upper)
    return Harm(
        harm,
        relaxed,
        float(xb.sum() / nb.sum()),
        float(xc.sum() / nc.sum()),
        requests=float(nc.sum()),
        equal=-RELAXED * tolerance,
    )


def difference(
    xc: Array, nc: Array, xb: Array, nb: Array, tolerance: float, prior: Prior
) -> Estimate | None:
    """Return the mean difference of two shares beyond a tolerance.

    Batches are weighted as by Mantel and Haenszel (1959); the unit of variance is the binomial one
    of equal arms.
    """
    weights = np.where((nc > 0) & (nb > 0), nc * nb / np.maximum(nc + nb, 1e-9), 0.0)
    total_c, total_b = float(nc.sum()), float(nb.sum())
    if total_c <= 0 or total_b <= 0:
        return None
    pc = (float(xc.sum()) + 0.5) / (total_c + 1)
    pb = (float(xb.sum()) + 0.5) / (total_b + 1)
    pooled = (float(xc.sum() + xb.sum()) + 0.5) / (total_c + total_b + 1)
    variance = pooled * (1 - pooled)
    if pooled < RARE:
        apart = (pc * (1 - pc) / total_c + pb * (1 - pb) / total_b) / (1 / total_c + 1 / total_b)
        variance = max(variance, apart)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(weights > 0, xc / nc - xb / nb - tolerance, 0.0)
    return estimate(values, weights, max(variance, 1e-6), prior)


def _alone(xc: Array, nc: Array, tolerance: float, prior: Prior) -> Estimate | None:
    """Return the mean share of one arm beyond a tolerance."""
    p = (float(xc.sum()) + 0.5) / (float(nc.sum()) + 1)
    return estimate(xc / nc - tolerance, nc, max(p * (1 - p), 1e-6), prior)


def from_history(
    xc: Array, nc: Array, xb: Array, nb: Array, tolerance: float, prior: Prior
) -> Estimate | None:
    """Return the same difference when the arms' batches are not from the same time."""
    total = float(nb.sum())
    if total <= 0 or float(nc.sum()) <= 0:
        return None
    share = (float(xb.sum()) + 0.5) / (total + 1)
    used = nc > 0
    values = xc[used] / nc[used] - share - tolerance
    found = estimate(values, nc[used], max(share * (1 - share), 1e-6), prior)
    past = estimate(
        np.where(nb > 0, xb / np.maximum(nb, 1e-9), 0.0),
        nb,
        max(share * (1 - share), 1e-6),
        prior,
    )
    if found is None or past is None:
        return None
    return replace(found, error=math.hypot(found.error, past.error))


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
        harm.shifted(factor - easy),
        float(np.average(means_b, weights=n_b)),
        float(np.average(means_c, weights=n_c)),
        requests=float(n_c.sum()),
        equal=-easy,
    )
