"""From the series that Prometheus returned to the ticks that the analysis is fed.

Ticks lie on a grid that is the same for everybody and at all times: multiples of its step since the
epoch. An operator that was restarted reads the very ticks that it had read before.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from kvquant.core import queries
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Share, Tick
from kvquant.core.counters import Series
from kvquant.core.custom_signals import LatencyQuery, SignalQuery
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS
from kvquant.core.evidence import ArmNeed
from kvquant.core.queries import Window
from kvquant.core.tick_queries import TickQueries, keys_of
from kvquant.engines import vllm_metrics

GRID = timedelta(seconds=15)
"""Time between two ticks, unless the operator is told otherwise."""

STALE_STEPS = 5
"""Steps of the grid after which a sample is no news any more: 75 s, for a scrape each minute.

A scrape that fails ends its series at once. This is for a Prometheus that was itself away: it would
repeat what it knew last for five minutes."""

MILLISECONDS = 1000.0

_NO_BUCKETS = (0.0, math.inf)
"""Bounds of a histogram of which only count and sum are known: nothing takes no time."""


@lru_cache(maxsize=64)
def _the_only(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the one copy of these bounds, which very many histograms share."""
    return bounds


_ROUTER_BOUNDS = _the_only((*(bound / MILLISECONDS for bound in LATENCY_BOUNDS_MS), math.inf))
_NOTHING_YET = Bins(_ROUTER_BOUNDS, (0.0,) * len(_ROUTER_BOUNDS))


@dataclass(frozen=True, slots=True)
class Span:
    """What was in effect from an instant on, until the next span begins.

    Attributes:
        since: First instant.
        step: Step of the ladder, counted from 1; 0 before the canary gets traffic.
        weight: Canary's share of the traffic, in per cent.
        next_weight: Canary's weight in the next step, in per cent; None in the last.
        next_replicas: Canary pods that are planned for the next step.
        baseline_replicas: Pods of the baseline. None takes those that were scraped, at least one.
        canary_replicas: Pods of the canary, likewise.
    """

    since: datetime
    step: int
    weight: float
    next_weight: float | None = None
    next_replicas: int | None = None
    baseline_replicas: int | None = None
    canary_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class TickNeed:
    """Which ticks one rollout needs.

    Attributes:
        key: By which the answer is found.
        namespace: Namespace of router and pools.
        router: Name of the router's Deployment.
        baseline: The pool that served when the rollout began.
        canary: The pool with the quantized cache.
        since: First instant of interest: the last tick that is known, or the attempt's begin.
        spans: What was in effect when, oldest first; before the first one, step 0 and no weight.
        signals: Signals of the user's.
        clusters: A Gateway's upstream clusters and the slots that they are, where one routes; with
            the built-in router, whose clusters are called like the slots, none.
    """

    key: str
    namespace: str
    router: str
    baseline: ArmNeed
    canary: ArmNeed
    since: datetime
    spans: tuple[Span, ...] = ()
    signals: tuple[SignalQuery, ...] = ()
    clusters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was found for one need.

    Attributes:
        ticks: Every instant of the grid, oldest first. What was not scraped at one is not in it.
        complete: Whether the last one is the present one. A long past is read in parts: ask again.
        healthy: Pods that every router finds healthy, by slot, at the last tick.
        problems: What could not be read, in sentences; empty when everything was.
    """

    ticks: tuple[Tick, ...]
    complete: bool = True
    healthy: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def first_instant(since: datetime, grid: timedelta) -> float:
    """Return the first instant of the grid that is not earlier, in seconds since the epoch."""
    step = _milliseconds(grid)
    return -(-math.ceil(since.timestamp() * 1000) // step) * step / 1000


def last_instant(now: datetime, delay: timedelta, grid: timedelta) -> float:
    """Return the last instant of the grid of which everything has been scraped and stored.

    Args:
        now: The present instant.
        delay: How long scraping, and sending on to where it is stored, may take.
        grid: Time between two instants of the grid.
    """
    step = _milliseconds(grid)
    return math.floor((now - delay).timestamp() * 1000) // step * step / 1000


def instants(first: float, last: float, grid: timedelta) -> Window | None:
    """Return the range of the grid's instants from the first to the last; None without any."""
    if first > last:
        return None
    return Window(round(first * 1000), round(last * 1000), _milliseconds(grid))


