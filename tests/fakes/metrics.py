"""A Metrics port whose answers the test writes, and arms' samples by their harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from kvquant.core.evidence import ArmSample, CacheConfig, Evidence, EvidenceNeed, Histogram
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.errors import MetricsError

BOUNDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 600.0, math.inf)
"""Bounds of the made-up latencies in seconds."""

Answer = Evidence | MetricsError | None
"""What one call says of one need; None leaves the need out of the answer."""


class FakeMetrics:
    """Answers as told, and keeps what it was asked.

    Attributes:
        answer: What to say of a need at an instant; the script, when there is one, comes first.
        script: Answers to the next calls, one each; the last one stays.
        timeline: What to say of the ticks that a need asks for.
        configs: Cache configs by pod; a pod that is not in it has not been scraped.
        outage: Why nothing is answered, while Prometheus is out.
        asked: Every need of every call, in order.
    """

    def __init__(self) -> None:
        self.answer: Callable[[EvidenceNeed, datetime], Answer] = lambda need, now: Evidence(
            now, ArmSample(), ArmSample()
        )
        self.script: list[Answer] = []
        self.timeline: Callable[[TickNeed, datetime], Timeline] = lambda need, now: Timeline(())
        self.configs: dict[str, CacheConfig] = {}
        self.outage: str | None = None
        self.asked: list[EvidenceNeed] = []

    def evidence(self, needs: Sequence[EvidenceNeed], now: datetime) -> Mapping[str, Evidence]:
        self.asked += needs
        self._check_outage()
        found = {}
        scripted = len(self.script) > 0
        step = self.script[0] if scripted else None
        if len(self.script) > 1:
            self.script.pop(0)
        for need in needs:
            said = step if scripted else self.answer(need, now)
            if isinstance(said, MetricsError):
                raise said
            if said is not None:
                found[need.key] = said
        return found

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        self._check_outage()
        return {need.key: self.timeline(need, now) for need in needs}

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        self._check_outage()
        return {pod: self.configs[pod] for pod in pods if pod in self.configs}

    def _check_outage(self) -> None:
        if self.outage is not None:
            raise MetricsError(self.outage)


def arm(
    requests: float,
    *,
    errors: float = 0,
    timeouts: float = 0,
    resets: float = 0,
    slow: float = 0,
    preemptions: float = 0,
    finished: float | None = None,
    active: float = 0,
    healthy: float = 99,
) -> ArmSample:
    """Return the sample of an arm: answers take up to 1 s, the slow ones 10 to 30 s.

    Of the requests, the given numbers failed in each way or were slow; the engines finished as
    many as were answered, unless told otherwise. The routers find as many pods healthy as any test
    asks for.
    """
    completed = requests - timeouts - resets
    counts = [completed - slow if bound < 30 else completed for bound in BOUNDS]
    counts[:3] = [0.0, 0.3 * counts[3], 0.8 * counts[3]]
    return ArmSample(
        completed=completed,
        errors_5xx=errors,
        timeouts=timeouts,
        resets=resets,
        active=active,
        healthy=healthy,
        latency=Histogram(BOUNDS, tuple(float(count) for count in counts)),
        preemptions=preemptions,
        finished=completed if finished is None else finished,
    )
