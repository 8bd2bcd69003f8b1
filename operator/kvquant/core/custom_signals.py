"""Signals of the user's: selectors of counters or histograms that the engines' pods export.

A selector, and not any PromQL: the operator adds which pods are meant, so that a rollout can read
nothing of anybody else's with the operator's credentials, and cannot make Prometheus work for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.api.custom_signals import NO_SELECTOR, SELECTOR, CustomSignal
from kvquant.core.scope import Scope

# A pod that two jobs scrape has two series that differ in these alone.
_OF_A_SCRAPE = "job,endpoint,service,prometheus,prometheus_replica"


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric's name and matchers.

    Attributes:
        metric: The name; of a histogram, without its ending.
        matchers: As PromQL has them between the braces; empty for none.
    """

    metric: str
    matchers: str = ""

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read a selector such as `tool_calls_total{outcome="error"}`.

        Raises:
            ValueError: It is anything else.
        """
        text = text.strip()
        if not SELECTOR.fullmatch(text):
            raise ValueError(f"{text!r}: {NO_SELECTOR}")
        metric, _, matchers = text.removesuffix("}").partition("{")
        return cls(metric.strip(), matchers.strip().rstrip(",").rstrip())

    def __str__(self) -> str:
        """Return it as PromQL."""
        return f"{self.metric}{{{self.matchers}}}" if self.matchers else self.metric


@dataclass(frozen=True, slots=True)
class ShareQuery:
    """Two counters, of which the first counts a part of what the second counts.

    Attributes:
        name: By which the analysis knows the signal.
        events: Counter of what is better or worse.
        total: Counter of everything.
    """

    name: str
    events: Selector
    total: Selector


@dataclass(frozen=True, slots=True)
class LatencyQuery:
    """A histogram of seconds.

    Attributes:
        name: By which the analysis knows the signal.
        histogram: Its name without ending, and matchers.
    """

    name: str
    histogram: Selector


SignalQuery = ShareQuery | LatencyQuery


def queries_of(signals: Sequence[CustomSignal]) -> tuple[SignalQuery, ...]:
    """Return what the spec's signals need of Prometheus.

    Args:
        signals: As the spec has them.
    """
    found: list[SignalQuery] = []
    for signal in signals:
        if signal.latency is not None:
            histogram = Selector.parse(signal.latency.histogram)
            found.append(LatencyQuery(signal.name, histogram))
        elif signal.ratio is not None:
            events, total = Selector.parse(signal.ratio.events), Selector.parse(signal.ratio.total)
            found.append(ShareQuery(signal.name, events, total))
    return tuple(found)


def counter_text(selector: Selector, where: list[str], scope: Scope) -> str:
    """Return the query for a counter, by pod."""
    own = [selector.matchers] if selector.matchers else []
    text = selector.metric + scope.select(*own, *where)
    by = f"{scope.namespace},{scope.pod}"
    return f"sum by({by})(max without({_OF_A_SCRAPE})({text}))"


def histogram_texts(selector: Selector, where: list[str], scope: Scope) -> dict[str, str]:
    """Return the queries for a histogram's buckets, by pod and `le`, and for its sum, by pod."""
    by = f"{scope.namespace},{scope.pod}"
    own = [selector.matchers] if selector.matchers else []
    within = scope.select(*own, *where)
    return {
        part: f"sum by({labels})(max without({_OF_A_SCRAPE})({selector.metric}_{part}{within}))"
        for part, labels in (("bucket", f"{by},le"), ("sum", by))
    }
