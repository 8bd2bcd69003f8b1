"""A Metrics port whose answers the test writes, and what routers say of an arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from kvquant.core.evidence import ArmSample, CacheConfig
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.errors import MetricsError


class FakeMetrics:
    """Answers as told, and keeps what it was asked.

    Attributes:
        timeline: What to say of a need at an instant; None leaves it out of the answer.
        shadow: What the shadow service of a rollout has counted.
        configs: Cache configs by pod; a pod that is not in it has not been scraped.
        outage: Why nothing is answered, while Prometheus is out.
        asked: Every need of every call, in order.
    """

    def __init__(self) -> None:
        self.timeline: Callable[[TickNeed, datetime], Timeline | None] = lambda need, now: Timeline(
            ()
        )
        self.shadow: Callable[[ShadowNeed], ShadowEvidence] = lambda need: ShadowEvidence()
        self.configs: dict[str, CacheConfig] = {}
        self.outage: str | None = None
        self.asked: list[TickNeed] = []

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        self.asked += needs
        self._check_outage()
        said = {need.key: self.timeline(need, now) for need in needs}
        return {key: one for key, one in said.items() if one is not None}

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        self._check_outage()
        return {pod: self.configs[pod] for pod in pods if pod in self.configs}

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        self._check_outage()
        return {need.key: self.shadow(need) for need in needs}

    def _check_outage(self) -> None:
        if self.outage is not None:
            raise MetricsError(self.outage)


def arm(*, active: float = 0, healthy: float = 99) -> ArmSample:
    """Return what the routers say of an arm: as many healthy pods as any test asks for."""
    return ArmSample(active=active, healthy=healthy)
