"""The analyses of all rollouts: each is fed the ticks that it has not seen, and remembers the rest.

What is remembered is a convenience and no state. An operator that begins anew reads the ticks of
the whole attempt again and comes to the same verdict, because both follow from them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import Status, TrafficSpan
from kvquant.core import http_routes
from kvquant.core.analysis import Analysis, Report, Settings
from kvquant.core.analysis.samples import Arm, Tick
from kvquant.core.custom_signals import queries_of
from kvquant.core.evidence import ArmNeed, ArmSample, Evidence, worst
from kvquant.core.judgement import settings_of
from kvquant.core.plan import Plan
from kvquant.core.ticking import Span, TickNeed, Timeline
from kvquant.errors import MetricsError
from kvquant.ports import Metrics
from kvquant.world import World

LOOK_BACK = timedelta(minutes=15)
"""Of the baseline's time before the attempt that is read too: what it does at full load."""


LATEST_TICKS = 12
"""Ticks that are read for the present state alone: as many as a slow scrape may be behind."""


@dataclass(slots=True)
class _Kept:
    """An analysis in progress, and of what."""

    of: tuple[object, ...]
    analysis: Analysis
    since: datetime


class Analyses:
    """Analyses by rollout. Safe to share between threads, one rollout being in one at a time."""

    def __init__(self, grid: timedelta) -> None:
        """Begin with none.

        Args:
            grid: Time between two ticks.
        """
        self._grid = grid
        self._kept: dict[str, _Kept] = {}

    def look(
        self, world: World, plan: Plan, metrics: Metrics, now: datetime
    ) -> tuple[Evidence, Report | None]:
        """Return what the routers say now, and the analysis of the attempt so far.

        Args:
            world: The rollout.
            plan: Its plan.
            metrics: Where the ticks come from.
            now: The present instant.

        Raises:
            MetricsError: Prometheus did not answer, or its past is still being read.
        """
        status, metadata = world.rollout.status, world.rollout.metadata
        assert status.baseline is not None and status.canary is not None  # noqa: S101
        assert status.router is not None  # noqa: S101
        key = f"{metadata.namespace}/{metadata.name}"
        settings = settings_of(plan.analysis, self._grid, plan.live_budget)
        kept = self._of(key, (metadata.uid, status.attempt, settings), settings, status)
        need = TickNeed(
            key=key,
            namespace=metadata.namespace,
            router=status.router,
            baseline=ArmNeed(status.baseline.slot, status.baseline.deployment),
            canary=ArmNeed(status.canary.slot, status.canary.deployment),
            since=kept.since,
            spans=spans(status, plan),
            signals=queries_of(plan.analysis.custom),
            clusters=http_routes.clusters(metadata.namespace, world.rollout.spec.traffic, status),
        )
        timeline = metrics.ticks([need], now).get(key)
        if timeline is None:
            raise MetricsError("Prometheus' answer leaves this rollout out.")
        for tick in timeline.ticks:
            kept.analysis.take(tick)
            kept.since = datetime.fromtimestamp(tick.at, UTC)
        if not timeline.complete:
            raise MetricsError("The evidence of this attempt is being read from Prometheus again.")
        if timeline.problems:
            raise MetricsError(worst(timeline.problems))
        report = kept.analysis.report() if kept.analysis.ledger.last is not None else None
        return _evidence(need, timeline, now), report

    def standing(self, world: World, metrics: Metrics, now: datetime) -> Evidence:
        """Return what the routers say now of a rollout that has nothing left to analyse.

        Args:
            world: The rollout.
            metrics: Where the ticks come from.
            now: The present instant.

        Raises:
            MetricsError: Prometheus did not answer.
        """
        status, metadata = world.rollout.status, world.rollout.metadata
        assert status.baseline is not None and status.canary is not None  # noqa: S101
        # Another key than that of the attempt's analysis, which may be asked for again.
        key = f"{metadata.namespace}/{metadata.name}/standing"
        need = TickNeed(
            key=key,
            namespace=metadata.namespace,
            router=status.router or "",
            baseline=ArmNeed(status.baseline.slot, status.baseline.deployment),
            canary=ArmNeed(status.canary.slot, status.canary.deployment),
            since=now - LATEST_TICKS * self._grid,
            clusters=http_routes.clusters(metadata.namespace, world.rollout.spec.traffic, status),
        )
        timeline = metrics.ticks([need], now).get(key)
        if timeline is None or not timeline.complete:
            raise MetricsError("Prometheus' answer leaves this rollout out.")
        if timeline.problems:
            raise MetricsError(worst(timeline.problems))
        return _evidence(need, timeline, now)

    def forget(self, namespace: str, name: str) -> None:
        """Drop the analysis of a rollout that has ended."""
        self._kept.pop(f"{namespace}/{name}", None)

    def _of(
        self, key: str, identity: tuple[object, ...], settings: Settings, status: Status
    ) -> _Kept:
        kept = self._kept.get(key)
        if kept is None or kept.of != identity:
            begin = _splits(status)[0].since - LOOK_BACK * (1 / settings.time_scale)
            kept = self._kept[key] = _Kept(identity, Analysis(settings), begin)
        return kept


def spans(status: Status, plan: Plan) -> tuple[Span, ...]:
    """Return what was in effect when, with what each step knows of the next."""
    assert status.baseline is not None and status.canary is not None  # noqa: S101
    found = []
    for one in _splits(status):
        last = one.step >= len(plan.steps)
        following = 100 if last else plan.weight(one.step + 1)
        replicas = status.canary.replicas
        if not last:
            replicas = plan.next_replicas(one.step, status.baseline.replicas, replicas)
        known = one.step > 0
        found.append(
            Span(
                since=one.since,
                step=one.step,
                weight=one.weight,
                next_weight=following if known else None,
                next_replicas=replicas if known else None,
            )
        )
    return tuple(found)


def _splits(status: Status) -> tuple[TrafficSpan, ...]:
    """Return the splits of the attempt. An older operator kept only the present one."""
    if status.traffic:
        return status.traffic
    since = status.step_started_at or status.phase_started_at
    assert since is not None  # noqa: S101 - the attempt has begun
    step = status.step if status.weights.canary else 0
    return (TrafficSpan(since=since, step=step, weight=status.weights.canary),)


def _evidence(need: TickNeed, timeline: Timeline, now: datetime) -> Evidence:
    """Return what the routers say at the latest tick."""
    last: Sequence[Tick] = timeline.ticks[-1:]
    at = datetime.fromtimestamp(last[0].at, UTC) if last else now
    return Evidence(
        at,
        _standing(need.baseline, last[0].baseline if last else Arm(), timeline),
        _standing(need.canary, last[0].canary if last else Arm(), timeline),
    )


def _standing(arm: ArmNeed, seen: Arm, timeline: Timeline) -> ArmSample:
    active = [router.active for router in seen.routers.values()]
    known = [one for one in active if one is not None]
    return ArmSample(
        active=sum(known) if known and len(known) == len(active) else None,
        healthy=timeline.healthy.get(arm.slot),
    )
