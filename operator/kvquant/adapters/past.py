"""Prometheus as a backtest asks it: what the pods of any selector had counted, long ago."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvquant.adapters.metrics import MOST_INSTANTS, MOST_POINTS, PrometheusMetrics
from kvquant.core import queries
from kvquant.core.backtest.question import Moment
from kvquant.core.custom_signals import Selector, SignalQuery
from kvquant.core.tick_queries import EngineTexts, RouterTexts
from kvquant.core.ticking import Scrapes, first_instant, instants, last_instant
from kvquant.engines import vllm_metrics

FEWEST_INSTANTS = 20
"""Of one answer, however many pods there are."""

SERIES_OF_A_POD = 40
"""What one query returns for one pod, roughly: the buckets of a histogram."""

FINISHED = "vllm:request_success_total"


@dataclass(frozen=True, slots=True)
class Scraped:
    """A pod, or an address without a pod's name, that was scraped.

    Attributes:
        pod: The value of the label that holds a pod's name; empty without that label.
        instance: The address.
        samples: How many samples of it there are.
    """

    pod: str
    instance: str
    samples: float


class PrometheusPast(PrometheusMetrics):
    """Reads stretches of the past by selectors of the user's."""

    def scraped(self, where: Sequence[str], start: datetime, end: datetime) -> list[Scraped]:
        """Return the engines that were scraped in a stretch of time.

        Args:
            where: Matchers of their pods; none asks for every engine.
            start: Its begin.
            end: Its end.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        labels = f"{self._scope.namespace},{self._scope.pod},instance"
        witness = vllm_metrics.WITNESS + self._scope.select(*where)
        text = f"max by({labels})(count_over_time({witness}[{_length(start, end)}]))"
        return [
            Scraped(
                pod="/".join(
                    labels[name]
                    for name in (self._scope.namespace, self._scope.pod)
                    if labels.get(self._scope.pod) and labels.get(name)
                ),
                instance=labels.get("instance", ""),
                samples=value,
            )
            for labels, value in self._instant(text, end)
        ]

    def finished(self, where: Sequence[str], start: datetime, end: datetime) -> float:
        """Return how many requests engines finished in a stretch of time.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        counter = FINISHED + self._scope.select(*where)
        text = f"sum(increase({counter}[{_length(start, end)}]))"
        return sum(value for _, value in self._instant(text, end))

    def shown(
        self, selector: Selector, where: Sequence[str], start: datetime, end: datetime
    ) -> bool:
        """Tell whether any pod has shown a metric of the user's in a stretch of time.

        Args:
            selector: The metric, under its whole name.
            where: Matchers of the pods.
            start: Its begin.
            end: Its end.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        own = [selector.matchers] if selector.matchers else []
        series = selector.metric + self._scope.select(*own, *where)
        text = f"count(count_over_time({series}[{_length(start, end)}]))"
        return any(value > 0 for _, value in self._instant(text, end))

    def moments(
        self,
        engines: Sequence[str],
        routers: Sequence[str] | None,
        start: datetime,
        end: datetime,
        pods: int,
        slots: Sequence[str] = (),
        signals: Sequence[SignalQuery] = (),
    ) -> Iterator[Moment]:
        """Yield what the pods had counted at each instant of the grid, oldest first.

        Args:
            engines: Matchers of the engines' pods.
            routers: Matchers of the routers' pods; None asks for no router.
            start: First instant of interest.
            end: Last one.
            pods: Engines that are expected, by which the past is read in parts.
            slots: Slots of the routers.
            signals: Signals of the user's.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        step = self.grid.total_seconds()
        first, last = first_instant(start, self.grid), last_instant(end, timedelta(0), self.grid)
        most = MOST_POINTS // (SERIES_OF_A_POD * max(1, pods))
        most = max(FEWEST_INSTANTS, min(MOST_INSTANTS, most))
        texts = EngineTexts.of(engines, self._scope, signals)
        of_routers = None if routers is None else RouterTexts.of(routers, slots, self._scope)
        while (
            window := instants(first, min(last, first + (most - 1) * step), self.grid)
        ) is not None:
            scrapes = self._scrapes(texts, of_routers, window)
            for ms in range(window.start_ms, window.end_ms + 1, window.step_ms):
                at = ms / 1000
                yield Moment(
                    at,
                    scrapes.engines(at, signals),
                    {slot: scrapes.routers(at, slot) for slot in slots},
                )
            first = window.end + step

    def _scrapes(
        self, engines: EngineTexts, routers: RouterTexts | None, window: queries.Window
    ) -> Scrapes:
        scrapes = Scrapes(window)
        try:
            scrapes.add_seen(
                routers=() if routers is None else self._read(routers.seen, window),
                engines=self._read(engines.seen, window),
            )
            if routers is not None:
                scrapes.add_router_counters(self._read(routers.counters, window))
                scrapes.add_router_latency(self._read(routers.latency, window))
            scrapes.add_engines_started(self._read(engines.started, window))
            scrapes.add_engine_scalars(self._read(engines.scalars, window))
            for name, text in engines.histograms.items():
                scrapes.add_engine_histogram(name, self._read(text, window))
            for key, text in engines.custom.items():
                scrapes.add_custom(key, self._read(text, window))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error
        return scrapes

    def _instant(self, query: str, at: datetime) -> list[tuple[Mapping[str, str], float]]:
        answer = self._ask(
            self._prometheus.custom_query, query, params={"time": f"{at.timestamp():.3f}"}
        )
        try:
            return [(entry["metric"], float(entry["value"][1])) for entry in answer]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._nonsense(error) from error


def _length(start: datetime, end: datetime) -> str:
    return f"{max(1, round((end - start).total_seconds() * 1000))}ms"
