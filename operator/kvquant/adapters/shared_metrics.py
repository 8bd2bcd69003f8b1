"""One set of queries for all rollouts together, whoever asks first.

Rollouts run their passes in threads of their own and each asks for itself. The first one that needs
an instant which nobody has read yet asks Prometheus for every rollout that was seen lately; the
others wait for that answer or find it. So the number of queries does not depend on how many
rollouts there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kvquant import telemetry
from kvquant.core.analysis.samples import Tick
from kvquant.core.evidence import CacheConfig
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.ticking import TickNeed, Timeline, first_instant, in_effect, last_instant, silence
from kvquant.errors import MetricsError

NEAR_STEPS = 20
"""Steps of the grid by which a rollout may lag behind and still be read along with all others. One
that lags further, such as each one after a restart, must not make everybody read so long a past."""

FAR_STEPS, MOST_FAR = 1000, 100
"""Steps of the grid within which the begins of those lie that are read together from afar, and how
many these are at most: a set of queries must end in time, else it would fail again and again."""

MOST_ROUNDS = NEAR_STEPS + 2
"""Reads for one question, of which each brings at least one instant."""

FORGOTTEN_AFTER = timedelta(minutes=10)
"""A rollout that has not asked for so long is not read along any more."""

CONFIGS_FOR = timedelta(seconds=2)
"""How long an answer about cache configs serves others."""

SHADOWS_FOR = timedelta(seconds=2)
"""How long an answer about shadowed requests serves others."""

FAILED_FOR = 2.0
"""Seconds in which a failed set of queries is not sent again: each rollout would wait for it."""


class Asking(Protocol):
    """Who sends the queries."""

    @property
    def delay(self) -> timedelta:
        """How long after a scrape began its samples are found by queries."""

    @property
    def grid(self) -> timedelta:
        """Time between two ticks."""

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        """Return the ticks, as `Metrics` does."""

    def all_cache_configs(
        self, namespaces: Iterable[str], now: datetime
    ) -> Mapping[tuple[str, str], CacheConfig]:
        """Return what every engine in the namespaces reports, by namespace and pod."""

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        """Return what the shadow services have counted, as `Metrics` does."""


@dataclass(slots=True)
class _Known:
    """What has been read for one rollout.

    Attributes:
        need: What it asked for last.
        first: First instant of what it holds, in seconds since the epoch.
        through: Last instant that was read; before the first when none was.
        asked_at: When it asked last.
        ticks: What was read from `first` on.
        healthy: Pods that every router finds healthy, by slot, at the last instant.
        seen: Last instant at which a router was scraped.
        missing: What the last read could not find of the user's signals, in sentences.
    """

    need: TickNeed
    first: float
    through: float
    asked_at: datetime
    ticks: list[Tick] = field(default_factory=list)
    healthy: Mapping[str, float] = field(default_factory=dict)
    seen: float | None = None
    missing: tuple[str, ...] = ()

    def asks(self, need: TickNeed, first: float, before: float, now: datetime) -> None:
        """Take note of what is asked, and drop what is older.

        Args:
            need: What is asked.
            first: Its first instant.
            before: The instant before that one.
            now: The present instant.
        """
        self.need, self.asked_at = need, now
        if first > self.first:
            self.first, self.through = first, max(self.through, before)
            self.ticks = [tick for tick in self.ticks if tick.at >= first]

    def take(self, found: Timeline) -> None:
        """Take in what was read; what does not follow on what is known is left for later."""
        self.missing = tuple(p for p in found.problems if p.startswith("signal "))
        for tick in found.ticks:
            if tick.at <= self.through:
                continue
            self.through = tick.at
            self.ticks.append(tick)
            self.healthy = found.healthy
            if tick.baseline.routers or tick.canary.routers:
                self.seen = tick.at

    def told(self, end: float) -> Timeline:
        """Return it as the answer to what was asked last."""
        return Timeline(
            ticks=tuple(in_effect(tick, self.need.spans) for tick in self.ticks),
            complete=self.through >= end,
            healthy=self.healthy,
            problems=(*silence(self.need.router, self.seen, self.through), *self.missing),
        )


@dataclass(slots=True)
class _Flight:
    """A set of queries under way."""

    landed: threading.Event = field(default_factory=threading.Event)
    error: str | None = None


class SharedMetrics:
    """The port `Metrics` in front of the one that asks. Safe to share between threads."""

    def __init__(self, metrics: Asking, patience: float) -> None:
        """Begin with nothing known.

        Args:
            metrics: Who sends the queries.
            patience: Longest wait for a set of queries that somebody else has sent, in seconds.
        """
        self._metrics = metrics
        self._patience = patience
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._flights: dict[str, _Flight] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._namespaces: dict[str, datetime] = {}
        self._configs: Mapping[tuple[str, str], CacheConfig] = {}
        self._configs_of: frozenset[str] = frozenset()
        self._configs_at: datetime | None = None
        self._shadowed: dict[str, tuple[ShadowNeed, datetime]] = {}
        self._shadows: dict[ShadowNeed, ShadowEvidence] = {}
        self._shadows_at: datetime | None = None

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        """Return each need's ticks, by its key, from what has been read for all rollouts.

        Raises:
            MetricsError: Prometheus did not answer, or not in time.
        """
        end = last_instant(now, self._metrics.delay, self._metrics.grid)
        with self._lock:
            asking = {need.key: self._note(need, now) for need in needs}
        went_far = False
        # Each round brings the next instants; a long past is read in parts, one a pass.
        for _ in range(MOST_ROUNDS):
            distance = self._distance(asking, end)
            if distance == 0 or (distance > NEAR_STEPS and went_far):
                break
            if distance <= NEAR_STEPS:
                self._together("near", lambda: self._read_near(now, end))
            else:
                self._together("far", lambda: self._read_far(now, end))
                went_far = True
        with self._lock:
            return {key: known.told(end) for key, known in asking.items()}

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        """Return the KV-cache configuration that each pod reports; absent means not scraped.

        Raises:
            MetricsError: Prometheus did not answer, or not in time.
        """
        if not pods:
            return {}
        with self._lock:
            self._namespaces[namespace] = now
        while (configs := self._fresh_configs(namespace, now)) is None:
            self._together("configs", lambda: self._read_configs(now))
        wanted = ((pod, configs.get((namespace, pod))) for pod in pods)
        return {pod: config for pod, config in wanted if config is not None}

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        """Return what the shadow services have counted for each need, by its key.

        Raises:
            MetricsError: Prometheus did not answer, or not in time.
        """
        with self._lock:
            self._shadowed |= {need.key: (need, now) for need in needs}
        while (found := self._fresh_shadows(needs, now)) is None:
            self._together("shadows", lambda: self._read_shadows(now))
        return found

    def _fresh_shadows(
        self, needs: Sequence[ShadowNeed], now: datetime
    ) -> dict[str, ShadowEvidence] | None:
        with self._lock:
            if self._shadows_at is None or now - self._shadows_at >= SHADOWS_FOR:
                return None
            if any(need not in self._shadows for need in needs):
                return None
            return {need.key: self._shadows[need] for need in needs}

    def _read_shadows(self, now: datetime) -> None:
        with self._lock:
            asked = self._shadowed.items()
            self._shadowed = {k: v for k, v in asked if now - v[1] <= FORGOTTEN_AFTER}
            needs = [need for need, _ in self._shadowed.values()]
        found = self._metrics.shadows(needs, now)
        with self._lock:
            self._shadows = {need: found[need.key] for need in needs}
            self._shadows_at = now

    def _note(self, need: TickNeed, now: datetime) -> _Known:
        first = first_instant(need.since, self._metrics.grid)
        before = first - self._metrics.grid.total_seconds()
        known = self._known.get(need.key)
        if known is None or first < known.first or not _same_series(known.need, need):
            known = self._known[need.key] = _Known(need, first, before, now)
        known.asks(need, first, before, now)
        return known

    def _distance(self, asking: Mapping[str, _Known], end: float) -> int:
        """Return how many steps of the grid are missing where the fewest are; 0 if none is."""
        step = self._metrics.grid.total_seconds()
        with self._lock:
            missing = [
                round((end - known.through) / step)
                for key, known in asking.items()
                # Nobody reads any more for one that has asked for something else meanwhile.
                if self._known.get(key) is known
            ]
        return min((steps for steps in missing if steps > 0), default=0)

    def _read_near(self, now: datetime, end: float) -> None:
        oldest = end - NEAR_STEPS * self._metrics.grid.total_seconds()
        with self._lock:
            for key in [k for k, v in self._known.items() if now - v.asked_at > FORGOTTEN_AFTER]:
                del self._known[key]
            chosen = [k for k in self._known.values() if oldest <= k.through < end]
        if chosen:
            self._read(chosen, now)

    def _read_far(self, now: datetime, end: float) -> None:
        step = self._metrics.grid.total_seconds()
        with self._lock:
            far = [k for k in self._known.values() if k.through < end - NEAR_STEPS * step]
            far.sort(key=lambda known: known.through)
            chosen = [k for k in far[:MOST_FAR] if k.through < far[0].through + FAR_STEPS * step]
        if chosen:
            self._read(chosen, now)

    def _read(self, chosen: Sequence[_Known], now: datetime) -> None:
        step = self._metrics.grid.total_seconds()
        needs = [
            replace(k.need, since=datetime.fromtimestamp(k.through + step, UTC), spans=())
            for k in chosen
        ]
        found = self._metrics.ticks(needs, now)
        with self._lock:
            for known in chosen:
                known.take(found[known.need.key])

    def _fresh_configs(
        self, namespace: str, now: datetime
    ) -> Mapping[tuple[str, str], CacheConfig] | None:
        with self._lock:
            if self._configs_at is None or namespace not in self._configs_of:
                return None
            return self._configs if now - self._configs_at < CONFIGS_FOR else None

    def _read_configs(self, now: datetime) -> None:
        with self._lock:
            asked = self._namespaces.items()
            self._namespaces = {k: at for k, at in asked if now - at <= FORGOTTEN_AFTER}
            namespaces = frozenset(self._namespaces)
        configs = self._metrics.all_cache_configs(namespaces, now)
        with self._lock:
            self._configs, self._configs_of, self._configs_at = configs, namespaces, now

    def _together(self, kind: str, read: Callable[[], None]) -> None:
        """Read, or wait until somebody has read who began before.

        Raises:
            MetricsError: It failed, or takes too long. One that has failed just now is not sent
                again at once.
        """
        with self._lock:
            until, why = self._failed.get(kind, (0.0, ""))
            if time.monotonic() < until:
                raise MetricsError(why)
            flight = self._flights.get(kind)
            leads = flight is None
            if flight is None:
                flight = self._flights[kind] = _Flight()
        if not leads:
            if not flight.landed.wait(self._patience):
                raise MetricsError(
                    f"Prometheus has not answered the queries for all rollouts within "
                    f"{self._patience:g} s: look at its load, or raise KVQUANT_PROMETHEUS_TIMEOUT."
                )
            if flight.error is not None:
                raise MetricsError(flight.error)
            return
        try:
            read()
            telemetry.PROMETHEUS_READS.labels("read").inc()
        except MetricsError as error:
            telemetry.PROMETHEUS_READS.labels("failed").inc()
            flight.error = str(error)
            raise
        except BaseException as error:
            # Whoever waits must be told something; whoever reads sees it as it is.
            flight.error = f"The queries for all rollouts failed: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                del self._flights[kind]
                if flight.error is not None:
                    self._failed[kind] = time.monotonic() + FAILED_FOR, flight.error
            flight.landed.set()


def _same_series(one: TickNeed, other: TickNeed) -> bool:
    return replace(one, since=other.since, spans=other.spans) == other
