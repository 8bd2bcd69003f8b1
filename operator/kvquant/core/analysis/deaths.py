"""Engine deaths: a test that one innocent crash cannot fail, and a crash loop soon does.

A dead engine's exit code says nothing (a full GPU ends it with 0 as `Completed`), so that every
death counts. Deaths within two minutes are one incident: one bad node takes several pods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

SAME_INCIDENT = 120.0
"""Seconds within which deaths are one incident."""

BAD = (4.0, 16.0, 64.0)
"""Rates of a bad canary, as multiples of the innocent one; each is thought as likely as the others:
from a death in two or three hours to one in ten minutes."""


@dataclass(slots=True)
class Deaths:
    """Deaths of one arm and the time in which they could happen.

    Attributes:
        incidents: Deaths that were no part of an earlier incident.
        deaths: All of them.
        hours: Pod-hours watched.
        last: When the last incident began, in seconds since the epoch.
    """

    incidents: int = 0
    deaths: int = 0
    hours: float = 0.0
    last: float = -math.inf

    def add(self, deaths: int, pods: float, seconds: float, at: float, apart: float) -> None:
        """Take in a span of time.

        Args:
            deaths: Deaths in it.
            pods: Pods in the mean.
            seconds: Length of the span, in the time of the analysis.
            at: Its end, in seconds since the epoch.
            apart: Seconds that separate two incidents, in the time of the recording.
        """
        self.hours += pods * seconds / 3600
        self.deaths += int(deaths)
        if deaths and at > self.last + apart:
            self.incidents += 1
            self.last = at


def e_value(canary: Deaths, baseline: Deaths, innocent_rate: float) -> float:
    """Return the evidence against the canary: how many times likelier its deaths are if it is bad.

    The likelihood of its incidents at rates above the innocent one, divided by that at the innocent
    one, is an e-process: it exceeds 1/alpha with at most the probability alpha, ever (Ville 1939;
    Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", Statistical
    Science 2023). What kills the baseline's engines too is not held against the canary.

    Args:
        canary: Deaths of the canary.
        baseline: Deaths of the baseline.
        innocent_rate: Deaths per pod and hour that are nobody's fault.
    """
    rate = innocent_rate
    if baseline.hours > 0:
        rate += 2 * baseline.incidents / max(baseline.hours, 1.0)
    k, t = canary.incidents, canary.hours
    exponents = [k * math.log(times) - (times - 1) * rate * t for times in BAD]
    return fmean(math.exp(min(600.0, exponent)) for exponent in exponents)
