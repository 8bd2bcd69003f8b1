"""What the service counts. Labels hold names of ours and of the rollout, never a word of a text."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

from kvquant.core import shadow_settings as names
from kvquant.core.shadow_settings import ShadowSettings

SECONDS = "kvquant_shadow_answer_seconds"
TOKENS = "kvquant_shadow_tokens_total"
QUEUED = "kvquant_shadow_queue_requests"
IN_FLIGHT = "kvquant_shadow_in_flight"
THROTTLED = "kvquant_shadow_throttled"
UNSCORED = "kvquant_shadow_unscored_total"
UNLOGGED = "kvquant_shadow_unlogged_total"
PODS = "kvquant_shadow_pods"

BASELINE_ARM, CANARY_ARM = "baseline", "canary"

PAIRS = (names.CANARY_PAIR, names.NOISE_PAIR)
SIGNALS = (
    *(names.DRIFT, names.ANSWERED, names.JSON, names.TOOLS),
    *(names.CITATIONS, names.REFUSALS, names.ENDINGS, names.EXACT),
    *(names.SATURATED, names.SATURATED_ANSWERED),
)
_BUCKETS_OF_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_WHOSE = ("rollout", "attempt", "run")


class Metrics:
    """The series of one run of the service."""

    def __init__(self, settings: ShadowSettings, run: str) -> None:
        """Make them, those that are summed up at zero.

        Args:
            settings: Whose rollout it is.
            run: Name of this process's life, never used before.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._whose = {"rollout": settings.uid, "attempt": str(settings.attempt), "run": run}
        self._received = self._counter(names.RECEIVED, "Mirrored requests that arrived.", "bucket")
        self._dropped = self._counter(
            names.DROPPED, "Mirrored requests that were not compared.", "reason"
        )
        judged = ("pair", "signal", "bucket")
        self._scored = self._counter(names.SCORED, "Pairs that were judged.", *judged)
        self._harm = self._counter(names.HARM, "Sum of the differences for the worse.", *judged)
        self._relief = self._counter(names.RELIEF, "Sum of those for the better.", *judged)
        self._squares = self._counter(names.SQUARES, "Sum of the squares of both.", *judged)
        self._tokens = self._counter(TOKENS, "Tokens of prompts and answers.", "arm")
        self._found = self._counter(names.FOUND, "Personal data that were replaced.", "kind")
        self._unscored = self._counter(UNSCORED, "Pairs without drift.", "pair", "reason")
        self._unlogged = self._counter(UNLOGGED, "Pairs that the log lacks.", "reason")
        self._seconds = Histogram(
            SECONDS,
            "Time that an arm took to answer a replay.",
            [*_WHOSE, "arm"],
            buckets=_BUCKETS_OF_SECONDS,
            registry=self.registry,
        )
        self._queued = self._gauge(QUEUED, "Mirrored requests that wait.")
        self._in_flight = self._gauge(IN_FLIGHT, "Pairs in work.")
        self._throttled = self._gauge(THROTTLED, "1 while nothing is replayed, to spare the arms.")
        self._pods = self._gauge(PODS, "Pods that are known.", "arm")
        for bucket, _ in names.BUCKETS:
            self._received.labels(**self._whose, bucket=bucket)
            for pair in PAIRS:
                for signal in SIGNALS:
                    for family in (self._scored, self._harm, self._relief, self._squares):
                        family.labels(**self._whose, pair=pair, signal=signal, bucket=bucket)

    def received(self, bucket: str) -> None:
        """Count a request that arrived."""
        self._received.labels(**self._whose, bucket=bucket).inc()

    def dropped(self, reason: str) -> None:
        """Count a request that will not be compared."""
        self._dropped.labels(**self._whose, reason=reason).inc()

    def judged(self, pair: str, bucket: str, differences: Mapping[str, float]) -> None:
        """Count a pair's differences by signal."""
        for signal, difference in differences.items():
            labels = {**self._whose, "pair": pair, "signal": signal, "bucket": bucket}
            self._scored.labels(**labels).inc()
            self._harm.labels(**labels).inc(max(difference, 0.0))
            self._relief.labels(**labels).inc(max(-difference, 0.0))
            self._squares.labels(**labels).inc(difference * difference)

    def answered(self, arm: str, seconds: float, tokens: int) -> None:
        """Count an answer of an arm."""
        self._seconds.labels(**self._whose, arm=arm).observe(seconds)
        self.spent(arm, tokens)

    def spent(self, arm: str, tokens: int) -> None:
        """Count tokens that an arm has worked on."""
        self._tokens.labels(**self._whose, arm=arm).inc(tokens)

    def found(self, kinds: Mapping[str, int]) -> None:
        """Count personal data that were replaced."""
        for kind, count in kinds.items():
            self._found.labels(**self._whose, kind=kind).inc(count)

    def unscored(self, pair: str, reason: str) -> None:
        """Count a pair whose drift is not known."""
        self._unscored.labels(**self._whose, pair=pair, reason=reason).inc()

    def unlogged(self, reason: str) -> None:
        """Count a pair that was compared and is not in the log."""
        self._unlogged.labels(**self._whose, reason=reason).inc()

    def queued(self, requests: int) -> None:
        """Tell how many requests wait."""
        self._queued.labels(**self._whose).set(requests)

    def in_flight(self, pairs: int) -> None:
        """Tell how many pairs are in work."""
        self._in_flight.labels(**self._whose).set(pairs)

    def throttled(self, *, is_throttled: bool) -> None:
        """Tell whether nothing is replayed for the moment."""
        self._throttled.labels(**self._whose).set(is_throttled)

    def pods(self, arm: str, count: int) -> None:
        """Tell how many pods of an arm are known."""
        self._pods.labels(**self._whose, arm=arm).set(count)

    def exposition(self) -> bytes:
        """Return the text for Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [*_WHOSE, *labels], registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, [*_WHOSE, *labels], registry=self.registry)
