"""The operator's own metrics and logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import kopf
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from kvquant.ports import Acknowledgement, RouterKey

WHOSE = ["rollout_namespace", "rollout"]
"""Labels of what concerns one rollout. A plain `namespace` would be the operator's own: Prometheus
puts that on whatever it scrapes, and renames ours."""

PHASE = Gauge(
    "kvquant_rollout_phase",
    "1 for the phase that a rollout is in, 0 for the others.",
    [*WHOSE, "phase"],
)
WEIGHT = Gauge(
    "kvquant_rollout_canary_weight_percent",
    "Committed share of the traffic that the canary gets.",
    WHOSE,
)
STEP = Gauge("kvquant_rollout_step", "Step in effect, from 1; 0 before.", WHOSE)
HELD = Gauge(
    "kvquant_rollout_held",
    "1 while a rollout waits for evidence or for something to become ready.",
    WHOSE,
)
HOLD_REASON = Gauge(
    "kvquant_rollout_hold_reason",
    "1 for the reason for which a rollout waits; no series while it does not.",
    [*WHOSE, "reason"],
)
PHASE_STARTED = Gauge(
    "kvquant_rollout_phase_started_timestamp_seconds",
    "When the phase began that a rollout is in, or the step, in seconds since the epoch.",
    WHOSE,
)
DECISIONS = Counter("kvquant_decisions_total", "Decisions by kind and reason.", ["kind", "reason"])
PASS_SECONDS = Histogram(
    "kvquant_reconcile_seconds",
    "Duration of one reconciliation pass.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
PASS_ERRORS = Counter(
    "kvquant_reconcile_errors_total", "Passes that ended in an error, by its class.", ["error"]
)
PROMETHEUS_READS = Counter(
    "kvquant_prometheus_reads_total",
    "Sets of queries that were sent to Prometheus, by their outcome.",
    ["outcome"],
)
for _outcome in ("read", "failed"):
    # A series that begins with its first event has no increase by it.
    PROMETHEUS_READS.labels(_outcome)
DIRECT_READS = Counter(
    "kvquant_direct_reads_total",
    "Reads that were sent to the API server because no watch could answer them, by kind.",
    ["kind"],
)
ALERT_NOTIFICATIONS = Counter(
    "kvquant_alert_notifications_total",
    "Requests to the webhook receiver of alerts, by the HTTP status of the answer.",
    ["status"],
)
NOTIFICATIONS = Counter(
    "kvquant_notifications_total", "Notifications of rollouts, by their outcome.", ["outcome"]
)
ARCHIVED = Counter("kvquant_archived_decisions_total", "Decisions written to the archive.")
ARCHIVE_ERRORS = Counter(
    "kvquant_archive_errors_total", "Failures to write decisions to the archive."
)
ARCHIVE_PENDING = Gauge(
    "kvquant_archive_pending_decisions", "Recorded decisions that the archive lacks."
)
LEADER = Gauge(
    "kvquant_leader", "1 while this operator may decide; 0 while it waits for another to be gone."
)
WATCHES = Gauge("kvquant_watches", "Watches that are open or wanted.")


def report(namespace: str, name: str, before: Status, after: Status) -> None:
    """Export the state of a rollout and count its new decisions."""
    for phase in Phase:
        PHASE.labels(namespace, name, phase.value).set(1 if phase is after.phase else 0)
    WEIGHT.labels(namespace, name).set(after.weights.canary)
    STEP.labels(namespace, name).set(after.step)
    held = after.condition("Held")
    reason = held.reason if held is not None and held.status == "True" else None
    HELD.labels(namespace, name).set(0 if reason is None else 1)
    _hold_reason(namespace, name, reason)
    if after.phase_started_at is not None:
        PHASE_STARTED.labels(namespace, name).set(after.phase_started_at.timestamp())
    known = {(d.at, d.kind, d.reason) for d in before.decisions}
    for decision in after.decisions:
        if (decision.at, decision.kind, decision.reason) not in known:
            DECISIONS.labels(DecisionKind(decision.kind).value, decision.reason).inc()


def forget(namespace: str, name: str) -> None:
    """Stop exporting a rollout that is gone, so that no series outlives it."""
    for phase in Phase:
        PHASE.remove(namespace, name, phase.value)
    for gauge in (WEIGHT, STEP, HELD, PHASE_STARTED):
        gauge.remove(namespace, name)
    _hold_reason(namespace, name, None)


_reasons: dict[tuple[str, str], str] = {}
"""Why each rollout waits, as it was exported last."""


def _hold_reason(namespace: str, name: str, reason: str | None) -> None:
    before = _reasons.pop((namespace, name), None)
    if before is not None and before != reason:
        HOLD_REASON.remove(namespace, name, before)
    if reason is not None:
        _reasons[namespace, name] = reason
        HOLD_REASON.labels(namespace, name, reason).set(1)


class RouterPods(Collector):
    """Tells how many pods of each router are connected, and apply the weights set last."""

    def __init__(self, routers: Callable[[], Mapping[RouterKey, Acknowledgement]]) -> None:
        """Make a collector.

        Args:
            routers: Returns every router that has weights, and how far its pods are.
        """
        self._routers = routers

    def collect(self) -> Iterator[Metric]:
        """Yield the family, as it is now."""
        pods = GaugeMetricFamily(
            "kvquant_router_pods",
            "Pods of a router: connected to this operator, and applying the weights set last.",
            labels=["router_namespace", "router", "state"],
        )
        for key, told in self._routers().items():
            pods.add_metric([key.namespace, key.name, "connected"], told.connected)
            pods.add_metric([key.namespace, key.name, "applied"], told.applied)
        yield pods

    def describe(self) -> Iterable[Metric]:
        """Name the family, without asking anybody."""
        return [GaugeMetricFamily("kvquant_router_pods", "")]


def watch_routers(routers: Callable[[], Mapping[RouterKey, Acknowledgement]]) -> None:
    """Export how far the pods of each router are, for as long as the process lives."""
    REGISTRY.register(RouterPods(routers))


def configure_logging(level: str) -> None:
    """Log JSON lines with the object that each speaks of, at the level asked for."""
    kopf.configure(log_format=kopf.LogFormat.JSON, log_refkey="object")
    logging.getLogger().setLevel(level)
    # kopf tells every handled event at INFO; with one wake a pod event that drowns the decisions.
    # So do the kubelet's looks at the liveness endpoint.
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
