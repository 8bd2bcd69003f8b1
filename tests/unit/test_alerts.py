"""Which alerts concern a rollout, and which of them are held against its canary."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import (
    AlertPolicy,
    AlertReport,
    AlertSelector,
    AlertSource,
    Phase,
    Spec,
    Status,
    Weights,
)
from kvquant.core import queries
from kvquant.core.alerts import (
    LABELS_KEPT,
    REMEMBERED,
    Alert,
    Heard,
    Watch,
    blamed,
    polled,
    sentence,
    services,
    standing,
)
from kvquant.core.plan import spec_hash

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SERVICES = services("llama", "llama-router", "llama-fp8-pool")
WATCH = Watch("inference", "llama-fp8", SERVICES)
BURN = {"alertname": "Burn", "namespace": "inference", "service": "llama-router"}


def rule(policy: str = "rollback", **match: str) -> AlertSelector:
    return AlertSelector(match=match, policy=AlertPolicy(policy))


def alert(labels: dict[str, str] = BURN, since: float = 0, **fields: Any) -> Alert:
    source = fields.get("source", AlertSource.WEBHOOK)
    return Alert.of(labels, NOW + timedelta(seconds=since), source, NOW)


def exposed(seconds: float = 60, *alerts: AlertReport) -> Status:
    """Return the status of a rollout whose canary has had traffic for so long."""
    since = NOW - timedelta(seconds=seconds)
    return Status(
        phase=Phase.PROGRESSING,
        canary_since=since,
        weights=Weights(baseline=90, canary=10),
        alerts=alerts,
    )


@pytest.mark.parametrize(
    ("labels", "policy"),
    [
        (BURN, "rollback"),
        ({**BURN, "severity": "critical"}, "rollback"),
        ({**BURN, "severity": "page"}, "rollback"),
        ({**BURN, "severity": "Warning"}, "pause"),
        ({**BURN, "severity": "info"}, "ignore"),
        ({**BURN, "severity": "none"}, "ignore"),
        ({**BURN, "service": "llama"}, "rollback"),
        ({**BURN, "service": "llama-fp8-pool"}, "rollback"),
        ({**BURN, "service": "llama-router-green"}, "rollback"),
        ({"namespace": "inference", "deployment": "llama"}, "rollback"),
        ({"namespace": "inference", "kvquant_rollout": "llama-fp8"}, "rollback"),
        ({"namespace": "inference", "kvquant_rollout": "another"}, None),
        ({**BURN, "service": "llama2"}, None),
        ({**BURN, "namespace": "elsewhere"}, None),
        ({"alertname": "Burn", "service": "llama-router"}, None),
        ({"alertname": "Watchdog"}, None),
        ({}, None),
    ],
)
def test_without_rules_an_alert_is_tied_by_namespace_and_service(
    labels: dict[str, str], policy: str | None
) -> None:
    assert WATCH.policy(labels) == (None if policy is None else AlertPolicy(policy))


@pytest.mark.parametrize(
    ("rules", "labels", "policy"),
    [
        ([rule("ignore", alertname="Burn")], BURN, "ignore"),
        ([rule("pause", alertname="Burn", service="other")], BURN, "rollback"),
        ([rule("pause", alertname="Burn"), rule("ignore", service="llama-router")], BURN, "pause"),
        ([rule(alertname="Disk")], {"alertname": "Disk"}, "rollback"),
        ([rule(alertname="Disk")], {"alertname": "Disk", "namespace": "elsewhere"}, None),
        (
            [rule(alertname="Disk", namespace="elsewhere")],
            {"alertname": "Disk", "namespace": "elsewhere"},
            "rollback",
        ),
        ([rule(alertname="Disk", severity="")], {"alertname": "Disk"}, None),
        ([rule(alertname="Bur")], {"alertname": "Burn"}, None),
    ],
)
def test_the_first_rule_that_matches_exactly_decides(
    rules: list[AlertSelector], labels: dict[str, str], policy: str | None
) -> None:
    watch = Watch("inference", "llama-fp8", SERVICES, tuple(rules))
    assert watch.policy(labels) == (None if policy is None else AlertPolicy(policy))
    assert labels.get("namespace", "") in watch.namespaces or policy is None


def test_what_begins_with_the_traffic_or_after_is_blamed_and_what_began_before_is_not() -> None:
    for since, guilty in [(-61, False), (-60, True), (0, True)]:
        status = exposed(60)
        alerts = standing(status, Heard(WATCH, (alert(since=since),)), NOW)
        assert bool(blamed(status, alerts)) is guilty


def test_without_traffic_nobody_is_blamed_and_the_alert_is_remembered_as_older() -> None:
    status = Status(phase=Phase.VERIFYING)
    (report,) = standing(status, Heard(WATCH, (alert(),)), NOW)
    assert report.before_traffic
    later = exposed(-10, report)
    again = standing(later, Heard(WATCH, (alert(),)), NOW)
    assert blamed(later, again) == []


def test_a_status_of_an_older_operator_blames_from_the_step_on() -> None:
    status = exposed().model_copy(update={"canary_since": None, "step_started_at": NOW})
    assert blamed(status, standing(status, Heard(WATCH, (alert(since=-1),)), NOW)) == []
    assert blamed(status, standing(status, Heard(WATCH, (alert(since=1),)), NOW))


def test_what_is_told_names_the_alert_its_labels_the_time_and_the_way() -> None:
    labels = {**BURN, "severity": "critical"}
    (report,) = standing(exposed(), Heard(WATCH, (alert(labels),)), NOW)
    assert sentence(report) == (
        "Burn (namespace=inference, severity=critical, service=llama-router) since 2026-11-25 "
        "12:00:00 UTC, learned by webhook"
    )


def test_what_the_status_keeps_is_bounded_and_keeps_what_is_blamed() -> None:
    odd = {f"label{n:03}": "x" * 1000 for n in range(60)}
    before = [alert({**BURN, **odd, "n": str(n)}, since=-1000) for n in range(50)]
    guilty = alert({**BURN, **odd, "alertname": "y" * 1000})
    status = exposed()
    alerts = standing(status, Heard(WATCH, (*before, guilty)), NOW)
    assert len(alerts) == REMEMBERED
    assert [a.fingerprint for a in blamed(status, alerts)] == [guilty.fingerprint]
    assert all(len(a.labels) <= LABELS_KEPT for a in alerts)
    Status.model_validate(status.model_copy(update={"alerts": alerts}).model_dump())


def test_a_repetition_is_no_reason_to_write() -> None:
    status = exposed()
    heard = Heard(WATCH, (alert(since=-100),))
    alerts = standing(status, heard, NOW)
    kept = status.model_copy(update={"alerts": alerts})
    soon = NOW + timedelta(minutes=59)
    repeated = Alert.of(BURN, NOW - timedelta(seconds=100), AlertSource.WEBHOOK, soon)
    assert standing(kept, Heard(WATCH, (repeated,)), soon) == alerts


def test_what_began_before_stays_so_though_the_traffic_left_and_came_back() -> None:
    (report,) = standing(exposed(), Heard(WATCH, (alert(since=-100),)), NOW)
    later = exposed(200, report)
    assert standing(later, Heard(WATCH, (alert(since=-100),)), NOW)[0].before_traffic


def test_rules_are_no_part_of_what_is_rolled_out() -> None:
    document = {
        "targetRef": {"name": "llama"},
        "kvCache": {"dtype": "int8"},
        "traffic": {"router": {}},
    }
    plain = Spec.model_validate(document)
    ruled = Spec.model_validate({**document, "alerts": [{"match": {"alertname": "Burn"}}]})
    assert ruled.alerts[0].policy is AlertPolicy.ROLLBACK
    assert spec_hash(plain) == spec_hash(ruled)


def test_an_answer_of_prometheus_is_read() -> None:
    assert "ALERTS_FOR_STATE" in queries.ALERTS
    t = NOW.timestamp()
    vector: list[tuple[dict[str, str], float]] = [
        ({**BURN, "alertstate": "pending"}, t - 20),
        ({**BURN, "alertstate": "firing"}, t - 5),
        ({**BURN, "__name__": "ALERTS_FOR_STATE"}, t - 100),
        ({"alertname": "Slow", "alertstate": "pending"}, t),
        ({"alertname": "Odd", "alertstate": "firing"}, float("nan")),
        ({"alertname": "Gone", "__name__": "ALERTS_FOR_STATE"}, t),
    ]
    burn, slow = polled(vector)
    assert burn.labels == BURN
    assert burn.fires
    assert burn.since == NOW - timedelta(seconds=99), "never older than it is"
    assert burn.told_at == NOW - timedelta(seconds=5)
    assert (slow.labels, slow.fires, slow.since) == ({"alertname": "Slow"}, False, NOW)


times = st.integers(-200, 200)
labels = st.fixed_dictionaries(
    {
        "alertname": st.sampled_from(["Burn", "Slow"]),
        "namespace": st.sampled_from(["inference", "elsewhere"]),
        "service": st.sampled_from(["llama-router", "another"]),
    },
    optional={"severity": st.sampled_from(["critical", "warning", "info"])},
)
tales = st.lists(st.tuples(labels, times, st.sampled_from(AlertSource)), max_size=6)


@given(tales, st.integers(0, 300), st.booleans(), st.booleans())
def test_only_alerts_that_concern_the_rollout_and_began_with_the_traffic_are_blamed(
    told: list[tuple[dict[str, str], int, AlertSource]], traffic: int, polls: bool, steady: bool
) -> None:
    status = exposed(traffic)
    firing = tuple(alert(labels, since, source=source) for labels, since, source in told)
    heard = Heard(WATCH, firing, polls=polls, polled=polls, steady=steady)
    alerts = standing(status, heard, NOW)
    for one in blamed(status, alerts):
        assert one.labels["namespace"] == "inference"
        assert one.labels["service"] == "llama-router"
        assert one.labels.get("severity") in ("critical", None)
        assert one.since >= NOW - timedelta(seconds=traffic)
    # Looked at again, nothing has changed: a pass that repeats decides nothing new.
    kept = status.model_copy(update={"alerts": alerts})
    assert standing(kept, heard, NOW) == alerts
    # What the status remembers is forgotten only by those who can tell, whatever was heard.
    forgotten = Heard(WATCH, polls=True)
    assert {a.fingerprint for a in standing(kept, forgotten, NOW)} == {
        a.fingerprint for a in alerts
    }


@given(st.lists(st.tuples(st.sampled_from(["fire", "end"]), st.integers(0, 50)), max_size=30))
def test_whatever_the_order_of_notes_an_old_one_never_blames(
    notes: list[tuple[str, int]],
) -> None:
    """Notes of one alert, all of the time before the traffic, come in any order."""
    status = exposed(60)
    ended: dict[str, datetime] = {}
    for kind, ago in notes:
        at = NOW - timedelta(seconds=61 + ago)
        one = alert(since=-(61 + ago))
        if kind == "end":
            ended = {one.fingerprint: at}
        heard = Heard(WATCH, (one,) if kind == "fire" else (), ended=ended)
        alerts = standing(status, heard, NOW)
        assert blamed(status, alerts) == []
        status = status.model_copy(update={"alerts": alerts})
