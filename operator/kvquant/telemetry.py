"""The operator's own metrics and logs."""

from __future__ import annotations

import logging

import kopf
from prometheus_client import Counter, Gauge, Histogram

from kvquant.api.v1alpha1 import DecisionKind, Phase, Status

PHASE = Gauge(
    "kvquant_rollout_phase",
    "1 for the phase that a rollout is in, 0 for the others.",
    ["namespace", "name", "phase"],
)
WEIGHT = Gauge(
    "kvquant_rollout_canary_weight_percent",
    "Committed share of the traffic that the canary gets.",
    ["namespace", "name"],
)
STEP = Gauge("kvquant_rollout_step", "Step in effect, from 1; 0 before.", ["namespace", "name"])
HELD = Gauge(
    "kvquant_rollout_held",
    "1 while a rollout waits for evidence or for something to become ready.",
    ["namespace", "name"],
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
    HELD.labels(namespace, name).set(1 if held is not None and held.status == "True" else 0)
    known = {(d.at, d.kind, d.reason) for d in before.decisions}
    for decision in after.decisions:
        if (decision.at, decision.kind, decision.reason) not in known:
            DECISIONS.labels(DecisionKind(decision.kind).value, decision.reason).inc()


def forget(namespace: str, name: str) -> None:
    """Stop exporting a rollout that is gone, so that no series outlives it."""
    for phase in Phase:
        PHASE.remove(namespace, name, phase.value)
    for gauge in (WEIGHT, STEP, HELD):
        gauge.remove(namespace, name)


def configure_logging(level: str) -> None:
    """Log JSON lines with the object that each speaks of, at the level asked for."""
    kopf.configure(log_format=kopf.LogFormat.JSON, log_refkey="object")
    logging.getLogger().setLevel(level)
    # kopf tells every handled event at INFO; with one wake a pod event that drowns the decisions.
    # So do the kubelet's looks at the liveness endpoint.
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