def _milliseconds(grid: timedelta) -> int:
    return max(1, round(grid.total_seconds() * 1000))


def in_effect(tick: Tick, spans: Sequence[Span]) -> Tick:
    """Return the tick with what was in effect at its instant."""
    index = bisect_right(spans, tick.at, key=lambda span: span.since.timestamp()) - 1
    if index < 0:
        return tick
    span = spans[index]
    return replace(
        tick,
        step=span.step,
        weight=span.weight,
        next_weight=span.next_weight,
        next_replicas=span.next_replicas,
        baseline=_sized(tick.baseline, span.baseline_replicas),
        canary=_sized(tick.canary, span.canary_replicas),
    )


def _sized(arm: Arm, replicas: int | None) -> Arm:
    return arm if replicas is None else replace(arm, replicas=replicas)


@dataclass(slots=True)
class _Pod:
    """What one pod showed at one instant; a router's figures are by slot, an engine's by ""."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    buckets: dict[tuple[str, str], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )


_Pods = dict[tuple[str, str], _Pod]
"""By namespace and name."""


class Scrapes:
    """What one set of queries returned, sorted by instant and pod."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._routers: dict[float, _Pods] = {}
        self._engines: dict[float, _Pods] = {}
        self._proxies: dict[float, _Pods] = {}
        self._missing: dict[str, str] = {}

    def add_seen(
        self,
        *,
        routers: Iterable[Series] = (),
        engines: Iterable[Series] = (),
        proxies: Iterable[Series] = (),
    ) -> None:
        """Take in when pods were scraped. Only what was scraped lately takes part: add this first.

        Args:
            routers: Seconds since the epoch at which the newest sample was scraped, by router pod.
            engines: The same by engine pod.
            proxies: The same by pod of a Gateway.
        """
        for side, series in (
            (self._routers, routers),
            (self._engines, engines),
            (self._proxies, proxies),
        ):
            for one in series:
                for at, scraped in one.points:
                    if at - scraped <= STALE_STEPS * self._window.step:
                        side.setdefault(at, {})[_whose(one)] = _Pod()

    def add_routers(self, texts: TickQueries, read: Callable[[str], Iterable[Series]]) -> None:
        """Read and take in everything about routers and Gateways' proxies."""
        for those, proxies in ((texts.routers, False), (texts.proxies, True)):
            if those is not None:
                self.add_seen(**{"proxies" if proxies else "routers": read(those.seen)})
                self.add_router_counters(read(those.counters), proxies=proxies)
                self.add_router_latency(read(those.latency), proxies=proxies)

    def add_router_counters(self, series: Iterable[Series], *, proxies: bool = False) -> None:
        """Take in counters and gauges by pod of a router, or of a Gateway, and cluster."""
        for one in series:
            name = one.name + one.labels.get(queries.CODE_LABEL, "")
            slot = one.labels.get(queries.CLUSTER_LABEL, "")
            for pod, value in _of(self._proxies if proxies else self._routers, one):
                pod.values[name, slot] = value

    def add_router_latency(self, series: Iterable[Series], *, proxies: bool = False) -> None:
        """Take in buckets likewise; their bounds are milliseconds."""
        for one in series:
            bound = float(one.labels["le"]) / MILLISECONDS
            slot = one.labels.get(queries.CLUSTER_LABEL, "")
            for pod, value in _of(self._proxies if proxies else self._routers, one):
                pod.buckets[queries.LATENCY, slot].append((bound, value))

    def add_engines_started(self, series: Iterable[Series]) -> None:
        """Take in when engine pods' processes started, in seconds since the epoch."""
        for one in series:
            for pod, value in _of(self._engines, one):
                pod.values[queries.ENGINE_STARTED, ""] = value

    def add_engine_scalars(self, series: Iterable[Series]) -> None:
        """Take in counters and gauges by engine pod."""
        for one in series:
            for pod, value in _of(self._engines, one):
                pod.values[one.name, ""] = value

    def add_engine_histogram(self, name: str, series: Iterable[Series]) -> None:
        """Take in one histogram's buckets and sum by engine pod; their unit is seconds."""
        for one in series:
            le = one.labels.get("le", "")
            bound = float(le) if le else None
            for pod, value in _of(self._engines, one):
                if bound is None:
                    pod.values[name, ""] = value
                else:
                    pod.buckets[name, ""].append((bound, value))

    def add_custom(self, key: str, series: Iterable[Series]) -> None:
        """Take in what a query for users' signals returned by engine pod; see `TickQueries`."""
        for one in series:
            le = one.labels.get("le", "")
            for pod, value in _of(self._engines, one):
                if le:
                    pod.buckets[key, ""].append((float(le), value))
                else:
                    pod.values[key, ""] = value

    def add_problem(self, key: str, problem: str) -> None:
        """Take note of why what one query for users' signals should have returned is missing."""
        self._missing[key] = problem

    def timelines(self, needs: Sequence[TickNeed], *, complete: bool = True) -> dict[str, Timeline]:
        """Return what was found for each need, by its key.

        Args:
            needs: What is wanted; a need that begins later than the read gets what is its own.
            complete: Whether what was read reaches the present.
        """
        grid = range(self._window.start_ms, self._window.end_ms + 1, self._window.step_ms)
        owners, clusters = _Owners(needs), _ClusterOwners(needs)
        ticks: dict[str, list[Tick]] = {need.key: [] for need in needs}
        seen: dict[str, float] = {}
        healthy: dict[str, Mapping[str, float]] = {}
        for ms in grid:
            at = ms / 1000
            routers = owners.sort(self._routers.get(at, {}), owners.routers)
            engines = owners.sort(self._engines.get(at, {}), owners.engines)
            proxies = clusters.sort(self._proxies.get(at, {}))
            for need in needs:
                if at < need.since.timestamp():
                    continue
                own = (
                    proxies.get(need.key, {})
                    if need.clusters
                    else routers.get((need.namespace, need.router), {})
                )
                if own:
                    seen[need.key] = at
                healthy[need.key] = _healthy(need, own.values())
                arms = [
                    self._arm(need, arm, own, engines.get((need.namespace, arm.deployment), {}))
                    for arm in (need.baseline, need.canary)
                ]
                tick = Tick(at=at, step=0, weight=0.0, baseline=arms[0], canary=arms[1])
                ticks[need.key].append(in_effect(tick, need.spans))
        end = self._window.end
        return {
            need.key: Timeline(
                ticks=tuple(ticks[need.key]),
                complete=complete,
                healthy=healthy.get(need.key, {}),
                problems=(
                    *silence(need.router, seen.get(need.key), end),
                    *self._problems(need.signals),
                ),
            )
            for need in needs
        }

    def engines(self, at: float, signals: Sequence[SignalQuery] = ()) -> dict[str, EngineSample]:
        """Return what every engine pod that was scraped had counted at an instant, by its name.

        Args:
            at: The instant, in seconds since the epoch.
            signals: Signals of the user's that were read, too.
        """
        pods = self._engines.get(at, {})
        return {_called(whose): self._at_engine(pod, signals) for whose, pod in pods.items()}

    def routers(self, at: float, slot: str) -> dict[str, RouterSample]:
        """Return what every router pod had counted for a slot at an instant, by its name."""
        pods = self._routers.get(at, {})
        return {_called(whose): self._at_router(pod, slot) for whose, pod in pods.items()}

    def _problems(self, signals: Sequence[SignalQuery]) -> list[str]:
        return [
            f"signal {signal.name}: {self._missing[key]}"
            for signal in signals
            for key in keys_of(signal)
            if key in self._missing
        ]

    def _arm(
        self,
        need: TickNeed,
        arm: ArmNeed,
        routers: Mapping[str, _Pod],
        engines: Mapping[str, _Pod],
    ) -> Arm:
        return Arm(
            routers={name: self._at_router(pod, arm.slot) for name, pod in routers.items()},
            engines={name: self._at_engine(pod, need.signals) for name, pod in engines.items()},
            replicas=max(1, len(engines)),
        )

    def _at_router(self, pod: _Pod, slot: str) -> RouterSample:
        """Return what a router that is scraped has counted; see the tables in `queries`.

        Envoy shows some counters, and each histogram, with what they first count: what it does
        not show is zero. Others it shows from its start: without those, nothing is known.
        """
        if (queries.TRIES, slot) not in pod.values:
            return RouterSample(active=_counted(pod.values.get((queries.ACTIVE, slot))))

        def shown(name: str) -> float:
            return pod.values.get((name, slot), 0.0)

        refused = shown(queries.ONLY_REFUSED) + shown(queries.NOBODY_THERE)
        timeouts, resets = shown(queries.TIMEOUTS), shown(queries.RESETS)
        timed_out = shown(queries.BY_CODE + queries.TIMED_OUT)
        unavailable = shown(queries.BY_CODE + queries.UNAVAILABLE) - refused
        # What was cut or timed out before its headers is among the 5xx already, and Envoy does not
        # tell how many those were. Taking as many as there can be never counts a failure twice.
        server_errors = shown(queries.BY_CLASS)
        errors = server_errors - min(timed_out, timeouts) - max(0.0, min(unavailable, resets))
        failed = max(0.0, errors) + timeouts + resets
        if not math.isfinite(server_errors + timed_out + unavailable):
            failed = math.nan
        started = (
            shown(queries.TRIES)
            - shown(queries.RETRIES)
            + shown(queries.REFUSED_TRIES)
            + shown(queries.NOBODY_THERE)
        )
        buckets = pod.buckets.get((queries.LATENCY, slot))
        return RouterSample(
            started=_counted(started),
            failed=_counted(failed),
            unanswered=_counted(refused + timeouts + resets),
            active=_counted(shown(queries.ACTIVE)),
            latency=self._bins(buckets, None) if buckets else _nothing_yet(pod),
        )

    def _at_engine(self, pod: _Pod, signals: Sequence[SignalQuery]) -> EngineSample:
        """Return what an engine that is scraped has counted.

        vLLM shows all that it counts from its start: what it does not show, it does not count.
        """
        fields: dict[str, float | Bins | None] = {
            own: _counted(pod.values.get((theirs, "")))
            for theirs, own in vllm_metrics.SCALARS.items()
        }
        for name, own in vllm_metrics.HISTOGRAMS.items():
            buckets = pod.buckets.get((name, ""))
            if buckets:
                fields[own] = self._bins(buckets, _counted(pod.values.get((name, ""))))
        for name, own in vllm_metrics.MEANS.items():
            count = _counted(pod.values.get((f"{name}_count", "")))
            if count is not None:
                total = _counted(pod.values.get((f"{name}_sum", "")))
                fields[own] = Bins(_NO_BUCKETS, (0.0, count), total)
        started = _counted(pod.values.get((queries.ENGINE_STARTED, "")))
        custom = {
            signal.name: told
            for signal in signals
            if (told := self._custom(pod, signal)) is not None
        }
        return EngineSample(process_started=started, custom=custom, **fields)  # type: ignore[arg-type]

    def _custom(self, pod: _Pod, signal: SignalQuery) -> Share | Bins | None:
        keys = keys_of(signal)
        if isinstance(signal, LatencyQuery):
            buckets = pod.buckets.get((keys[0], ""))
            return self._bins(buckets, _counted(pod.values.get((keys[1], "")))) if buckets else None
        events, total = (_counted(pod.values.get((key, ""))) for key in keys)
        # Counters of rare things are shown with the first of them.
        shown = (keys[0], "") in pod.values
        return None if total is None else Share(events if shown else 0.0, total)

    def _bins(self, buckets: list[tuple[float, float]], total: float | None) -> Bins | None:
        buckets.sort()
        bounds = tuple(bound for bound, _ in buckets)
        counts = tuple(count for _, count in buckets)
        if bounds[-1] != math.inf or not math.isfinite(counts[-1]):
            return None
        return Bins(_the_only(bounds), counts, total)


