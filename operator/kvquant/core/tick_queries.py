"""The PromQL texts that ticks are made of: one set for all rollouts together.

Every query aggregates away what the analysis does not ask for. That keeps the answers small, and a
pod that two jobs scrape, or two Prometheus replicas, counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kvquant.core import queries
from kvquant.core.custom_signals import (
    LatencyQuery,
    Selector,
    SignalQuery,
    counter_text,
    histogram_texts,
)
from kvquant.core.evidence import ArmNeed
from kvquant.core.scope import Scope
from kvquant.engines import vllm_metrics

ROUTER_COUNTERS = (
    queries.TRIES,
    queries.RETRIES,
    queries.REFUSED_TRIES,
    queries.ONLY_REFUSED,
    queries.NOBODY_THERE,
    queries.BY_CLASS,
    queries.BY_CODE,
    queries.TIMEOUTS,
    queries.RESETS,
    queries.ACTIVE,
    queries.HEALTHY,
)

MOST_NAMED = 30
"""Rollouts whose pods a selector names. Of more, Prometheus would match each pod of the namespaces
against a long expression; it is quicker to take all pods there and to sort them here."""


class Wanted(Protocol):
    """What a selector must know of a rollout."""

    @property
    def namespace(self) -> str:
        """Namespace of router and pools."""

    @property
    def router(self) -> str:
        """Name of the router's Deployment."""

    @property
    def baseline(self) -> ArmNeed:
        """The pool that serves today."""

    @property
    def canary(self) -> ArmNeed:
        """The pool with the quantized cache."""

    @property
    def signals(self) -> Sequence[SignalQuery]:
        """Signals of the user's."""

    @property
    def clusters(self) -> Sequence[tuple[str, str]]:
        """A Gateway's upstream clusters and their slots; none with the built-in router."""


@dataclass(frozen=True, slots=True)
class RouterTexts:
    """What is asked of routers; see `TickQueries`."""

    seen: str
    counters: str
    latency: str

    @classmethod
    def of(cls, where: Sequence[str], slots: Iterable[str], scope: Scope) -> RouterTexts:
        """Return the texts.

        Args:
            where: Matchers of the routers' pods.
            slots: Slots of interest.
            scope: How Prometheus labels the pods.
        """
        slots = set(slots)
        pod = f"{scope.namespace},{scope.pod}"
        slot, code, cls_ = queries.CLUSTER_LABEL, queries.CODE_LABEL, queries.CLASS_LABEL
        counters = scope.select(
            f'__name__=~"{"|".join(ROUTER_COUNTERS)}"',
            *where,
            queries.one_of(slot, slots),
            # The first alternative is empty, because each label is missing in most of the metrics.
            queries.one_of(cls_, ["", queries.SERVER_ERRORS]),
            queries.one_of(code, ["", queries.UNAVAILABLE, queries.TIMED_OUT]),
        )
        latency = queries.LATENCY + scope.select(*where, queries.one_of(slot, slots))
        uptime = queries.ROUTER_UPTIME + scope.select(*where)
        return cls(
            # VictoriaMetrics tells the time of samples that have ended, too.
            seen=f"max by({pod})(timestamp({uptime}) and {uptime})",
            counters=f"max by(__name__,{pod},{slot},{cls_},{code})({counters})",
            latency=f"max by({pod},{slot},le)({latency})",
        )

    @classmethod
    def of_proxies(cls, clusters: Iterable[str], scope: Scope) -> RouterTexts:
        """Return the texts for Gateways, whose pods may be anywhere: their clusters tell them.

        Args:
            clusters: Upstream clusters of interest, by their full names.
            scope: How Prometheus labels the pods.
        """
        clusters = list(clusters)
        texts = cls.of((), clusters, scope)
        known = queries.HEALTHY + scope.select(queries.one_of(queries.CLUSTER_LABEL, clusters))
        pod = f"{scope.namespace},{scope.pod}"
        return replace(texts, seen=f"max by({pod})(timestamp({known}) and {known})")


@dataclass(frozen=True, slots=True)
class EngineTexts:
    """What is asked of engines; see `TickQueries`."""

    seen: str
    started: str
    scalars: str
    histograms: Mapping[str, str]
    custom: Mapping[str, str]

    @classmethod
    def of(
        cls, where: Sequence[str], scope: Scope, signals: Sequence[SignalQuery] = ()
    ) -> EngineTexts:
        """Return the texts.

        Args:
            where: Matchers of the engines' pods.
            scope: How Prometheus labels the pods.
            signals: Signals of the user's, all of them for all of these pods.
        """
        pod = f"{scope.namespace},{scope.pod}"
        witness = vllm_metrics.WITNESS + scope.select(*where)
        means = [f"{name}_{part}" for name in vllm_metrics.MEANS for part in ("count", "sum")]
        started = queries.ENGINE_STARTED + scope.select(*where)
        return cls(
            seen=f"max by({pod})(timestamp({witness}) and {witness})",
            # A sidecar has a start of its own: only what is scraped from the engine's port counts.
            started=f"max by({pod})({started} and on({pod},instance) {witness})",
            scalars=_summed(scope, where, [*vllm_metrics.SCALARS, *means]),
            histograms={
                name: _summed(scope, where, (f"{name}_bucket", f"{name}_sum"))
                for name in vllm_metrics.HISTOGRAMS
            },
            custom={
                key: text
                for signal in signals
                for key, text in _texts_of(signal, list(where), scope).items()
            },
        )


