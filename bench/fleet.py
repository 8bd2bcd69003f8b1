"""A made-up fleet: what Prometheus says of many rollouts, query by query.

Every rollout has two router pods and pools of some engine pods; all serve the same requests at a
steady rate. The series are those of our own queries, so this is no judge of whether they are right;
it is for counting them and for measuring what many of them cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvquant.core import queries
from kvquant.core.counters import Series
from kvquant.core.envoy_bootstrap import LATENCY_BOUNDS_MS
from kvquant.core.evidence import ArmNeed
from kvquant.core.scope import EVERYWHERE
from kvquant.core.tick_queries import ROUTER_COUNTERS, TickQueries
from kvquant.core.ticking import GRID, Scrapes, Span, TickNeed, Timeline, instants
from kvquant.engines import vllm_metrics

ENGINE_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50)
ROLLOUTS_OF_A_NAMESPACE = 20

_MEANS = [f"{name}_{part}" for name in vllm_metrics.MEANS for part in ("count", "sum")]

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many rollouts alike.

    Attributes:
        rollouts: Their number.
        pods: Engine pods of each pool.
        routers: Router pods of each rollout.
        began: When everything started, in seconds since the epoch.
        rate: Requests each second to each pool.
    """

    rollouts: int
    pods: int = 4
    routers: int = 2
    began: float = 1_800_000_000.0
    rate: float = 8.0

    def needs(self, since: float) -> list[TickNeed]:
        """Return what each rollout asks for, from an instant on in seconds since the epoch."""
        begin = datetime.fromtimestamp(since, UTC)
        span = Span(begin, 1, 50.0, 50.0, self.pods, self.pods, self.pods)
        return [
            TickNeed(
                key=f"{self._namespace(index)}/r{index}",
                namespace=self._namespace(index),
                router=f"model{index}-router",
                baseline=ArmNeed("blue", f"model{index}"),
                canary=ArmNeed("green", f"model{index}-pool"),
                since=begin,
                spans=(span,),
            )
            for index in range(self.rollouts)
        ]

    def timelines(
        self, needs: Sequence[TickNeed], first: float, last: float
    ) -> dict[str, Timeline]:
        """Return each need's ticks from the first instant to the last, by its key.

        Both are seconds since the epoch and lie on the grid.
        """
        window = instants(first, last, GRID)
        if window is None:
            raise ValueError(f"there is no instant from {first} to {last}")
        texts = TickQueries.of(needs, EVERYWHERE)
        times = [ms / 1000 for ms in range(window.start_ms, window.end_ms + 1, window.step_ms)]

        def read(query: str) -> list[Series]:
            return [Series(labels, list(points)) for labels, points in self._series(query, times)]

        scrapes = Scrapes(window)
        scrapes.add_routers(texts, read)
        scrapes.add_seen(engines=read(texts.engines_seen))
        scrapes.add_engines_started(read(texts.engines_started))
        scrapes.add_engine_scalars(read(texts.engine_scalars))
        for name, text in texts.engine_histograms.items():
            scrapes.add_engine_histogram(name, read(text))
        return scrapes.timelines(needs)

    def matrix(self, query: str, start: float, end: float, step: float) -> list[Any]:
        """Return the `result` of a range query of ours, as Prometheus' HTTP API writes it."""
        times = [start + i * step for i in range(round((end - start) / step) + 1)]
        return [
            {"metric": labels, "values": [[t, f"{v:.10g}"] for t, v in points]}
            for labels, points in self._series(query, times)
        ]

    def _namespace(self, index: int) -> str:
        return f"team{index // ROLLOUTS_OF_A_NAMESPACE}"

    def _series(
        self, query: str, times: Sequence[float]
    ) -> Iterator[tuple[Labels, Iterator[tuple[float, float]]]]:
        for labels, level, slope in self._lines(query):
            yield labels, ((t, level + slope * (t - self.began)) for t in times)

    def _lines(self, query: str) -> Iterator[tuple[Labels, float, float]]:
        """Yield the labels of each series, its value at the begin and by how much it rises."""
        histogram = next((n for n in vllm_metrics.HISTOGRAMS if n in query), None)
        for index in range(self.rollouts):
            routers, engines = list(self._routers(index)), list(self._engines(index))
            if "timestamp(" in query:
                for pod in routers if queries.ROUTER_UPTIME in query else engines:
                    yield pod, self.began - 5, 1.0
            elif queries.LATENCY in query:
                yield from self._router_buckets(routers)
            elif queries.TRIES in query:
                yield from self._router_counters(routers)
            elif queries.ENGINE_STARTED in query:
                for pod in engines:
                    yield pod, self.began - 600, 0.0
            elif histogram is not None:
                yield from self._engine_buckets(engines, histogram)
            else:
                for pod in engines:
                    for name in (*vllm_metrics.SCALARS, *_MEANS):
                        yield {"__name__": name, **pod}, *self._scalar(name)

    def _scalar(self, name: str) -> tuple[float, float]:
        """Return an engine's value at the begin and its rise: it serves, and nothing waits."""
        if name.endswith("_running"):
            return 3.0, 0.0
        if name.endswith("_waiting") or "preemptions" in name:
            return 0.0, 0.0
        return 0.0, self.rate / self.pods

    def _routers(self, index: int) -> Iterator[dict[str, str]]:
        for pod in range(self.routers):
            name = f"model{index}-router-7d9f8b6c5-aaaa{pod}"
            yield {"namespace": self._namespace(index), "pod": name}

    def _engines(self, index: int) -> Iterator[dict[str, str]]:
        for pool in (f"model{index}", f"model{index}-pool"):
            for pod in range(self.pods):
                name = f"{pool}-7d9f8b6c5-aaa{pod // 10}{pod % 10}"
                yield {"namespace": self._namespace(index), "pod": name}

    def _router_counters(self, pods: list[dict[str, str]]) -> Iterator[tuple[Labels, float, float]]:
        for pod in pods:
            for slot in ("blue", "green"):
                for name in ROUTER_COUNTERS:
                    labels = {"__name__": name, "envoy_cluster_name": slot, **pod}
                    if name == queries.TRIES:
                        yield labels, 0.0, self.rate / self.routers
                    elif name in (queries.ACTIVE, queries.HEALTHY):
                        yield labels, float(self.pods), 0.0
                    elif name not in (queries.BY_CLASS, queries.BY_CODE):
                        yield labels, 0.0, 0.0

    def _router_buckets(self, pods: list[dict[str, str]]) -> Iterator[tuple[Labels, float, float]]:
        bounds = [*(float(bound) for bound in LATENCY_BOUNDS_MS), math.inf]
        for pod in pods:
            for slot in ("blue", "green"):
                for bound in bounds:
                    labels = {"envoy_cluster_name": slot, "le": _le(bound), **pod}
                    yield labels, 0.0, self.rate / self.routers * _share(bound / 1000)

    def _engine_buckets(
        self, pods: list[dict[str, str]], name: str
    ) -> Iterator[tuple[Labels, float, float]]:
        rate = self.rate / self.pods
        for pod in pods:
            for bound in (*ENGINE_BOUNDS, math.inf):
                yield (
                    {"__name__": f"{name}_bucket", "le": _le(bound), **pod},
                    0.0,
                    rate * _share(bound),
                )
            yield {"__name__": f"{name}_sum", **pod}, 0.0, 2 * rate


def _le(bound: float) -> str:
    return "+Inf" if bound == math.inf else f"{bound:g}"


def _share(seconds: float) -> float:
    """Return the share of requests that take no longer: exponential with a mean of 2 s."""
    return 1 - math.exp(-seconds / 2)
