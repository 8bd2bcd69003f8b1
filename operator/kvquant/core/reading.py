"""From the series that Prometheus returned to the evidence that one rollout asked for."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate

from kvquant.core import queries
from kvquant.core.counters import Process, Series, increase, process_of, within
from kvquant.core.evidence import (
    ArmNeed,
    ArmSample,
    CacheConfig,
    Evidence,
    EvidenceNeed,
    Histogram,
)

MILLISECONDS = 1000.0


@dataclass(frozen=True, slots=True)
class Pod:
    """A scraped pod: its process and its series."""

    name: str
    process: Process
    series: list[Series]


@dataclass(slots=True)
class Readings:
    """What the queries of one call returned, by namespace and pod."""

    window: queries.Window
    routers: dict[str, list[Pod]] = field(default_factory=dict)
    engines: dict[str, list[Pod]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, window: queries.Window, router: Iterable[Series], engines: Iterable[Series]
    ) -> Readings:
        """Sort series by namespace and pod.

        Args:
            window: The range that was read.
            router: Counters and latencies of the routers.
            engines: Counters of the engines.
        """
        return cls(window, _pods(router, _router_ages), _pods(engines, _engine_ages))

    def evidence(self, need: EvidenceNeed, at: datetime) -> Evidence:
        """Return what is known for one need."""
        now = self.window.end
        since = need.since.timestamp()
        named = re.compile(queries.pods_of(need.router))
        routers = [p for p in self.routers.get(need.namespace, ()) if named.fullmatch(p.name)]
        canary = self._arm(need, need.canary, routers, since, now)
        baseline = self._arm(need, need.baseline, routers, since, now)
        problems = _silence(need.router, routers, now)
        if need.baseline_since is None:
            canary, baseline = _with_equal_bounds(canary, baseline)
            return Evidence(at, baseline, canary, problems)
        # Rounded outwards to the grid, see `kvquant.core.queries.window`. The requests that were in
        # flight when the window ended are the baseline's own, too.
        step = self.window.step
        begin = need.baseline_since.timestamp() - step
        until = min(now, (need.baseline_until or need.since).timestamp() + step)
        earlier = self._arm(need, need.baseline, routers, begin, until)
        canary, earlier = _with_equal_bounds(canary, earlier)
        return Evidence(at, earlier, canary, problems, baseline_now=baseline)

    def _arm(
        self, need: EvidenceNeed, arm: ArmNeed, routers: Sequence[Pod], since: float, until: float
    ) -> ArmSample:
        named = re.compile(queries.pods_of(arm.deployment))
        engines = [p for p in self.engines.get(need.namespace, ()) if named.fullmatch(p.name)]
        # What nobody sees any more is no data, however much it had counted. A window that is over
        # stays what it was.
        lately = self.window.end if until >= self.window.end else since
        sample = ArmSample()
        if _are_seen(routers, lately, until):
            sample = _at_router(arm.slot, routers, since, until)
            sample = replace(
                sample,
                active=_gauge(queries.ACTIVE, arm.slot, routers, self.window.end, sum),
                healthy=_gauge(queries.HEALTHY, arm.slot, routers, self.window.end, min),
            )
        if _are_seen(engines, lately, until):
            sample = replace(
                sample,
                preemptions=_rise(engines, since, until, queries.PREEMPTIONS),
                finished=_rise(engines, since, until, queries.FINISHED),
            )
        return replace(sample, seconds=max(0.0, until - since))


def _at_router(slot: str, routers: Sequence[Pod], since: float, until: float) -> ArmSample:
    """Return what the routers saw of a slot; see the table in `kvquant.core.queries`."""

    def rise(name: str, **labels: str) -> float | None:
        return _rise(routers, since, until, name, **{queries.CLUSTER_LABEL: slot}, **labels)

    timeouts = rise(queries.TIMEOUTS)
    if timeouts is None:
        return ArmSample()
    # Envoy shows that one from its start; the others appear with what they first count.
    headers, resets = rise(queries.COMPLETED) or 0.0, rise(queries.RESETS) or 0.0
    errors = rise(queries.BY_CLASS, **{queries.CLASS_LABEL: queries.SERVER_ERRORS}) or 0.0
    timed_out = rise(queries.BY_CODE, **{queries.CODE_LABEL: queries.TIMED_OUT}) or 0.0
    unavailable = rise(queries.BY_CODE, **{queries.CODE_LABEL: queries.UNAVAILABLE}) or 0.0
    if not math.isfinite(headers + timeouts + resets + errors + timed_out + unavailable):
        return ArmSample()
    # What was cut or timed out before its headers is among the 5xx already, and Envoy does not
    # tell how many those were. Taking as many as there can be never counts a failure twice.
    errors -= min(timed_out, timeouts) + min(unavailable, resets)
    return ArmSample(
        completed=max(0.0, headers - timeouts - resets),
        errors_5xx=max(0.0, errors),
        timeouts=timeouts,
        resets=resets,
        latency=_latency(slot, routers, since, until),
    )


def _gauge(
    name: str,
    slot: str,
    routers: Sequence[Pod],
    now: float,
    combine: Callable[[list[float]], float],
) -> float | None:
    """Return a slot's gauge at an instant, combined over the routers that were seen then."""
    gauges = [
        value
        for pod in routers
        for one in pod.series
        if one.name == name and one.labels.get(queries.CLUSTER_LABEL) == slot
        for _, value in within(one.points, now, now)
    ]
    return combine(gauges) if gauges and math.isfinite(sum(gauges)) else None