@dataclass(frozen=True, slots=True)
class TickQueries:
    """The texts, each to be asked over the same instants.

    Attributes:
        engines_seen: When each engine pod's newest sample was scraped.
        engines_started: When each engine pod's process started.
        engine_scalars: Counters, gauges, and counts and sums of histograms by engine pod.
        engine_histograms: Buckets and sums by engine pod, a query for each histogram's name.
        custom: What signals of users' need by engine pod: each selector once, whoever asks for it.
        routers: What is asked of the built-in routers, by slot; None when there is none.
        proxies: What is asked of Gateways' proxies, by cluster; None when there is none.
    """

    routers: RouterTexts | None
    proxies: RouterTexts | None
    engines_seen: str
    engines_started: str
    engine_scalars: str
    engine_histograms: Mapping[str, str]
    custom: Mapping[str, str]

    @classmethod
    def of(cls, needs: Sequence[Wanted], scope: Scope) -> TickQueries:
        """Return the texts that serve all the rollouts.

        Args:
            needs: The rollouts; at least one.
            scope: How Prometheus labels their pods.
        """
        own = [need for need in needs if not need.clusters]
        slots = {arm.slot for need in own for arm in (need.baseline, need.canary)}
        clusters = sorted({name for need in needs for name, _ in need.clusters})
        routers = _where(own, [n.router for n in own], scope)
        engines = EngineTexts.of(_engines(needs, scope), scope)
        return cls(
            routers=RouterTexts.of(routers, slots, scope) if own else None,
            proxies=RouterTexts.of_proxies(clusters, scope) if clusters else None,
            engines_seen=engines.seen,
            engines_started=engines.started,
            engine_scalars=engines.scalars,
            engine_histograms=engines.histograms,
            custom=_custom(needs, scope),
        )


def _summed(scope: Scope, where: Sequence[str], names: Sequence[str]) -> str:
    """Sum what one process counts in parts, after what is scraped twice was taken once."""
    selector = scope.select(f'__name__=~"{"|".join(names)}"', *where)
    by = f"__name__,{scope.namespace},{scope.pod},le"
    return f"sum by({by})(max by({by},{','.join(vllm_metrics.PARTS)})({selector}))"


def _custom(needs: Sequence[Wanted], scope: Scope) -> dict[str, str]:
    """Return the queries that the signals need, each for the pods of all that share it."""
    wanted: dict[Selector, list[Wanted]] = defaultdict(list)
    histograms: dict[Selector, list[Wanted]] = defaultdict(list)
    for need in needs:
        for signal in need.signals:
            if isinstance(signal, LatencyQuery):
                histograms[signal.histogram].append(need)
            else:
                for selector in {signal.events, signal.total}:
                    wanted[selector].append(need)
    texts: dict[str, str] = {}
    for selector, sharing in wanted.items():
        texts[str(selector)] = counter_text(selector, _engines(sharing, scope), scope)
    for selector, sharing in histograms.items():
        parts = histogram_texts(selector, _engines(sharing, scope), scope)
        texts |= {_part_of(selector, part): text for part, text in parts.items()}
    return texts


def _texts_of(signal: SignalQuery, where: list[str], scope: Scope) -> dict[str, str]:
    """Return the queries that one signal needs for the pods of some matchers."""
    if isinstance(signal, LatencyQuery):
        parts = histogram_texts(signal.histogram, where, scope)
        return {_part_of(signal.histogram, part): text for part, text in parts.items()}
    return {
        str(selector): counter_text(selector, where, scope)
        for selector in (signal.events, signal.total)
    }


def keys_of(signal: SignalQuery) -> tuple[str, str]:
    """Return by which keys `TickQueries.custom` has a signal's queries.

    Those of the events and of the total, or those of the histogram's buckets and of its sum.
    """
    if isinstance(signal, LatencyQuery):
        return _part_of(signal.histogram, "bucket"), _part_of(signal.histogram, "sum")
    return str(signal.events), str(signal.total)


def _part_of(histogram: Selector, part: str) -> str:
    return f"{part} of {histogram}"


def _engines(needs: Sequence[Wanted], scope: Scope) -> list[str]:
    return _where(needs, [a.deployment for n in needs for a in (n.baseline, n.canary)], scope)


def _where(needs: Sequence[Wanted], deployments: Sequence[str], scope: Scope) -> list[str]:
    matchers = [queries.one_of(scope.namespace, [need.namespace for need in needs])]
    if len(needs) <= MOST_NAMED:
        matchers.append(queries.any_pod_of(scope.pod, deployments))
    return matchers