class _Owners:
    """Tells pods by their names: to which Deployments of interest they belong."""

    def __init__(self, needs: Iterable[TickNeed]) -> None:
        self.routers: dict[tuple[str, str], re.Pattern[str]] = {}
        self.engines: dict[tuple[str, str], re.Pattern[str]] = {}
        for need in needs:
            self._know(self.routers, need.namespace, need.router)
            for arm in (need.baseline, need.canary):
                self._know(self.engines, need.namespace, arm.deployment)
        self._cut = {
            id(side): [key for key in side if queries.is_cut(key[1])]
            for side in (self.routers, self.engines)
        }

    @staticmethod
    def _know(side: dict[tuple[str, str], re.Pattern[str]], namespace: str, name: str) -> None:
        side.setdefault((namespace, name), re.compile(queries.pods_of(name)))

    def sort(
        self, pods: _Pods, side: Mapping[tuple[str, str], re.Pattern[str]]
    ) -> dict[tuple[str, str], dict[str, _Pod]]:
        """Return the pods by the Deployments to which they belong, and their names."""
        sorted_: dict[tuple[str, str], dict[str, _Pod]] = defaultdict(dict)
        cut = self._cut[id(side)]
        for (namespace, name), pod in pods.items():
            # Looking names up, instead of matching each against all, is what makes many quick.
            key = namespace, name.rsplit("-", 2)[0]
            if key in side and side[key].fullmatch(name):
                sorted_[key][name] = pod
            for long in cut:
                if long[0] == namespace and side[long].fullmatch(name):
                    sorted_[long][name] = pod
        return sorted_


