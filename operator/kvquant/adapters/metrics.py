"""Prometheus, or what speaks its language, behind the port `Metrics`.

`prometheus-api-client` sends the queries. What it leaves to its user is done here: time-outs for
everything, few and short retries, warnings of partial answers, and numbers instead of strings.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect

from kvquant.adapters import prometheus_http
from kvquant.adapters.prometheus_http import (
    AccessRefusedError,
    PartialAnswerError,
    RedirectedError,
)
from kvquant.adapters.prometheus_secret import MountedSecret
from kvquant.core import queries, shadow_reading
from kvquant.core.alerts import PolledAlert, polled
from kvquant.core.counters import Series
from kvquant.core.evidence import CacheConfig, Evidence, EvidenceNeed
from kvquant.core.reading import Readings, cache_config
from kvquant.core.scope import EVERYWHERE, Scope
from kvquant.core.shadow_reading import ShadowEvidence, ShadowNeed
from kvquant.core.tick_queries import TickQueries
from kvquant.core.ticking import (
    GRID,
    Scrapes,
    TickNeed,
    Timeline,
    first_instant,
    instants,
    last_instant,
)
from kvquant.errors import MetricsError

DEFAULT_TIMEOUT = 10.0

DEFAULT_DELAY = timedelta(seconds=1)
"""A scrape takes a moment, and is stored under the time when it began."""

MOST_POINTS, MOST_INSTANTS = 300_000, 1000
"""Of one answer about the past: samples, so that a set takes seconds, and instants, of which
Prometheus allows 11,000. A longer past is read in parts."""

SERIES_OF_A_ROLLOUT = 200
"""What one query returns for one rollout, roughly: buckets of a few pods."""

SET_WITHIN = 3
"""Of the time for one query, as many may a set of them take before no more are sent."""

NO_SECRET = MountedSecret()


class PrometheusMetrics:
    """The port `Metrics` over the HTTP API of Prometheus. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        secret: MountedSecret = NO_SECRET,
        scope: Scope = EVERYWHERE,
        delay: timedelta = DEFAULT_DELAY,
        grid: timedelta = GRID,
        alerts: Scope = EVERYWHERE,
    ) -> None:
        """Make the client; nothing is sent yet.

        Args:
            url: Where Prometheus answers, such as `http://prometheus.monitoring.svc:9090`. A user
                and a password in it are sent, and told to nobody.
            timeout: Longest wait for a connection, and for an answer, in seconds.
            secret: Credentials and trust, if they are needed.
            scope: How Prometheus labels the pods.
            delay: How long after a scrape began its samples are found by queries.
            grid: Time between two ticks.
            alerts: Matchers of the alerts that concern this cluster.
        """
        self._alerts = alerts
        self._timeout = timeout
        self._secret = secret
        self._scope = scope
        self.delay = delay
        self.grid = grid
        session, bare = prometheus_http.session(url)
        self._where = urlsplit(bare).netloc or bare
        self._prometheus = PrometheusConnect(bare, session=session, method="POST")
        # In place of the client's own, which tries again for long and has no bounds.
        session.mount(bare, prometheus_http.BoundedAdapter(timeout, secret))

    def evidence(self, needs: Sequence[EvidenceNeed], now: datetime) -> Mapping[str, Evidence]:
        """Return what is known for each need, by its key, with three queries for all of them.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        if not needs:
            return {}
        window = queries.window(needs, now)
        router = [
            *self._range(queries.router_counters(needs, self._scope), window),
            *self._range(queries.router_latency(needs, self._scope), window),
        ]
        engines = self._range(queries.engine_counters(needs, self._scope), window)
        try:
            readings = Readings.of(window, router, engines)
            return {need.key: readings.evidence(need, now) for need in needs}
        except (KeyError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        """Return the ticks of each need, by its key, with the same few queries for any number.

        A long past is read in parts, the oldest first: what reaches the present is `complete`.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        if not needs:
            return {}
        end = last_instant(now, self.delay, self.grid)
        step = self.grid.total_seconds()
        most = max(1, min(MOST_INSTANTS, MOST_POINTS // (SERIES_OF_A_ROLLOUT * len(needs))))
        first = first_instant(min(need.since for need in needs), self.grid)
        window = instants(first, min(end, first + (most - 1) * step), self.grid)
        if window is None:
            return {need.key: Timeline(()) for need in needs}
        texts = TickQueries.of(needs, self._scope)
        deadline = time.monotonic() + SET_WITHIN * self._timeout

        def read(query: str) -> Iterator[Series]:
            if time.monotonic() > deadline:
                raise MetricsError(
                    f"Prometheus at {self._where} takes too long over a set of queries (more than "
                    f"{SET_WITHIN * self._timeout:g} s): look at its load, or raise "
                    "KVQUANT_PROMETHEUS_TIMEOUT."
                )
            return self._read(query, window)

        scrapes = Scrapes(window)
        try:
            scrapes.add_routers(texts, read)
            scrapes.add_seen(engines=read(texts.engines_seen))
            scrapes.add_engines_started(read(texts.engines_started))
            scrapes.add_engine_scalars(read(texts.engine_scalars))
            for name, text in texts.engine_histograms.items():
                scrapes.add_engine_histogram(name, read(text))
            for key, text in texts.custom.items():
                self._add_custom(scrapes, key, text, read)
            return scrapes.timelines(needs, complete=window.end >= end)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error

    def _add_custom(
        self, scrapes: Scrapes, key: str, text: str, read: Callable[[str], Iterator[Series]]
    ) -> None:
        """Read what a user's signal needs; when that fails, it is the signal's problem alone."""
        try:
            scrapes.add_custom(key, read(text))
        except MetricsError as error:
            scrapes.add_problem(key, str(error))

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        """Return the KV-cache configuration that each pod reports; absent means not scraped.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        if not pods:
            return {}
        found = self._configs(queries.cache_config_times([namespace], pods, self._scope), now)
        return {pod: config for (_, pod), config in found.items()}

    def all_cache_configs(
        self, namespaces: Iterable[str], now: datetime
    ) -> Mapping[tuple[str, str], CacheConfig]:
        """Return what every engine in the namespaces reports, by namespace and pod.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        return self._configs(queries.cache_config_times(namespaces, (), self._scope), now)

    def shadows(self, needs: Sequence[ShadowNeed], now: datetime) -> Mapping[str, ShadowEvidence]:
        """Return what the shadow services have counted, with two queries for all of them.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        if not needs:
            return {}
        window = queries.window_since(min(need.since for need in needs), now)
        bodies = self._range(shadow_reading.bodies_text(needs, self._scope), window)
        counters = self._ask(
            self._prometheus.custom_query,
            shadow_reading.counters_text(needs, now, self._scope),
            params={"time": f"{now.timestamp():.3f}"},
        )
        try:
            counted = [(entry["metric"], float(entry["value"][1])) for entry in counters]
            return shadow_reading.evidence(needs, counted, bodies, window)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error

    def _configs(self, query: str, now: datetime) -> dict[tuple[str, str], CacheConfig]:
        answer = self._ask(
            self._prometheus.custom_query,
            query,
            params={"time": f"{now.timestamp():.3f}"},
        )
        by_pod: dict[tuple[str, str], list[tuple[Series, float]]] = defaultdict(list)
        try:
            for entry in answer:
                series = Series(self._ours(entry["metric"]), ())
                whose = series.labels["namespace"], series.labels["pod"]
                by_pod[whose].append((series, float(entry["value"][1])))
            configs = {whose: cache_config(found) for whose, found in by_pod.items()}
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error
        return {whose: config for whose, config in configs.items() if config is not None}

    def alerts(self, now: datetime) -> Sequence[PolledAlert]:
        """Return every alert that fires or is about to, whomever it concerns, with one query.

        Raises:
            MetricsError: Prometheus did not answer, or answered what cannot be relied on.
        """
        answer = self._ask(
            self._prometheus.custom_query,
            queries.alerts(self._alerts),
            params={"time": f"{now.timestamp():.3f}"},
        )
        try:
            return polled([(entry["metric"], float(entry["value"][1])) for entry in answer])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, OSError) as error:
            raise self._nonsense(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._prometheus.close()

    def _range(self, query: str, window: queries.Window) -> list[Series]:
        try:
            return list(self._read(query, window))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense(error) from error

    def _read(self, query: str, window: queries.Window) -> Iterator[Series]:
        """Ask, and return the series one by one: of a hundred thousand, few need be there at once.

        Raises:
            MetricsError: Prometheus did not answer.
            KeyError, TypeError, ValueError, OverflowError: A series is not as Prometheus writes it.
        """
        # The client rounds instants to whole seconds; what is given as parameters wins.
        exact = {
            "start": f"{window.start_ms / 1000:.3f}",
            "end": f"{window.end_ms / 1000:.3f}",
            # As a number of seconds, Prometheus would cut some steps to a millisecond less, and the
            # last instant of the range would not be its end any more.
            "step": f"{window.step_ms}ms",
        }
        answer = self._ask(
            self._prometheus.custom_query_range,
            query,
            start_time=datetime.fromtimestamp(window.start_ms / 1000, UTC),
            end_time=datetime.fromtimestamp(window.end_ms / 1000, UTC),
            step=exact["step"],
            params=exact,
        )
        return (
            Series(
                self._ours(entry["metric"]),
                # Milliseconds are what Prometheus counts in; so instants can be compared.
                [(round(float(t) * 1000) / 1000, float(v)) for t, v in entry["values"]],
            )
            for entry in answer
        )

    def _ours(self, labels: Any) -> Mapping[str, str]:
        """Return the labels with a pod's namespace and name under the names that we use."""
        if not isinstance(labels, dict):
            raise TypeError(f"labels were expected, {type(labels).__name__} came")
        if self._scope.namespace == "namespace" and self._scope.pod == "pod":
            return labels
        ours = dict(labels)
        # What else may be called so, such as the exporter's own namespace, is not asked for.
        for own, theirs in (("namespace", self._scope.namespace), ("pod", self._scope.pod)):
            if theirs in labels:
                ours[own] = labels[theirs]
        return ours

    def _ask(self, method: Any, query: str, **arguments: Any) -> list[Any]:
        try:
            answer = method(query, timeout=self._timeout, **arguments)
        except PartialAnswerError as error:
            raise MetricsError(
                f"Prometheus at {self._where} answered only in part ({error}): nothing is decided "
                "on half of the evidence. Look at the stores behind it."
            ) from error
        except AccessRefusedError as error:
            raise MetricsError(self._refused(error)) from error
        except RedirectedError as error:
            raise MetricsError(
                f"Prometheus at {self._where} sends us on to {error}, as proxies do with people "
                "who have to log in: name its API itself in KVQUANT_PROMETHEUS_URL."
            ) from error
        except requests.Timeout as error:
            raise MetricsError(
                f"Prometheus at {self._where} did not answer within {self._timeout:g} s: look at "
                "its load, or raise KVQUANT_PROMETHEUS_TIMEOUT."
            ) from error
        except PrometheusApiClientException as error:
            raise MetricsError(
                f"Prometheus at {self._where} refused a query: {str(error)[:300]}"
            ) from error
        except requests.exceptions.SSLError as error:
            raise MetricsError(
                f"There is no TLS with Prometheus at {self._where} ({_cause(error)}): look at "
                "ca.crt, tls.crt and tls.key in the Secret that KVQUANT_PROMETHEUS_AUTH_FOLDER "
                "names; ca.crt must hold the certificate of whoever signed the server's."
            ) from error
        except requests.ConnectionError as error:
            raise MetricsError(
                f"Prometheus at {self._where} cannot be reached ({_cause(error)}): look whether "
                "it runs and whether KVQUANT_PROMETHEUS_URL names it."
            ) from error
        except (requests.RequestException, OSError, KeyError, TypeError, ValueError) as error:
            raise self._nonsense(error) from error
        if not isinstance(answer, list):
            raise self._nonsense(TypeError(f"a list was expected, {type(answer).__name__} came"))
        return answer

    def _refused(self, error: AccessRefusedError) -> str:
        what = f"Prometheus at {self._where} refuses us access (HTTP status {error.status})"
        folder = self._secret.folder
        if folder is None:
            return (
                f"{what}: name the folder of a Secret with a token, or with username and password, "
                "in KVQUANT_PROMETHEUS_AUTH_FOLDER."
            )
        if not error.files:
            return f"{what}: {folder} has neither token nor username and password: add them."
        sent = ", ".join(f"{folder}/{name}" for name in error.files)
        expired = "wrong or has expired" if error.status == 401 else "of somebody who may not read"
        return f"{what}: what it was sent is {expired}: look at {sent}."

    def _nonsense(self, error: Exception) -> MetricsError:
        return MetricsError(
            f"What answers at {self._where} does not speak like Prometheus ({type(error).__name__}:"
            f" {str(error)[:200]}): look whether KVQUANT_PROMETHEUS_URL names its API."
        )


def _cause(error: BaseException) -> str:
    """Return the innermost cause: the outer ones repeat addresses of objects."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return str(reason or error).rsplit(": ", 1)[-1][:200]
