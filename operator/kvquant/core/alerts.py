"""Which alerts concern a rollout, and which of them began while the canary had traffic.

An alert that began before says nothing against the canary: it keeps the rollout from moving. One
that begins while the canary has traffic rolls back, if its policy says so. What is known of alerts
stands in the status, because whoever sends them does not repeat it when an operator starts anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kvquant.api import names
from kvquant.api.v1alpha1 import (
    AlertPolicy,
    AlertReport,
    AlertSelector,
    AlertSource,
    Phase,
    Status,
)

ALERTNAME, NAMESPACE, SEVERITY = "alertname", "namespace", "severity"

TIES = ("service", "deployment")
"""Labels by which an alert names what it speaks of, for the default policy."""

ROLLOUT_LABEL = "kvquant_rollout"
"""Label by which a rule names the rollout itself."""

SEVERITIES = {
    "warning": AlertPolicy.PAUSE,
    "info": AlertPolicy.IGNORE,
    "none": AlertPolicy.IGNORE,
}
"""Policies of the severities that say that nobody has to get up; all others roll back."""

REMEMBERED = 16
"""Alerts that the status keeps."""

LABELS_KEPT, LABEL_LENGTH = 12, 128
"""Labels of an alert that the status keeps, and characters of each."""

LONGEST = 256
"""Characters of the longest value of a label that a rule may name."""

REPEATED_WITHIN = timedelta(hours=12)
"""Time after which an alert that its sender has not repeated is no longer taken to fire.
Alertmanager repeats those that fire, every four hours unless it is told otherwise."""

HEARD_ANEW = timedelta(hours=1)
"""Time after which it is worth a write that an alert was repeated."""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that fires.

    Attributes:
        labels: Its labels, the name included.
        since: When it began to fire; when its condition began to hold, where it was polled.
        source: How it became known.
        heard_at: When it was last told.
        fingerprint: What tells it from others of its source: a hash of its labels.
    """

    labels: Mapping[str, str]
    since: datetime
    source: AlertSource
    heard_at: datetime
    fingerprint: str

    @classmethod
    def of(
        cls, labels: Mapping[str, str], since: datetime, source: AlertSource, heard_at: datetime
    ) -> Alert:
        """Return an alert by its labels, which are cut to what a rule can ask for."""
        # One more than the longest value that a rule may name, so that what is cut matches none.
        cut = {label[:LONGEST]: text[: LONGEST + 1] for label, text in labels.items()}
        return cls(cut, since, source, heard_at, fingerprint(labels))


