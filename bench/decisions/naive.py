"""What somebody writes who knows a little statistics: a test of two proportions every minute.

The share of slow requests (beyond the bucket that holds the baseline's p90) and of failed ones
since the step began, canary against baseline, one-sided at 1 % each time. It treats requests as
independent and does not mind that it looks often: both is what it is here to show. The last step
has no control of like load, so it is waited out.
"""

from __future__ import annotations

import math

from bench.decisions.books import Counted
from bench.decisions.rules import CHECK, SOAK, EveryMinute, Look, Move
from bench.decisions.world import BASELINE, CANARY

_Z = 2.326
_FEWEST = 30
"""Requests of an arm from which the normal approximation is used."""


def _z(hits: float, of: float, other_hits: float, other_of: float) -> float:
    pooled = (hits + other_hits) / (of + other_of)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / of + 1 / other_of))
    return (hits / of - other_hits / other_of) / spread if spread else 0.0


class Proportions:
    """Two z-tests a minute.

    Attributes:
        name: Name in the tables.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._minutes = EveryMinute()

    def look(self, look: Look) -> tuple[Move, str]:
        """Say what to do, and why."""
        if not self._minutes.strikes(look):
            return Move.STAY, ""
        if look.last:
            return (Move.ADVANCE if look.now - look.since >= SOAK else Move.STAY), "no control"
        window = min(look.now - look.since, SOAK + CHECK)
        canary = look.books.increase(CANARY, look.now, window)
        baseline = look.books.increase(BASELINE, look.now, window)
        if canary is None or baseline is None or min(canary.ended, baseline.ended) < _FEWEST:
            return Move.STAY, ""
        for what, z in (
            ("failed", _z(canary.failed, canary.ended, baseline.failed, baseline.ended)),
            ("slow", self._slow(canary, baseline)),
        ):
            if z > _Z:
                return Move.ROLL_BACK, f"{what}: z = {z:.1f}"
        return (Move.ADVANCE if look.now - look.since >= SOAK else Move.STAY), ""

    def _slow(self, canary: Counted, baseline: Counted) -> float:
        total, canary_total = baseline.latency[-1], canary.latency[-1]
        if min(total, canary_total) < _FEWEST:
            return 0.0
        at = next(i for i, count in enumerate(baseline.latency) if count >= 0.9 * total)
        slow, other = canary_total - canary.latency[at], total - baseline.latency[at]
        return _z(slow, canary_total, other, total)