class _ClusterOwners:
    """Tells a Gateway's upstream clusters by their names: of which needs they are which slot."""

    def __init__(self, needs: Iterable[TickNeed]) -> None:
        self._of: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for need in needs:
            for cluster, slot in need.clusters:
                self._of[cluster].append((need.key, slot))

    def sort(self, proxies: _Pods) -> dict[str, dict[str, _Pod]]:
        """Return a Gateway's pods as if they were each rollout's own routers, by need and name.

        What belongs to a slot under several names is one cluster that was renamed on the way.
        """
        found: dict[str, dict[str, _Pod]] = defaultdict(dict)
        for whose, proxy in proxies.items():
            called = _called(whose)
            for (name, cluster), value in proxy.values.items():
                for key, slot in self._of.get(cluster, ()):
                    values = found[key].setdefault(called, _Pod()).values
                    values[name, slot] = values.get((name, slot), 0.0) + value
            sums: dict[tuple[str, str, str], dict[float, float]] = defaultdict(dict)
            for (name, cluster), counts in proxy.buckets.items():
                for key, slot in self._of.get(cluster, ()):
                    bins = sums[key, name, slot]
                    for bound, value in counts:
                        bins[bound] = bins.get(bound, 0.0) + value
            for (key, name, slot), bins in sums.items():
                if called in found[key]:
                    found[key][called].buckets[name, slot] = sorted(bins.items())
        for pods in found.values():
            for pod in pods.values():
                for slot in [slot for name, slot in pod.values if name == queries.HEALTHY]:
                    # Envoy Gateway has Envoy show a cluster's counters with what they first count.
                    pod.values.setdefault((queries.TRIES, slot), 0.0)
        return found