def fingerprint(labels: Mapping[str, str]) -> str:
    """Return what tells an alert from others: a hash of its labels."""
    return hashlib.sha256(json.dumps(sorted(labels.items())).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PolledAlert:
    """An alert as Prometheus tells it.

    Attributes:
        labels: Its labels, the name included.
        fires: Whether it fires; else its condition holds, but not for long enough yet.
        since: When its condition began to hold.
        told_at: When a rule said so last.
    """

    labels: Mapping[str, str]
    fires: bool
    since: datetime
    told_at: datetime


def polled(vector: Iterable[tuple[Mapping[str, str], float]]) -> list[PolledAlert]:
    """Return the alerts in an answer to `queries.ALERTS`: labels and value of each series.

    Series of two kinds are in it: when a rule has spoken last of an alert, with its state, and
    since when its condition holds.
    """
    states: dict[str, tuple[dict[str, str], bool, float]] = {}
    began: dict[str, float] = {}
    for series, value in vector:
        if not math.isfinite(value):
            continue
        labels = {k: v for k, v in series.items() if k not in ("__name__", "alertstate")}
        key = fingerprint(labels)
        if "alertstate" not in series:
            # Whole seconds, rounded down: an alert must not seem to be older than it is.
            began[key] = value + 1
            continue
        fires = series["alertstate"] == "firing"
        # While it changes, an alert may be told in both states.
        if key not in states or fires:
            states[key] = (labels, fires, value)
    return [
        PolledAlert(
            labels,
            fires,
            datetime.fromtimestamp(min(began.get(key, told), told), UTC),
            datetime.fromtimestamp(told, UTC),
        )
        for key, (labels, fires, told) in states.items()
    ]


@dataclass(frozen=True, slots=True)
class Watch:
    """What a rollout has to do with alerts.

    Attributes:
        namespace: Namespace of the rollout.
        rollout: Its name.
        services: Names of its pools, its router and their Services.
        rules: What its spec says; the first rule that matches decides.
    """

    namespace: str
    rollout: str
    services: frozenset[str]
    rules: tuple[AlertSelector, ...] = ()

    @property
    def namespaces(self) -> frozenset[str]:
        """Namespaces of the alerts that can concern it; empty text: alerts without that label."""
        named = {rule.match[NAMESPACE] for rule in self.rules if NAMESPACE in rule.match}
        return frozenset({"", self.namespace, *named})

    def policy(self, labels: Mapping[str, str]) -> AlertPolicy | None:
        """Return what an alert does to this rollout; None when it does not concern it."""
        elsewhere = labels.get(NAMESPACE, self.namespace) != self.namespace
        for rule in self.rules:
            if elsewhere and NAMESPACE not in rule.match:
                continue
            if all(labels.get(label) == value for label, value in rule.match.items()):
                return rule.policy
        if labels.get(NAMESPACE) != self.namespace or not self._tied(labels):
            return None
        return SEVERITIES.get(labels.get(SEVERITY, "").lower(), AlertPolicy.ROLLBACK)

    def _tied(self, labels: Mapping[str, str]) -> bool:
        if labels.get(ROLLOUT_LABEL) == self.rollout:
            return True
        return any(labels.get(label) in self.services for label in TIES)


def services(target: str, router: str, pool: str) -> frozenset[str]:
    """Return the names by which alerts speak of a rollout's pools and of its router."""
    return frozenset({target, router, pool, *(f"{router}-{slot}" for slot in names.SLOTS)})


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of alerts in one pass, for one rollout.

    Attributes:
        watch: What the rollout has to do with alerts.
        firing: The alerts that fire, as far as they may concern it.
        ended: Fingerprints of those that Alertmanager has told to be over, with the end.
        polls: Whether Prometheus is asked for the alerts that fire.
        polled: Whether it answered lately, so that no alert can fire unseen.
        steady: Whether it has answered for long enough to believe that an alert is over which it
            no longer tells. After a restart it tells none for a while.
        lingering: Fingerprints of the alerts that it has told within that time.
        mark: What this has taken in, for whoever waits until it is stored.
    """

    watch: Watch
    firing: tuple[Alert, ...] = ()
    ended: Mapping[str, datetime] | None = None
    polls: bool = False
    polled: bool = False
    steady: bool = False
    lingering: frozenset[str] = frozenset()
    mark: int = 0


def standing(status: Status, heard: Heard, now: datetime) -> tuple[AlertReport, ...]:
    """Return the alerts that fire and concern the rollout, as its status shall keep them.

    Args:
        status: The status so far.
        heard: What is known of alerts.
        now: The present instant.
    """
    since = _traffic_since(status)
    known = {(report.learned, report.fingerprint): report for report in status.alerts}
    found: dict[tuple[AlertSource, str], AlertReport] = {}
    for alert in heard.firing:
        policy = heard.watch.policy(alert.labels)
        if policy is None or policy is AlertPolicy.IGNORE:
            continue
        key = (alert.source, alert.fingerprint)
        found[key] = _report(alert, policy, known.get(key), since)
    for key, report in known.items():
        if key in found or _is_over(report, heard, now):
            continue
        policy = heard.watch.policy(report.labels)
        if policy is None and not _whole(report):
            policy = report.policy
        if policy not in (None, AlertPolicy.IGNORE):
            before = report.before_traffic or since is None or report.since < since
            found[key] = report.model_copy(update={"policy": policy, "before_traffic": before})
    return tuple(sorted(found.values(), key=_rank)[:REMEMBERED])


def blamed(status: Status, alerts: Iterable[AlertReport]) -> list[AlertReport]:
    """Return the alerts for which the traffic is to be taken from the canary.

    Args:
        status: Tells whether the canary has traffic, and somewhere to give it back to.
        alerts: The alerts that fire, as `standing` returns them.
    """
    going = status.phase is Phase.PROGRESSING or (
        status.phase is Phase.PROMOTED and not status.settled
    )
    if not going or status.weights.canary == 0:
        return []
    return [
        alert
        for alert in alerts
        if alert.policy is AlertPolicy.ROLLBACK and not alert.before_traffic
    ]


def sentence(alert: AlertReport) -> str:
    """Return an alert with its labels, since when it fires and how that became known."""
    others = ", ".join(f"{k}={v}" for k, v in alert.labels.items() if k != ALERTNAME)
    return (
        f"{alert.name} ({others}) since {alert.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, "
        f"learned by {alert.learned.value}"
    )


def _traffic_since(status: Status) -> datetime | None:
    """Return since when the canary has had traffic without a break; None while it has none."""
    if status.weights.canary == 0:
        return None
    # An older operator kept only when the step began.
    return status.canary_since or status.step_started_at


def _report(
    alert: Alert, policy: AlertPolicy, known: AlertReport | None, traffic: datetime | None
) -> AlertReport:
    # Alertmanager tells when an alert fires again; to Prometheus, one that was told all along has
    # never ended, even if a restart made it count anew.
    again = alert.source is AlertSource.WEBHOOK and known is not None and alert.since > known.since
    if known is None or again:
        known = AlertReport(
            name=alert.labels.get(ALERTNAME, "(without a name)")[:LABEL_LENGTH],
            fingerprint=alert.fingerprint,
            labels=_bounded(alert.labels),
            since=alert.since,
            heard_at=alert.heard_at,
            learned=alert.source,
            policy=policy,
        )
    before = known.before_traffic or traffic is None or known.since < traffic
    late = alert.source is AlertSource.WEBHOOK and alert.heard_at - known.heard_at >= HEARD_ANEW
    return known.model_copy(
        update={
            "policy": policy,
            "before_traffic": before,
            "heard_at": alert.heard_at if late else known.heard_at,
        }
    )


def _is_over(report: AlertReport, heard: Heard, now: datetime) -> bool:
    if report.learned is AlertSource.POLLING:
        # Nobody would ever tell the end of an alert that was polled when nobody polls any more.
        return not heard.polls or (heard.steady and report.fingerprint not in heard.lingering)
    ended = (heard.ended or {}).get(report.fingerprint)
    return (ended is not None and ended >= report.since) or now - report.heard_at > REPEATED_WITHIN


def _bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that tell most, by which the default policy goes, and others that fit."""
    telling = (ALERTNAME, NAMESPACE, SEVERITY, *TIES, ROLLOUT_LABEL)
    first = [label for label in telling if label in labels]
    rest = sorted(label for label in labels if label not in telling)
    kept = [*first, *rest][:LABELS_KEPT]
    return {label[:LABEL_LENGTH]: labels[label][:LABEL_LENGTH] for label in kept}


def _whole(report: AlertReport) -> bool:
    """Tell whether a report has every label of its alert, and none of them cut."""
    longest = max((len(text) for text in report.labels.values()), default=0)
    return len(report.labels) < LABELS_KEPT and longest < LABEL_LENGTH


def _rank(report: AlertReport) -> tuple[bool, bool, datetime, str]:
    rolls_back = report.policy is AlertPolicy.ROLLBACK
    return (report.before_traffic or not rolls_back, not rolls_back, report.since, report.name)
