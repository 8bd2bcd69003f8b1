"""Confidence limits for shares and rates, and for the difference of two of them.

Every limit is one-sided at `Z` standard errors. The evidence is looked at again and again while
it grows, and each look is one more chance to be unlucky: three standard errors (99.87 %) leave a
reserve that 95 % would not have.

Requests are not independent: those that wait in one queue are slow together. The limits therefore
take a design effect, by which the number of independent requests is smaller than that of requests
(Kish, Survey Sampling, 1965, 8.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 3.0
"""Standard errors between an estimate and its limit."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured share or rate with its lower and upper confidence limit."""

    value: float
    lower: float
    upper: float


def share(hits: float, trials: float, design_effect: float = 1.0) -> Estimate:
    """Return the share of hits with its score limits.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    Unlike the textbook's p +- z * se they hold for few trials and for shares of 0 and 1.

    Args:
        hits: At most `trials`.
        trials: More than 0.
        design_effect: Trials that count as one independent trial; at least 1.
    """
    p = hits / trials
    n = trials / design_effect
    shrink = 1 + Z * Z / n
    centre = (p + Z * Z / (2 * n)) / shrink
    reach = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / shrink
    # Rounding must not put the estimate outside of its own limits.
    return Estimate(p, min(p, max(0.0, centre - reach)), max(p, min(1.0, centre + reach)))


def rate(events: float, exposure: float, design_effect: float = 1.0) -> Estimate:
    """Return events per unit of exposure with the score limits of a Poisson mean.

    Source: Rao's score test inverted; Barker, "A comparison of nine confidence intervals for a
    Poisson parameter", The American Statistician, 2002.

    Args:
        events: At least 0; may exceed the exposure.
        exposure: More than 0.
        design_effect: Variance of the count divided by that of a Poisson count; at least 1.
    """
    x, n = events / design_effect, exposure / design_effect
    centre = x + Z * Z / 2
    reach = Z * math.sqrt(x + Z * Z / 4)
    value = events / exposure
    return Estimate(
        value, min(value, max(0.0, (centre - reach) / n)), max(value, (centre + reach) / n)
    )


def least_excess(canary: Estimate, baseline: Estimate) -> float:
    """Return the lower confidence limit of canary minus baseline.

    Source: MOVER, the "method of variance estimates recovery" of Zou and Donner, "Construction of
    confidence limits about effect measures", Statistics in Medicine, 2008; for shares with Wilson
    limits this is Newcombe's hybrid score interval (method 10, 1998). It never exceeds the
    measured difference, and grows with every further hit of the canary.
    """
    return (canary.value - baseline.value) - math.hypot(
        canary.value - canary.lower, baseline.upper - baseline.value
    )