def silence(router: str, last_seen: float | None, now: float) -> tuple[str, ...]:
    """Return a problem when a router was scraped and is not any more.

    Args:
        router: Name of its Deployment.
        last_seen: Instant at which any of its pods was scraped, in seconds since the epoch.
        now: The present instant.
    """
    if last_seen is None or last_seen >= now:
        return ()
    return (
        f"Prometheus has not scraped router {router} since "
        f"{datetime.fromtimestamp(last_seen, UTC):%H:%M:%S} UTC: look at its targets",
    )


def _nothing_yet(pod: _Pod) -> Bins:
    """Return the empty histogram of a slot that has answered nothing: with its neighbour's bounds.

    A Gateway's bounds are its own, and a histogram whose bounds change would count from zero.
    """
    for (name, _), counts in pod.buckets.items():
        if name == queries.LATENCY and counts:
            bounds = _the_only(tuple(sorted(bound for bound, _ in counts)))
            return Bins(bounds, (0.0,) * len(bounds))
    return _NOTHING_YET


def _called(whose: tuple[str, str]) -> str:
    return "/".join(part for part in whose if part)


def _whose(series: Series) -> tuple[str, str]:
    return series.labels.get("namespace", ""), series.labels.get("pod", "")


def _of(side: Mapping[float, _Pods], series: Series) -> Iterator[tuple[_Pod, float]]:
    """Yield the pod at each instant at which it was scraped, with the series' value then."""
    whose = _whose(series)
    for at, value in series.points:
        pods = side.get(at)
        if pods is not None and (pod := pods.get(whose)) is not None:
            yield pod, value


def _counted(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _healthy(need: TickNeed, routers: Iterable[_Pod]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pod in routers:
        for slot in (need.baseline.slot, need.canary.slot):
            value = _counted(pod.values.get((queries.HEALTHY, slot)))
            if value is not None:
                found[slot] = min(value, found.get(slot, math.inf))
    return found
