"""What a Prometheus that scrapes the routers can be asked: increments over a window."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from bench.decisions.histogram import ROUTER, quantile
from bench.decisions.world import World

_KEPT = 60
"""Looks that are kept: 15 minutes."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of one arm, over all routers.

    Attributes:
        ended: Requests that ended, well or badly.
        failed: Requests that ended badly.
        latency: Cumulative counts of answered requests per bucket of `ROUTER`.
    """

    ended: float
    failed: float
    latency: tuple[float, ...]

    def minus(self, other: Counted) -> Counted:
        """Return the increments since another reading."""
        return Counted(
            self.ended - other.ended,
            self.failed - other.failed,
            tuple(a - b for a, b in zip(self.latency, other.latency, strict=True)),
        )

    def quantile(self, q: float) -> float:
        """Return a quantile in seconds, as `histogram_quantile` does; NaN when nothing ended."""
        return quantile(q, ROUTER, self.latency)

    def failed_share(self) -> float:
        """Return failed requests per ended one; NaN when none ended."""
        return self.failed / self.ended if self.ended else math.nan


class Books:
    """The readings of the last minutes, arm by arm. Routers do not restart here."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, tuple[Counted, Counted]]] = deque(maxlen=_KEPT)

    def read(self, world: World) -> None:
        """Take down what the routers show now."""
        both = []
        for arm in (0, 1):
            routers = world.router_view(arm)
            if not routers:
                return
            ended = failed = 0.0
            latency = [0.0] * len(ROUTER)
            for sample in routers.values():
                bins = sample.latency
                assert bins is not None
                ended += bins.counts[-1] + (sample.unanswered or 0.0)
                failed += sample.failed or 0.0
                for index, count in enumerate(bins.counts):
                    latency[index] += count
            both.append(Counted(ended, failed, tuple(latency)))
        self._readings.append((world.now, (both[0], both[1])))

    def increase(self, arm: int, now: float, window: float) -> Counted | None:
        """Return an arm's increments over a window; None without two readings in it."""
        within = [both for at, both in self._readings if now - window <= at <= now]
        if len(within) < 2:
            return None
        return within[-1][arm].minus(within[0][arm])