def _latency(slot: str, routers: Sequence[Pod], since: float, until: float) -> Histogram | None:
    per_pod: list[dict[float, float]] = []
    for pod in routers:
        buckets: dict[float, float] = {}
        for one in pod.series:
            if one.name == queries.LATENCY and one.labels.get(queries.CLUSTER_LABEL) == slot:
                rise = increase(one, pod.process, since, until)
                if rise is not None:
                    buckets[float(one.labels["le"]) / MILLISECONDS] = rise
        if buckets:
            per_pod.append(buckets)
    if not per_pod:
        return None
    # Routers of two versions may have different buckets: only what all have can be added.
    bounds = sorted(set.intersection(*(set(buckets) for buckets in per_pod)))
    counts = [sum(buckets[bound] for buckets in per_pod) for bound in bounds]
    if any(math.isnan(count) for count in counts):
        return None
    # Buckets are cumulative; a bucket that began to be shown later must not break that.
    return Histogram(tuple(bounds), tuple(accumulate(counts, max)))


def _rise(
    pods: Sequence[Pod], since: float, until: float, name: str, **labels: str
) -> float | None:
    """Return by how much a counter rose over all pods; None when none of them has it.

    NaN when one of them has no sound sample of it, because a part is not the whole.
    """
    rises = [
        rise
        for pod in pods
        for one in pod.series
        if one.name == name and labels.items() <= one.labels.items()
        if (rise := increase(one, pod.process, since, until)) is not None
    ]
    return sum(rises) if rises else None


def _with_equal_bounds(one: ArmSample, other: ArmSample) -> tuple[ArmSample, ArmSample]:
    """Fill in the empty histogram of an arm that has had no request: Envoy shows none then."""
    if one.latency is None and one.completed == 0 and other.latency is not None:
        one = replace(one, latency=_empty(other.latency))
    elif other.latency is None and other.completed == 0 and one.latency is not None:
        other = replace(other, latency=_empty(one.latency))
    return one, other


def _empty(like: Histogram) -> Histogram:
    return Histogram(like.bounds, (0.0,) * len(like.bounds))


def _are_seen(pods: Sequence[Pod], since: float, until: float) -> bool:
    return any(since <= t <= until for pod in pods for t in pod.process.seen)


def _silence(router: str, pods: Sequence[Pod], now: float) -> tuple[str, ...]:
    """Return a problem when routers were scraped in the window and are not any more."""
    if not pods or _are_seen(pods, now, now):
        return ()
    last = datetime.fromtimestamp(max(pod.process.seen[-1] for pod in pods), UTC)
    return (
        f"Prometheus has not scraped router {router} since {last:%H:%M:%S} UTC: look at its "
        "targets",
    )


def _pods(
    series: Iterable[Series], ages: Callable[[Series], dict[float, float]]
) -> dict[str, list[Pod]]:
    grouped: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        if one.points:
            grouped[one.labels.get("namespace", ""), one.labels.get("pod", "")].append(one)
    pods: dict[str, list[Pod]] = defaultdict(list)
    for (namespace, name), own in grouped.items():
        told = [known for one in own if (known := ages(one))]
        # With a second process in the pod, such as a sidecar, nobody knows whose age it is.
        pods[namespace].append(Pod(name, process_of(own, told[0] if len(told) == 1 else {}), own))
    return pods


def _router_ages(series: Series) -> dict[float, float]:
    return dict(series.points) if series.name == queries.ROUTER_UPTIME else {}


def _engine_ages(series: Series) -> dict[float, float]:
    if series.name != queries.ENGINE_STARTED:
        return {}
    return {t: t - started for t, started in series.points}


def cache_config(labels: Iterable[tuple[Series, float]]) -> CacheConfig | None:
    """Return a pod's cache config from its series and when each was sampled.

    A restarted engine may show twice until its old series is gone: the younger counts. Of
    several engines in one pod the one with the smallest cache speaks, with the oldest sample.
    """
    by_engine: dict[str, tuple[Series, float]] = {}
    for series, sampled in labels:
        engine = series.labels.get("engine", "")
        if engine not in by_engine or sampled > by_engine[engine][1]:
            by_engine[engine] = series, sampled
    configs = [_config(series, sampled) for series, sampled in by_engine.values()]
    if not configs:
        return None
    oldest = min(config.sampled_at for config in configs)
    return replace(min(configs, key=lambda c: c.capacity_tokens or 0), sampled_at=oldest)


def _config(series: Series, sampled: float) -> CacheConfig:
    labels = series.labels
    blocks, size = _integer(labels.get("num_gpu_blocks")), _integer(labels.get("block_size"))
    capacity = _integer(labels.get("kv_cache_size_tokens"))
    if capacity is None and blocks is not None and size is not None:
        capacity = blocks * size
    skipped = labels.get("kv_cache_dtype_skip_layers", "")
    return CacheConfig(
        pod=labels.get("pod", ""),
        sampled_at=datetime.fromtimestamp(sampled, UTC),
        dtype=labels.get("cache_dtype", "unknown"),
        capacity_tokens=capacity,
        memory_bytes=_integer(labels.get("kv_cache_memory_bytes")),
        prefix_caching={"True": True, "False": False}.get(labels.get("enable_prefix_caching", "")),
        skip_layers=None if skipped in ("", "None", "[]", "()") else skipped,
        block_size=size,
    )


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
